"""A contrastive batch in chunks: value, gradient, dropout and memory."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from caption_data import load
from training_runs import build, make_parts, one_step

from trainer import EpochDataset, VLKDTrainer
from trainer.grad_cache import draw_seeds, seeded, split
from trainer.losses import icti, itcl, ttdm

TERMS = ("loss", "ttdm", "itcl", "icti")
ROWS = 10


@pytest.fixture
def parts(model, processor, clip_dir, tmp_path) -> SimpleNamespace:
    return make_parts(model, processor, clip_dir, str(tmp_path))


def step(parts: SimpleNamespace, **options) -> tuple[torch.Tensor, dict[str, torch.Tensor], VLKDTrainer]:
    """Loss and gradients of one batch of ten rows."""
    trainer = build(parts, **options)
    trainer.current_gradient_accumulation_steps = 1
    data = EpochDataset(load(rows=ROWS))
    batch = trainer.data_collator([data[index] for index in range(ROWS)])
    (batch,), labels = trainer.get_batch_samples(iter([batch]), 1, trainer.args.device)
    torch.manual_seed(3)
    loss = trainer.training_step(trainer.model, batch, labels)
    named = trainer.model.named_parameters()
    return loss, {name: parameter.grad for name, parameter in named if parameter.grad is not None}, trainer


def assert_same(actual: dict, expected: dict, relative: float) -> None:
    assert actual.keys() == expected.keys()
    largest = max(gradient.norm() for gradient in expected.values())
    for name, gradient in expected.items():
        if gradient.norm() > 1e-5 * largest:  # a key's bias has no effect: its gradient is rounding
            assert (actual[name] - gradient).norm() < relative * gradient.norm(), name


ONLY_ITDD = {"icti_weight": 0.0, "itcl_weight": 0.0, "ttdm_weight": 0.0, "itdd_weight": 3.0}  # of the first chunks


@pytest.mark.parametrize("chunk", [1, 4, 9])
@pytest.mark.parametrize(
    "options", [{}, {"icti_weight": 0.0}, {"itcl_weight": 0.0, "ttdm_weight": 0.0}, {"itdd_weight": 3.0}, ONLY_ITDD]
)
def test_value_and_gradient_are_those_of_the_whole_batch(parts, chunk, options):
    """Whatever number of rows is left for the last chunk, and whichever losses are on."""
    loss, gradients, _ = step(parts, **options)
    chunked_loss, chunked_gradients, _ = step(parts, contrastive_chunk_size=chunk, **options)
    assert chunked_loss.item() == pytest.approx(loss.item(), rel=1e-6)
    assert_same(chunked_gradients, gradients, 2e-6)


def test_dropout_of_the_second_run_is_that_of_the_first(parts):
    """The reference keeps the graphs of all chunks, with the same masks, and goes back once."""
    loss, gradients, trainer = step(parts, contrastive_chunk_size=4, dropout=0.5)
    model, data = trainer.model, EpochDataset(load(rows=ROWS))
    model.zero_grad()
    batch = trainer.data_collator([data[index] for index in range(ROWS)])
    torch.manual_seed(3)
    batch.pop("row_names")
    teacher = trainer._teacher_embeds(batch)
    labels = batch.pop("labels")
    outputs = []
    for chunk, seed in zip(split({**batch, "labels": labels}, 4), draw_seeds(3), strict=True):
        del chunk["labels"]
        with seeded(seed, torch.device("cpu")):
            outputs.append(model(**chunk, use_cache=False))
    names = ("text_embeds", "image_embeds", "logits")
    text, image, logits = (torch.cat([output[name] for output in outputs]) for name in names)
    expected = ttdm(text, teacher) + itcl(text, image, model.logit_scale)
    expected = expected + icti(logits, labels)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    named = model.named_parameters()
    assert_same(gradients, {name: parameter.grad for name, parameter in named if parameter.grad is not None}, 2e-6)
    assert loss.item() != pytest.approx(step(parts, contrastive_chunk_size=4)[0].item(), rel=1e-3)


def test_dropout_masks_differ_between_chunks_and_steps():
    masks = []
    for seed in (*draw_seeds(2), *draw_seeds(2)):
        with seeded(seed, torch.device("cpu")):
            masks.append(torch.rand(8))
    assert len({tuple(mask.tolist()) for mask in masks}) == 4


def test_accumulated_in_bf16(parts):
    options = {"per_device_train_batch_size": 5, "gradient_accumulation_steps": 2, "bf16": True}
    gradients, log = one_step(parts, load(rows=ROWS), **options)
    chunked, chunked_log = one_step(parts, load(rows=ROWS), contrastive_chunk_size=2, **options)
    for term in TERMS:
        assert chunked_log[term] == pytest.approx(log[term], rel=1e-3)
    one, other = (torch.cat([gradient.flatten() for gradient in step.values()]) for step in (gradients, chunked))
    assert torch.nn.functional.cosine_similarity(one, other, dim=0) > 0.999


def test_bad_chunk_size(parts):
    with pytest.raises(ValueError, match="contrastive_chunk_size is 0"):
        build(parts, contrastive_chunk_size=0)


@pytest.mark.slow
def test_memory_of_a_large_batch_is_that_of_a_chunk():
    """Sixteen times the rows; beside a chunk's activations only ITCL's matrix of 4,096² and the embeddings."""
    script = Path(__file__).parents[2] / "benchmarks" / "contrastive_batch.py"
    in_process = runpy.run_path(str(script))["in_process"]
    small, chunked = in_process(256, None), in_process(4096, 256)
    print(small, chunked)
    assert chunked["megabytes"] < 2 * small["megabytes"]
