"""Batches of a stream, and their place in it, which is part of a checkpoint."""

from collections.abc import Callable
from pathlib import Path

import torch
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import TrainingArguments

from trainer.streaming import StreamingDataset


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
