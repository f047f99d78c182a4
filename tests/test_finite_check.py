"""A loss or gradient that is not finite stops the run before the optimizer's step, and says which rows it was."""

from types import SimpleNamespace

import pytest
import torch
from caption_data import load
from training_runs import build, make_parts, parameters

from trainer import EpochDataset, VLKDTrainer
from trainer.checkpoints import complete_checkpoints


@pytest.fixture
def parts(model, processor, clip_dir, tmp_path) -> SimpleNamespace:
    return make_parts(model, processor, clip_dir, str(tmp_path))


def spoilt(parts: SimpleNamespace, name: str, value: float, rows: set[int], **options) -> VLKDTrainer:
    """A trainer in whose batches a number of these rows is not finite."""
    data = EpochDataset(load(rows=40))
    trainer = build(parts, data, max_steps=10, train_sampling_strategy="sequential", **options)
    collate = trainer.data_collator

    def spoil(examples: list[dict]) -> dict:
        batch = collate(examples)
        for place, example in enumerate(examples):
            if example["index"] in rows:
                batch[name][place].view(-1)[0] = value
        return batch

    trainer.data_collator = spoil
    return trainer


def message(trainer: VLKDTrainer) -> str:
    with pytest.raises(FloatingPointError) as error:
        trainer.train()
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())
    return str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_are_named_and_nothing_is_lost(parts, value):
    """Rows 9 and 11 are in the third batch, with 8 and 10; the weights stay those of the second step."""
    trainer = spoilt(parts, "pixel_values", value, {9, 11}, save_strategy="steps", save_steps=1)
    told = message(trainer)
    expected = "step 3: because of row 9 of epoch 0, row 11 of epoch 0: itcl is nan and icti is nan. Stopped before"
    assert told.startswith(expected)
    *_, last = complete_checkpoints(parts.folder)
    assert last.endswith("checkpoint-2")
    before = parameters(trainer.model)
    trainer._load_from_checkpoint(last)
    assert all(torch.equal(value, before[name]) for name, value in parameters(trainer.model).items())


def test_in_accumulated_batches_and_chunks(parts):
    options = {"gradient_accumulation_steps": 2, "contrastive_chunk_size": 3}
    told = message(spoilt(parts, "pixel_values", float("nan"), {13}, **options))
    assert told.startswith("step 2: because of row 13 of epoch 0: itcl")


def test_a_loss_that_is_switched_off_stops_nothing(parts):
    weights = {"itcl_weight": 0.0, "icti_weight": 0.0}
    trainer = spoilt(parts, "pixel_values", float("nan"), {5}, **weights)
    trainer.train()
    assert trainer.state.global_step == 10


def test_batch_is_named_where_no_row_is_at_fault(parts):
    """The decoder's output overflows, the embeddings do not; of 20 rows 16 are named."""
    trainer = build(parts, EpochDataset(load(rows=20)), per_device_train_batch_size=20)
    trainer.model.language_model.final_logits_bias[0, 0] = float("inf")
    told = message(trainer)
    assert told.startswith("step 1: a batch of row ") and told.count(" of epoch 0") == 16
    assert "and 4 more: icti is nan. Stopped" in told


def test_gradient_that_is_not_finite(parts):
    trainer = build(parts)
    trainer.model.text_projection.weight.register_hook(lambda gradient: gradient * float("inf"))
    assert message(trainer).startswith("step 1: the losses are finite, but their gradient is not. Stopped")
