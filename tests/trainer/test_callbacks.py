"""A loss or gradient that is not finite stops the run before the optimizer's step, and says which rows it was."""

from functools import partial
from types import SimpleNamespace

import datasets
import pytest
import torch
from caption_data import load
from training_runs import build, make_parts, parameters, read_row
from transformers import TrainerCallback

from trainer import EpochDataset, VLKDTrainer
from trainer.cache.invalid_rows import InvalidRows
from trainer.callbacks import FiniteCheck
from trainer.checkpoints import complete_checkpoints
from trainer.data.skipped import RowDecoder, SkipLog
from trainer.data.streaming import StreamingDataset


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
    expected = (
        "step 3: itcl is nan and icti is nan because of row 9 of epoch 0, row 11 of epoch 0. Training stopped. Check"
    )
    assert told.startswith(expected)
    *_, last = complete_checkpoints(parts.folder)
    assert last.endswith("checkpoint-2")
    before = parameters(trainer.model)
    trainer._load_from_checkpoint(last)
    assert all(torch.equal(value, before[name]) for name, value in parameters(trainer.model).items())


@pytest.mark.parametrize("saved", [False, True])
def test_a_result_that_is_read_later_changes_no_weights(parts, monkeypatch, saved):
    """As on a GPU: step 3 gets gradients of 0, and its result is read in step 4, or before it is saved."""
    monkeypatch.setattr(FiniteCheck, "is_deferred", lambda self, wrong: True)
    kept, options = {}, {"weight_decay": 0, "projector_optimizer": "adamw", "optim": "sgd", "max_grad_norm": 1.0}
    options |= {"save_strategy": "steps", "save_steps": 3} if saved else {}
    trainer = spoilt(parts, "pixel_values", float("nan"), {9}, **options)
    started = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            started.append(state.global_step + 1)
            if state.global_step == 2:
                kept.update(parameters(trainer.model))

    trainer.add_callback(Watch())
    assert message(trainer).startswith("step 3: itcl is nan and icti is nan because of row 9 of epoch 0.")
    assert started[-1] == (3 if saved else 4) and not complete_checkpoints(parts.folder)
    assert kept and all(torch.equal(value, kept[name]) for name, value in parameters(trainer.model).items())


def test_the_last_step_is_read_too(parts, monkeypatch):
    monkeypatch.setattr(FiniteCheck, "is_deferred", lambda self, wrong: True)
    told = message(spoilt(parts, "pixel_values", float("nan"), {37}))
    assert told.startswith("step 10: itcl is nan and icti is nan because of row 37 of")


def test_in_accumulated_batches_and_chunks(parts):
    options = {"gradient_accumulation_steps": 2, "contrastive_chunk_size": 3}
    told = message(spoilt(parts, "pixel_values", float("nan"), {13}, **options))
    assert told.startswith("step 2: itcl is") and " because of row 13 of epoch 0." in told


def nan_in_every_batch(trainer: VLKDTrainer) -> None:
    """The first row of each batch is spoilt, whatever its number."""
    collate = trainer.data_collator

    def spoil(examples: list[dict]) -> dict:
        batch = collate(examples)
        batch["pixel_values"][0].view(-1)[0] = float("nan")
        return batch

    trainer.data_collator = spoil


def test_replaced_row_is_named_by_its_own_number(parts, tmp_path):
    """Row 0 is flawed; the row that takes its place is to blame."""
    data = load(rows=40)
    data = data.map(lambda row, number: {"caption": [""] if number == 0 else row["caption"]}, with_indices=True)
    rows = EpochDataset(data, decode=RowDecoder("image", "caption", SkipLog(tmp_path, "train", 40, max_fraction=0.5)))
    other = next(
        number
        for number in range(40)
        if rows[0]["caption"] == data[number]["caption"] and same_image(rows[0], data[number])
    )
    trainer = build(parts, rows, max_steps=1, train_sampling_strategy="sequential")
    nan_in_every_batch(trainer)
    assert f" because of row {other} of epoch 0. " in message(trainer)


def same_image(row: dict, other: dict) -> bool:
    return row["image"].tobytes() == other["image"].convert("RGB").tobytes()


def test_row_of_filtered_data_is_named_by_its_own_number(parts, tmp_path):
    """Rows 0 and 1 were dropped before training; what is row 0 now was row 2, as in skipped.jsonl."""
    data = load(rows=40)
    data = data.map(lambda row, number: {"caption": [""] if number < 2 else row["caption"]}, with_indices=True)
    read = RowDecoder("image", "caption", SkipLog(tmp_path, "train", 40, max_fraction=0.5))
    data = data.cast_column("image", datasets.Image(decode=False))
    rows = EpochDataset(InvalidRows(read, ["caption"], str(tmp_path)).drop_from(data), decode=read)
    trainer = build(parts, rows, max_steps=1, train_sampling_strategy="sequential")
    nan_in_every_batch(trainer)
    assert " because of row 2 of epoch 0. " in message(trainer)


def test_row_of_a_stream_is_named_by_shard_and_row(parts):
    """Three shards of 7 rows, in the files' order: the fourth batch of two begins with row 6 of the first shard."""
    source = load(rows=21).cast_column("image", datasets.Image(decode=False)).to_iterable_dataset(num_shards=3)
    stream = StreamingDataset([source], partial(read_row, reads=[]), buffer_size=0)
    trainer = build(parts, stream, max_steps=6, per_device_train_batch_size=4)
    collate = trainer.data_collator

    def spoil(examples: list[dict]) -> dict:
        batch = collate(examples)
        for place, example in enumerate(examples):
            if example["index"] == (1 << 32) + 3:  # as it seeds the draws
                batch["pixel_values"][place].view(-1)[0] = float("nan")
        return batch

    trainer.data_collator = spoil
    assert " because of shard 2, row 3 of epoch 0. " in message(trainer)


def test_image_file_names_the_row(parts, tmp_path, images):
    images[0].save(tmp_path / "dog.png")
    data = datasets.Dataset.from_dict({"image": [str(tmp_path / "dog.png")] * 4, "caption": ["a dog"] * 4})
    rows = EpochDataset(data, decode=RowDecoder("image", "caption", SkipLog(tmp_path, "train", 4)))
    trainer = build(parts, rows, max_steps=1)
    nan_in_every_batch(trainer)
    assert f" because of {tmp_path}/dog.png of epoch 0. " in message(trainer)


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
    assert told.startswith("step 1: icti is nan in a batch of row ") and told.count(" of epoch 0") == 16
    assert " and 4 more. Training stopped" in told


def test_gradient_that_is_not_finite(parts):
    trainer = build(parts)
    trainer.model.text_projection.weight.register_hook(lambda gradient: gradient * float("inf"))
    assert message(trainer).startswith("step 1: the losses are finite, but their gradient is not. Training stopped")


def test_the_last_step_of_an_epoch_is_read_before_it_is_saved(parts, monkeypatch):
    monkeypatch.setattr(FiniteCheck, "is_deferred", lambda self, wrong: True)
    trainer = spoilt(parts, "pixel_values", float("nan"), {37}, save_strategy="epoch")
    assert message(trainer).startswith("step 10: itcl is nan and icti is nan because of row 37 of")
    assert not complete_checkpoints(parts.folder)
