"""Streams: each row once an epoch in every layout, mixed by weight, taken up again where they were left."""

import json
import os
import subprocess
import sys
from collections import Counter
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from datasets import Dataset, IterableDataset
from source_data import jpegs
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader
from training_runs import build, free_port, make_parts

from trainer.data.epoch_dataset import EpochDataset
from trainer.data.skipped import FILE, RowDecoder, SkipLog, count_skipped
from trainer.data.streaming import (
    MAX_SHARD_ROWS,
    StreamingDataset,
    load_stream_state,
    reader_shares,
    save_stream_state,
)

ROOT = Path(__file__).parents[3]
SIZES = (7, 3, 12, 1, 5)  # rows of five shards: they divide evenly by nothing
ROWS = sum(SIZES)
JPEG = jpegs(1)[0]


def shard_rows(shards: list[tuple[int, int]]):
    for shard, size in shards:
        yield from ({"text": f"{shard}-{row}"} for row in range(size))


def stream(sizes: tuple[int, ...] = SIZES, first: int = 0) -> IterableDataset:
    shards = list(enumerate(sizes, start=first))
    return IterableDataset.from_generator(shard_rows, gen_kwargs={"shards": shards})


def read(row: dict, index: int, flawed: frozenset[str] = frozenset()) -> dict | None:
    text = row["text"].decode()
    assert text == f"{index // MAX_SHARD_ROWS}-{index % MAX_SHARD_ROWS}"  # the index says where the row lies
    return None if text in flawed else {"text": text}


def readers(sources: list | None = None, ranks: int = 1, **options) -> list[StreamingDataset]:
    """The data of every process."""
    sources, options = sources or [stream()], {"decode": read, "buffer_size": 4} | options
    return [StreamingDataset(sources, **options, rank=rank, world_size=ranks) for rank in range(ranks)]


def batches(dataset: StreamingDataset, workers: int, kind=DataLoader, size: int = 1, **options):
    return kind(dataset, batch_size=size, num_workers=workers, collate_fn=list, **options)


# ---- shares


@pytest.mark.parametrize("shards", [1, 2, 5, 7, 12])
@pytest.mark.parametrize("slots", [1, 2, 3, 4, 8])
def test_shares_are_equal_and_together_everything(shards, slots):
    slices = Counter(
        (shard, rest) for slot in range(slots) for shard, own in reader_shares(shards, slot, slots) for rest in own
    )
    assert slices == Counter((shard, rest) for shard in range(shards) for rest in range(slots))
    assert all(sum(len(own) for _, own in reader_shares(shards, slot, slots)) == shards for slot in range(slots))


def test_shares_by_hand():
    assert reader_shares(4, 1, 2) == [(2, range(2)), (3, range(2))]  # whole shards where they divide
    assert reader_shares(1, 1, 2) == [(0, range(1, 2))]  # every other row of the only one
    assert [reader_shares(3, slot, 2) for slot in (0, 1)] == [
        [(0, range(2)), (1, range(1))],
        [(1, range(1, 2)), (2, range(2))],
    ]


# ---- epochs


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (1, 2), (3, 0), (2, 2)])
@pytest.mark.parametrize(("sizes", "buffer"), [(SIZES, 4), (SIZES, 0), ((29,), 4), ((6, 6, 6, 6), 40)])
def test_no_row_is_lost_or_seen_twice_in_an_epoch(ranks, workers, sizes, buffer):
    seen = {epoch: Counter() for epoch in range(3)}
    for dataset in readers([stream(sizes)], ranks, buffer_size=buffer):
        done = set()
        for number, (row,) in enumerate(batches(dataset, workers)):  # endless; the workers take turns
            if row["epoch"] in seen:
                seen[row["epoch"]][row["text"]] += 1
            else:
                done.add(number % max(workers, 1))
            if len(done) == max(workers, 1):
                break
    expected = Counter(row["text"] for row in shard_rows(list(enumerate(sizes))))
    assert all(counts == expected for counts in seen.values())


def texts(dataset: StreamingDataset, count: int) -> list[str]:
    return [row["text"] for row in islice(dataset, count)]


def test_order_is_drawn_anew_in_each_epoch_and_the_same_for_a_seed():
    both = texts(readers()[0], 2 * ROWS)
    assert sorted(both[:ROWS]) == sorted(both[ROWS:]) and both[:ROWS] != both[ROWS:]
    assert both == texts(readers()[0], 2 * ROWS) != texts(readers(seed=1)[0], 2 * ROWS)
    in_order = [row["text"] for row in shard_rows(list(enumerate(SIZES)))]
    assert texts(readers(buffer_size=0)[0], 2 * ROWS) == in_order * 2


def test_processes_advance_together_if_shards_are_of_one_size():
    """5 shards on 2 processes × 2 workers: after every row was given once, no row was given twice."""
    seen = Counter()
    for dataset in readers([stream((8,) * 5)], 2):
        for (row,) in islice(batches(dataset, 2), 5 * 8 // 2):
            seen[row["text"]] += 1
    assert len(seen) == 40 and set(seen.values()) == {1}


def test_batches_are_full_across_epochs():
    assert {len(rows) for rows in islice(batches(readers()[0], 0, size=8), 12)} == {8}


def test_without_weights_sources_are_one():
    dataset = readers([stream(), stream((4, 4), first=len(SIZES))])[0]
    first = texts(dataset, ROWS + 8)
    assert len(set(first)) == ROWS + 8 and {text.split("-")[0] for text in first} == set("0123456")


def test_weights_say_how_often_a_source_is_drawn():
    sources = [stream((1000,)), stream((10,), first=1)]
    rows = list(islice(readers(sources, probabilities=[3, 1])[0], 2000))
    small = [row for row in rows if row["index"] >= MAX_SHARD_ROWS]
    assert 0.22 < len(small) / len(rows) < 0.28  # 0.25 ± 3 standard deviations of 2000 draws
    for epoch in range(40):  # the small source has begun many epochs, of its own count
        assert Counter(row["text"] for row in small if row["epoch"] == epoch) == Counter(
            f"1-{row}" for row in range(10)
        )
    assert {row["epoch"] for row in rows if row["index"] < MAX_SHARD_ROWS} == {0, 1}


def test_flawed_rows_are_passed_over():
    flawed = frozenset({"0-3", "2-0", "2-11"})
    rows = texts(readers(decode=partial(read, flawed=flawed))[0], ROWS - 3)
    assert len(set(rows)) == ROWS - 3 and not flawed & set(rows)


def test_too_few_rows_for_the_readers_is_an_error():
    with pytest.raises(ValueError, match=r"4 readers .* share 1 shard.* no row for reader 3"):
        next(iter(readers([stream((3,))], ranks=4)[3]))


def test_a_shard_that_breaks_off_is_an_error(tmp_path):
    def rows(shards):
        yield {"text": "0-0"}
        raise OSError("the disk is gone")

    broken = IterableDataset.from_generator(rows, gen_kwargs={"shards": [0]})
    with pytest.raises(ValueError, match="shard 1 of 1 cannot be read from row . on: OSError: the disk is gone"):
        list(readers([broken])[0])


def mixed_rows(shards: list[int]):
    yield from ({"image": JPEG, "caption": caption} for caption in (["x"], ["y", 2], "z", [3, "w"], {"a": 1}))


def test_rows_of_several_types_end_no_shard(tmp_path):
    """Arrow has no type for a list of a text and a number, nor for a column of lists and texts."""
    source = IterableDataset.from_generator(mixed_rows, gen_kwargs={"shards": [0]})
    decoder = RowDecoder("image", "caption", SkipLog(tmp_path, "train", None, max_fraction=0.5))
    rows = islice(StreamingDataset([source], decoder, buffer_size=1), 5)
    assert [row["caption"] for row in rows] == [["x"], ["y", "2"], ["z"], ["3", "w"], ["x"]]
    assert count_skipped(tmp_path / FILE) == {"no caption": 1}


# ---- resuming


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 4, 9, 23])
def test_it_goes_on_where_it_stopped(workers, stop):
    def loader() -> StatefulDataLoader:
        options = {
            "probabilities": [2, 1],
            "buffer_size": 5,
            "decode": partial(read, flawed=frozenset({"0-3", "2-0"})),
        }
        dataset = readers([stream(), stream((6,), first=len(SIZES))], **options)[0]
        return batches(dataset, workers, StatefulDataLoader, size=3)

    expected = list(islice(loader(), 40))
    first = loader()
    before = list(islice(iter(first), stop))
    state = first.state_dict()
    second = loader()
    second.load_state_dict(state)
    assert before + list(islice(second, 40 - stop)) == expected


def test_resuming_reads_no_finished_shard_again():
    opened = []

    def rows(shards: list[int]):
        opened.extend(shards)
        yield from ({"text": f"{shards[0]}-{row}"} for row in range(50))

    source = IterableDataset.from_generator(rows, gen_kwargs={"shards": [0, 1, 2, 3, 4, 5]})
    dataset = readers([source], buffer_size=10)[0]
    last = list(islice(dataset, 222))[-1]
    assert len(opened) == 5  # of 50 rows each
    state = dataset.state_dict()
    again = readers([source], buffer_size=10)[0]
    again.load_state_dict(state)
    opened.clear()
    next(iter(again))
    assert opened == [last["index"] // MAX_SHARD_ROWS]


def test_a_new_iteration_begins_anew():
    dataset = readers()[0]
    assert texts(dataset, 11) == texts(dataset, 11)
    dataset.load_state_dict(dataset.state_dict())
    state = dataset.state_dict()
    assert texts(dataset, 3) != texts(dataset, 3) and state != dataset.state_dict()


def test_state_of_another_layout_is_refused(tmp_path):
    loader = batches(readers()[0], 0, StatefulDataLoader)
    next(iter(loader))
    one, two = (SimpleNamespace(world_size=size, dataloader_num_workers=0, process_index=0) for size in (1, 2))
    save_stream_state(loader, tmp_path, one)
    load_stream_state(loader, str(tmp_path), one)
    with pytest.raises(ValueError, match="saved with 1 process.*has 2 process.*Resume with the same"):
        load_stream_state(loader, str(tmp_path), two)


def test_it_is_not_for_rows_by_number():
    with pytest.raises(ValueError, match="StreamingDataset"):
        EpochDataset(stream())
    assert isinstance(readers()[0], torch.utils.data.IterableDataset) and not hasattr(readers()[0], "__len__")
    assert EpochDataset(Dataset.from_dict({"a": [1]}))[0]["index"] == 0


# ---- two processes

STREAMS = {"even": (8, 8, 8, 8, 8), "uneven": SIZES, "one": (40,)}


def captioned_rows(shards: list[tuple[int, int]]):
    for shard, size in shards:
        for row in range(size):
            yield {"image": JPEG, "caption": f"number {row} of {shard}"}


def captioned_stream(sizes: tuple[int, ...], rank: int, folder: str) -> StreamingDataset:
    source = IterableDataset.from_generator(captioned_rows, gen_kwargs={"shards": list(enumerate(sizes))})
    read = RowDecoder("image", "caption", SkipLog(folder, "train", rows=None))
    return StreamingDataset([source], read, buffer_size=4, rank=rank, world_size=2)


def check_epochs(both: list[dict[str, list[str]]]) -> None:
    """What two processes saw in 20 batches of 2 rows each: every row once in the first epoch; if even, in both."""
    for name, sizes in STREAMS.items():
        names = both[0][name] + both[1][name]
        assert len(both[0][name]) == len(both[1][name]) == 40  # full batches
        rows = [shard * MAX_SHARD_ROWS + row for shard, size in enumerate(sizes) for row in range(size)]
        for epoch in range(1 if name == "uneven" else 2):
            expected = Counter(f"row {row} of epoch {epoch}" for row in rows)
            assert Counter(row for row in names if row in expected) == expected


def exchange_rows(rank: int, folder: str) -> None:
    """Steps of two gloo processes that wait for each other, as those of training do."""
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", 2), rank=rank, world_size=2)
    seen = [{name: [] for name in STREAMS} for _ in range(2)]
    for name, sizes in STREAMS.items():
        loader = batches(captioned_stream(sizes, rank, folder), 2, StatefulDataLoader, size=2)
        for batch in islice(loader, 20):
            everyones = [None, None]
            dist.all_gather_object(everyones, [f"row {row['index']} of epoch {row['epoch']}" for row in batch])
            for rows, process in zip(everyones, seen, strict=True):
                process[name].extend(rows)
    Path(folder, f"seen-{rank}.json").write_text(json.dumps(seen))
    dist.destroy_process_group()


def test_two_processes_see_each_row_once_an_epoch(tmp_path):
    """5 shards, and 1, on 2 processes × 2 workers."""
    mp.start_processes(exchange_rows, args=(str(tmp_path),), nprocs=2, start_method="fork")
    check_epochs(json.loads((tmp_path / "seen-1.json").read_text()))


def train_on_streams(rank: int, parts, folder: str, port: int) -> None:
    """Writes which rows this process trained on."""
    torch.set_num_threads(1)
    launch = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in launch.items()})  # as torchrun does
    seen = {}
    for name, sizes in STREAMS.items():
        options = {"per_device_train_batch_size": 2, "dataloader_num_workers": 2, "max_steps": 20, "freeze": "all"}
        trainer = build(
            parts, captioned_stream(sizes, rank, folder), dataloader_multiprocessing_context="fork", **options
        )
        loss, rows = trainer.compute_loss, seen.setdefault(name, [])
        trainer.compute_loss = lambda model, inputs, loss=loss, rows=rows, **kwargs: (
            rows.extend(inputs["row_names"]) or loss(model, inputs, **kwargs)
        )
        trainer.train()
    Path(folder, f"seen-{rank}.json").write_text(json.dumps(seen))


@pytest.mark.slow
def test_two_processes_train_on_each_row_once_an_epoch(model, processor, clip_dir, tmp_path):
    parts = make_parts(model, processor, clip_dir, str(tmp_path))
    mp.spawn(train_on_streams, args=(parts, str(tmp_path), free_port()), nprocs=2)
    check_epochs([json.loads((tmp_path / f"seen-{rank}.json").read_text()) for rank in (0, 1)])


def test_a_spawned_worker_reads_captions_as_this_process_does():
    """It imports only the modules of the dataset that it gets. A caption that is not UTF-8 must not end its shard."""
    code = """
import trainer.data.streaming
from datasets.packaged_modules.webdataset.webdataset import WebDataset
assert WebDataset.DECODERS["txt"](b"caf\\xe9") == "caf\\ufffd"
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
