"""A resumable stream of rows from shards, split exactly over processes and workers."""

import copy
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import fsspec.asyn
import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import TrainingArguments

from trainer.data.infilling import BUFFER, SHARDS, SOURCES, seeded_rng
from trainer.data.rows import DataError, iterate_rows

MAX_SHARD_ROWS = 1 << 32  # a row's index is MAX_SHARD_ROWS * shard + row


class StreamingDataset(IterableDataset):
    """An endless stream of rows. An epoch of a source is each of its rows once, over all processes and workers.

    Each reader (a worker of a process) reads an equal share of the epoch: the shards are concatenated in random order
    and cut into one piece per reader, inside a shard if necessary (see `reader_shares`). A reader that finishes its
    share starts the next epoch, so every batch is full and no process runs out early.

    A row has a stable number, `index`, and the `epoch` of its source. `state_dict` is the position after the last
    yielded row. It contains no rows: those of the shuffle buffer are read again on resuming.

    Do not pass it to `accelerate.prepare`, which would split it again.

    Args:
        sources: streams with the same columns; strings and images undecoded.
        decode: called with a row and its `index`; returns the row to use, or None to skip an invalid one.
        probabilities: the probability of each source; if None, the sources are concatenated.
        seed: seed of every random draw.
        buffer_size: number of rows that each worker shuffles at once; 1 or less keeps the files' order.
        rank: number of this process.
        world_size: number of processes.

    Raises:
        ValueError: while iterating: a shard cannot be read, or has no row for this reader.
    """

    def __init__(
        self,
        sources: list[datasets.IterableDataset],
        decode: Callable[[dict[str, Any], int], dict[str, Any] | None],
        probabilities: list[float] | None = None,
        seed: int = 0,
        buffer_size: int = 1000,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.shards = [(source, number) for source in sources for number in range(source.num_shards)]
        ends = np.cumsum([source.num_shards for source in sources]).tolist()
        # Ranges of `shards` with separate epochs.
        self.groups = list(zip([0, *ends[:-1]], ends, strict=True)) if probabilities else [(0, ends[-1])]
        self.probabilities = np.array(probabilities or [1.0]) / sum(probabilities or [1.0])
        self.decode = decode
        self.seed = seed
        self.buffer_size = max(buffer_size, 1)
        self.rank = rank
        self.world_size = world_size
        self._state: dict[str, Any] = {}  # of the current iteration
        self._loaded: dict[str, Any] | None = None  # for the next iteration

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        workers, worker = (info.num_workers, info.id) if info else (1, 0)
        if info:
            fsspec.asyn.reset_lock()  # a forked worker must not wait for the event loop of its parent
        reader = [self.rank * workers + worker, self.world_size * workers]
        start = {"epoch": 0, "shard": 0, "row": 0, "yielded": 0}
        self._state = self._loaded or {"reader": reader, "draws": 0, "groups": [dict(start) for _ in self.groups]}
        self._loaded = None
        return self._mixed_rows(self._state)

    def state_dict(self) -> dict[str, Any]:
        """The position after the last yielded row, as numbers."""
        return copy.deepcopy(self._loaded or self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration continue at `state`."""
        self._loaded = copy.deepcopy(state)

    def _mixed_rows(self, state: dict[str, Any]) -> Iterator[dict[str, Any]]:
        reader, readers = state["reader"]
        rows = [self._group_rows(number, group, reader, readers) for number, group in enumerate(state["groups"])]
        while True:
            group = 0
            if len(rows) > 1:
                rng = seeded_rng(self.seed, SOURCES, reader, state["draws"])
                group = int(rng.choice(len(rows), p=self.probabilities))
                state["draws"] += 1
            yield next(rows[group])

    def _group_rows(self, group: int, state: dict[str, int], reader: int, readers: int) -> Iterator[dict[str, Any]]:
        """This reader's rows of one group, epoch after epoch; `state` is the position after the yielded row."""
        while True:
            epoch, position = state["epoch"], (state["shard"], state["row"])
            rows = self._share_of_epoch(group, epoch, reader, readers, position)
            is_empty = position == (0, 0)
            while block := list(islice(rows, self.buffer_size)):
                is_empty = False
                (position, first_index, _), ((last_shard, last_row), _, _) = block[0], block[-1]
                order = np.arange(len(block))
                if self.buffer_size > 1:
                    order = seeded_rng(self.seed, BUFFER, epoch, first_index).permutation(len(block))
                state["shard"], state["row"] = position
                for number in range(state["yielded"], len(block)):
                    _, index, row = block[order[number]]
                    row = self.decode({"row_name": self._row_name(index), **row}, index)
                    state["yielded"] = number + 1
                    if row is not None:
                        yield {**row, "index": index, "epoch": epoch}
                state.update(shard=last_shard, row=last_row + 1, yielded=0)
            if is_empty:
                start, end = self.groups[group]
                raise DataError(
                    f"{readers} readers (processes × dataloader_num_workers) share {end - start} shard(s), which have "
                    f"no row for reader {reader}; use fewer workers or processes, or more rows."
                )
            state.update(epoch=epoch + 1, shard=0, row=0, yielded=0)

    def _share_of_epoch(
        self, group: int, epoch: int, reader: int, readers: int, start: tuple[int, int]
    ) -> Iterator[tuple[tuple[int, int], int, dict[str, Any]]]:
        """The rows of this reader's share of an epoch from `start` on, with their positions and indices.

        A position is the number of the shard among this reader's shards, and the row's number inside it.
        """
        shards = np.arange(*self.groups[group])
        if self.buffer_size > 1:
            seeded_rng(self.seed, SHARDS, epoch, group).shuffle(shards)
        for number, (place, own_rows) in enumerate(reader_shares(len(shards), reader, readers)):
            if number < start[0]:
                continue
            shard, first = int(shards[place]), start[1] if number == start[0] else 0
            for row, values in enumerate(read_shard(*self.shards[shard], first), start=first):
                if row % readers in own_rows:
                    yield (number, row), shard * MAX_SHARD_ROWS + row, values

    def _row_name(self, index: int) -> str:
        """The row's shard and its number in it."""
        shard, row = divmod(index, MAX_SHARD_ROWS)
        return f"shard {self.shards[shard][1] + 1}, row {row}"


def read_shard(source: datasets.IterableDataset, number: int, first: int = 0) -> Iterator[dict[str, Any]]:
    """The rows of one shard of a stream from row `first` on; strings as in `as_rows`.

    Raises:
        DataError: the shard cannot be read.
    """
    row = first
    try:
        for values in iterate_rows(source.shard(num_shards=source.num_shards, index=number), first):
            yield values
            row += 1
    except Exception as error:  # each file format has its own
        raise DataError(
            f"shard {number + 1} of {source.num_shards} cannot be read from row {row} on: "
            f"{type(error).__name__}: {' '.join(str(error).split())}"
        ) from error


def reader_shares(shards: int, reader: int, readers: int) -> list[tuple[int, range]]:
    """The shards of a reader, each with a range: the reader takes the rows whose number % `readers` is in the range.

    Each shard is cut into `readers` slices, and each reader gets `shards` consecutive slices. If all shards have the
    same number of rows, so do all shares.
    """
    first, last = reader * shards, (reader + 1) * shards
    places = range(first // readers, -(-last // readers))
    return [(place, range(max(first - place * readers, 0), min(last - place * readers, readers))) for place in places]


def stream_loader(
    dataset: StreamingDataset, collator: Callable, args: TrainingArguments, batch_size: int
) -> StatefulDataLoader:
    """A data loader whose state counts the rows that were used, not those that workers have prefetched."""
    return StatefulDataLoader(
        dataset,
        batch_size=batch_size,
        collate_fn=collator,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
        persistent_workers=args.dataloader_persistent_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
        multiprocessing_context=args.dataloader_multiprocessing_context,
        generator=torch.Generator(),  # separate, so that workers' seeds do not change dropout
    )


def save_stream_state(loader: StatefulDataLoader, checkpoint: Path, args: TrainingArguments) -> None:
    torch.save({"layout": _layout(args), "loader": loader.state_dict()}, _state_file(checkpoint, args))


def load_stream_state(loader: StatefulDataLoader, checkpoint: str, args: TrainingArguments) -> None:
    """Load the state that `save_stream_state` wrote.

    Raises:
        ValueError: there is none, or it is of another number of processes or workers.
    """
    file = _state_file(Path(checkpoint), args)
    if not file.is_file():
        raise ValueError(
            f"resume_from_checkpoint: '{checkpoint}' has no {file.name}, the stream state of process "
            f"{args.process_index}; resume with streaming: true and as many processes as it was saved with."
        )
    state = torch.load(file, weights_only=True)
    if state["layout"] != _layout(args):
        raise ValueError(
            f"resume_from_checkpoint: '{checkpoint}' was saved with {state['layout']}; this run has {_layout(args)}. "
            "Resume with the same numbers."
        )
    loader.load_state_dict(state["loader"])


def _layout(args: TrainingArguments) -> str:
    return f"{args.world_size} process(es) with dataloader_num_workers={args.dataloader_num_workers} each"


def _state_file(checkpoint: Path, args: TrainingArguments) -> Path:
    return checkpoint / f"stream_{args.process_index}.pt"
