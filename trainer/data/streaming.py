"""Rows from shards, split over processes and workers to the row, and resumable."""

import copy
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import fsspec.asyn
import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import IterableDataset, get_worker_info
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import TrainingArguments

from trainer.data.infilling import seeded_rng
from trainer.data.rows import DataError, as_rows

SHARDS, BUFFER, SOURCES = 2, 3, 4  # random streams: order of shards, order within the buffer, which source is next
READ = 16  # rows that are read at once
PLACES = 1 << 32  # more rows than a shard has


class Place(NamedTuple):
    """Where a row lies: the how-manieth of this reader's shards, and the row's number in it."""

    part: int
    row: int


class StreamingDataset(IterableDataset):
    """Endless rows: an epoch of a source is each of its rows exactly once, in all processes and workers together.

    A row has a stable number, `index`, made of its shard's and its own there, and the `epoch` of its source. Split as
    `datasets` splits a stream, some workers would get more shards than others and begin the next epoch sooner; here
    the shards of an epoch, in an order drawn anew, are laid end to end and cut into equal shares, if need be within a
    shard (see `shares`). As no epoch ends for the loader, every batch is full, and no process waits in vain for
    another that has run out.

    `state_dict` is the place after the row last given, for a reader of the same number in the same layout. It holds no
    rows: those of the shuffle buffer are read again, which the buffer of `datasets` would lose.

    Do not hand it to `accelerate.prepare`, which would split it a second time.

    Args:
        sources: streams with the same columns; strings and images as they lie in the files.
        read: makes a row of the columns' values, or None of a flawed one, which is passed over; it is given the row
            and its `index`.
        weights: how often a row of each source is drawn; if None, the sources are one after the other one source.
        seed: of every draw.
        buffer: rows that are shuffled together, each worker; 1 or less keeps the files' order.
        rank, world_size: of this process.

    Raises:
        ValueError: while iterating: a shard cannot be read, or has no row for this reader.
    """

    def __init__(
        self,
        sources: list[datasets.IterableDataset],
        read: Callable[[dict[str, Any], int], dict[str, Any] | None],
        weights: list[float] | None = None,
        seed: int = 0,
        buffer: int = 1000,
        rank: int = 0,
        world_size: int = 1,
    ):
        shards = [[(source, number) for number in range(source.num_shards)] for source in sources]
        self.shards = [shard for group in shards for shard in group]  # its place here is the shard's number
        ends = np.cumsum([len(group) for group in shards]).tolist()
        starts = [0, *ends[:-1]]
        self.groups = list(zip(starts, ends, strict=True)) if weights else [(0, ends[-1])]
        self.weights = np.array(weights or [1.0]) / sum(weights or [1.0])
        self.read = read
        self.seed = seed
        self.buffer = max(buffer, 1)
        self.rank = rank
        self.world_size = world_size
        self._state: dict[str, Any] = {}  # of the iteration that runs
        self._loaded: dict[str, Any] = {}  # for the next one

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        workers, worker = (info.num_workers, info.id) if info else (1, 0)
        if info:
            fsspec.asyn.reset_lock()  # a forked worker must not wait for the event loop of the process it came from
        slot = [self.rank * workers + worker, self.world_size * workers]
        if self._loaded and self._loaded["slot"] != slot:
            raise DataError(
                f"the state of reader {self._loaded['slot']} (number, count) cannot be taken up by reader {slot}; "
                "resume with as many processes and dataloader_num_workers as the checkpoint was saved with."
            )
        start = {"epoch": 0, "part": 0, "row": 0, "given": 0}
        self._state = self._loaded or {"slot": slot, "drawn": 0, "groups": [dict(start) for _ in self.groups]}
        self._loaded = None
        return self._mixed_rows(self._state)

    def state_dict(self) -> dict[str, Any]:
        """The place after the row last given, in numbers."""
        return copy.deepcopy(self._loaded or self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next iteration goes on where `state_dict` was asked for `state`."""
        self._loaded = copy.deepcopy(state)

    def _mixed_rows(self, state: dict[str, Any]) -> Iterator[dict[str, Any]]:
        slot, slots = state["slot"]
        rows = [self._rows(number, group, slot, slots) for number, group in enumerate(state["groups"])]
        while True:
            group = 0
            if len(rows) > 1:
                group = int(seeded_rng(self.seed, SOURCES, slot, state["drawn"]).choice(len(rows), p=self.weights))
                state["drawn"] += 1
            yield next(rows[group])

    def _rows(self, number: int, state: dict[str, int], slot: int, slots: int) -> Iterator[dict[str, Any]]:
        """This reader's rows of one group, epoch after epoch; `state` is kept at the row after the one given."""
        while True:
            epoch, found = state["epoch"], state["part"] > 0 or state["row"] > 0
            places = self._places(number, epoch, slot, slots, Place(state["part"], state["row"]))
            while block := list(islice(places, self.buffer)):
                found = True
                (place, first, _), (last, _, _) = block[0], block[-1]
                order = np.arange(len(block))
                if self.buffer > 1:
                    order = seeded_rng(self.seed, BUFFER, epoch, first).permutation(len(block))
                state["part"], state["row"] = place
                for turn in range(state["given"], len(block)):
                    _, index, values = block[order[turn]]
                    row = self.read({"row_name": self._name(index), **values}, index)
                    state["given"] = turn + 1
                    if row is not None:
                        yield {**row, "index": index, "epoch": epoch}
                state.update(part=last.part, row=last.row + 1, given=0)
            if not found:
                raise DataError(
                    f"{slots} readers (processes × dataloader_num_workers) share {self._count(number)} shard(s), and "
                    f"for number {slot} there was no row; take fewer workers or processes, or more rows."
                )
            state.update(epoch=epoch + 1, part=0, row=0, given=0)

    def _name(self, index: int) -> str:
        """A row's shard and its number there, as in the error of a shard that cannot be read."""
        shard, row = divmod(index, PLACES)
        return f"shard {self.shards[shard][1] + 1}, row {row}"

    def _count(self, number: int) -> int:
        start, end = self.groups[number]
        return end - start

    def _places(
        self, number: int, epoch: int, slot: int, slots: int, start: Place
    ) -> Iterator[tuple[Place, int, dict[str, Any]]]:
        """The rows of this reader's share of an epoch from `start` on, with their places and indices."""
        order = np.arange(*self.groups[number])
        if self.buffer > 1:
            seeded_rng(self.seed, SHARDS, epoch, number).shuffle(order)
        for part, (place, own) in enumerate(shares(len(order), slot, slots)):
            if part < start.part:
                continue
            shard = int(order[place])
            first = start.row if part == start.part else 0
            for row, values in enumerate(self._read_shard(shard, first), start=first):
                if row % slots in own:
                    yield Place(part, row), shard * PLACES + row, values

    def _read_shard(self, shard: int, row: int) -> Iterator[dict[str, Any]]:
        source, number = self.shards[shard]
        single = source.shard(num_shards=source.num_shards, index=number)
        for size in (READ, 1):  # one at a time where READ rows make no table: one of a tar file may have no caption
            try:
                # `iter` takes no notice of the workers, as iter(stream) would.
                for table in single.skip(row).with_format("arrow").iter(batch_size=size):
                    for values in as_rows(table):
                        yield values
                        row += 1
                return
            except Exception as error:  # each kind of file has its own
                if size == 1 or not isinstance(error, pa.ArrowInvalid):
                    raise DataError(
                        f"shard {number + 1} of {source.num_shards} cannot be read from row {row} on: "
                        f"{type(error).__name__}: {' '.join(str(error).split())}"
                    ) from error


def shares(shards: int, slot: int, slots: int) -> list[tuple[int, range]]:
    """Which shards reader `slot` of `slots` reads, and which rows of each: those whose number modulo `slots`
    lies in the range.

    So each shard is cut into `slots` slices, and each reader has `shards` slices that follow each other: one shard in
    whole or in part after the other. All shares are equal if all shards are.
    """
    first, last = slot * shards, (slot + 1) * shards
    parts = range(first // slots, -(-last // slots))
    return [(part, range(max(first - part * slots, 0), min(last - part * slots, slots))) for part in parts]


def stream_loader(
    dataset: StreamingDataset, collator: Callable, args: TrainingArguments, batch_size: int
) -> StatefulDataLoader:
    """A loader that knows how far each worker's rows have been used, whatever it has read ahead."""
    return StatefulDataLoader(
        dataset,
        batch_size=batch_size,
        collate_fn=collator,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
        persistent_workers=args.dataloader_persistent_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
        multiprocessing_context=args.dataloader_multiprocessing_context,
        generator=torch.Generator(),  # its own: workers' seeds must not move the stream that dropout draws from
    )


def save_place(loader: StatefulDataLoader, checkpoint: Path, args: TrainingArguments) -> None:
    torch.save({"layout": _layout(args), "loader": loader.state_dict()}, _file(checkpoint, args))


def load_place(loader: StatefulDataLoader, checkpoint: str, args: TrainingArguments) -> None:
    """
    Raises:
        ValueError: the checkpoint holds no place in a stream, or that of another number of processes or workers.
    """
    file = _file(Path(checkpoint), args)
    if not file.is_file():
        raise ValueError(
            f"resume_from_checkpoint: '{checkpoint}' has no {file.name}, the place of process {args.process_index} in "
            "the stream; resume with streaming: true and as many processes as it was saved with."
        )
    place = torch.load(file, weights_only=True)
    if place["layout"] != _layout(args):
        raise ValueError(
            f"resume_from_checkpoint: '{checkpoint}' is of a stream split over {_describe(place['layout'])}; this run "
            f"has {_describe(_layout(args))}. Resume with as many as it was saved with."
        )
    loader.load_state_dict(place["loader"])


def _layout(args: TrainingArguments) -> list[int]:
    return [args.world_size, args.dataloader_num_workers]


def _describe(layout: list[int]) -> str:
    return "{} process(es) with dataloader_num_workers={} each".format(*layout)


def _file(checkpoint: Path, args: TrainingArguments) -> Path:
    return checkpoint / f"stream_{args.process_index}.pt"
