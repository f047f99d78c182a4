"""Batches of captions of similar length."""

from types import SimpleNamespace

import numpy as np
import pytest
from caption_data import load
from datasets import Dataset
from training_runs import build, make_parts, train_logs

from trainer import EpochDataset
from trainer.data.length_grouping import LengthGroupedSampler


@pytest.fixture
def parts(model, processor, clip_dir, tmp_path) -> SimpleNamespace:
    return make_parts(model, processor, clip_dir, str(tmp_path))


def batches(sampler: LengthGroupedSampler, size: int) -> list[list[int]]:
    rows = list(sampler)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def captions_of_lengths(lengths) -> EpochDataset:
    return EpochDataset(Dataset.from_dict({"caption": ["x" * length for length in lengths]}))


def test_a_batch_has_neighbors_in_length():
    """A group of 50 batches of 4 rows holds each of the lengths 1 to 200 once: a batch has 4k + 1 to 4k + 4."""
    lengths = np.random.default_rng(0).permutation(200) + 1
    found = batches(LengthGroupedSampler(captions_of_lengths(lengths), 4, seed=0, caption_seed=0), 4)
    drawn = [[int(lengths[row]) for row in batch] for batch in found]
    firsts = [min(batch) for batch in drawn]
    assert sorted(firsts) == list(range(1, 201, 4)) and firsts != sorted(firsts)
    assert all(sorted(batch) == list(range(min(batch), min(batch) + 4)) for batch in drawn)
    assert any(batch != sorted(batch) for batch in drawn)


def test_every_epoch_has_each_row_once_in_an_order_of_its_own():
    data = captions_of_lengths(range(1, 204))
    orders = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        data.start_epoch(epoch)
        sampler = LengthGroupedSampler(data, 4, seed, caption_seed=0)
        orders.append(list(sampler))
        assert sorted(orders[-1]) == list(range(203)) and len(sampler) == 203
        assert orders[-1] == list(sampler)
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_rows_that_do_not_fill_a_batch_are_last():
    lengths = [1, 1, 1, 1, 9, 9, 9, 9, 5]
    found = batches(LengthGroupedSampler(captions_of_lengths(lengths), 4, seed=3, caption_seed=0), 4)
    assert [len(batch) for batch in found] == [4, 4, 1]


def test_lengths_are_those_of_the_captions_that_the_collator_draws(parts):
    trainer = build(parts, train_sampling_strategy="group_by_length", seed=7)
    data, sampler = trainer.train_dataset, trainer._get_train_sampler()
    for epoch in (0, 1, 2):
        data.start_epoch(epoch)
        ids = trainer.data_collator([data[row] for row in range(len(data))])["caption_input_ids"]
        texts = parts.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
        assert sampler.drawn_lengths(epoch).tolist() == [len(text) for text in texts]


def test_captions_of_every_kind():
    """Texts, bytes, lists of them, missing ones, and letters of two bytes."""
    texts = Dataset.from_dict({"caption": ["four", None, "", "é"]})
    lists = Dataset.from_dict({"caption": [["four", "fifth"], [], None]})
    assert LengthGroupedSampler(EpochDataset(texts), 2, 0, 0).lengths == [(4,), (4,), (0,), (2,)]
    assert LengthGroupedSampler(EpochDataset(lists), 2, 0, 0).lengths == [(4, 5), (2,), (4,)]


def test_training_has_less_padding(parts):
    """The captions have 22 to 24 letters or 28 to 51; batches of 4 of the same rows need fewer tokens."""
    widths = {}
    for strategy in ("random", "group_by_length"):
        trainer = build(parts, load(rows=64), train_sampling_strategy=strategy, max_steps=16)
        widths[strategy] = sum(batch["labels"].shape[1] for batch in trainer.get_train_dataloader())
        trainer.train()
        assert len(train_logs(trainer)) == 16
    assert widths["group_by_length"] < widths["random"]
