"""Small training runs for the tests of the trainer: `build` makes one of `make_parts`."""

import copy
import socket
from functools import partial
from types import SimpleNamespace

import datasets
import torch
from caption_data import load
from torch import nn

from trainer import EpochDataset, VLKDTrainer, VLKDTrainingArguments
from trainer.data.streaming import StreamingDataset


def make_parts(model: nn.Module, processor, clip_dir: str, folder: str) -> SimpleNamespace:
    """What `build` needs, kept together so that a test can hand it to another process."""
    return SimpleNamespace(model=copy.deepcopy(model), processor=processor, clip=clip_dir, folder=folder)


def read_row(row: dict, index: int, reads: list[int]) -> dict:
    """A row of the stream as the collator takes it."""
    reads.append(index)
    return {
        "row_name": row["row_name"],
        "image": datasets.Image().decode_example(row["image"]),
        "caption": [text.decode() for text in row["caption"]],
    }


def counted_stream(rank: int = 0, world_size: int = 1) -> StreamingDataset:
    """Three shards of 6, 7 and 8 rows, shuffled in a buffer; remembers which rows were read out of their bytes."""
    parts = [load(rows=rows).cast_column("image", datasets.Image(decode=False)) for rows in (6, 7, 8)]
    source = datasets.concatenate_datasets(parts).to_iterable_dataset(num_shards=3)
    reads = []
    dataset = StreamingDataset(
        [source], partial(read_row, reads=reads), buffer_size=4, rank=rank, world_size=world_size
    )
    dataset.reads = reads
    return dataset


def build(
    parts: SimpleNamespace, dataset=None, model: nn.Module | None = None, dropout: float = 0.0, **options
) -> VLKDTrainer:
    """A trainer of few steps, without dropout and ITDD unless asked for: only what a test changes makes a difference.

    The teacher runs live: the feature cache rounds to float16.
    """
    defaults = {
        "clip": parts.clip,
        "itdd_weight": 0.0,
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 8,
        "learning_rate": 1e-3,
        "projector_learning_rate": options.get("learning_rate", 1e-3),
        "projector_optimizer": "adamw",
        "weight_decay": 0.0,
        "warmup_steps": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "lr_scheduler_type": "constant",
        "max_text_length": 60,
        "bf16": False,
    }
    args = VLKDTrainingArguments(parts.folder, use_cpu=True, disable_tqdm=True, **(defaults | options))
    model = copy.deepcopy(parts.model) if model is None else model
    for module in model.modules():
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = dropout
    dataset = load() if dataset is None else dataset
    dataset = EpochDataset(dataset) if isinstance(dataset, datasets.Dataset) else dataset
    return VLKDTrainer(model, args, train_dataset=dataset, eval_dataset=dataset, processing_class=parts.processor)


def parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def train_logs(trainer: VLKDTrainer) -> list[dict]:
    return [log for log in trainer.state.log_history if "loss" in log]


def one_step(parts, dataset=None, **options) -> tuple[dict, dict]:
    """The gradient (by a step of plain SGD) and the logged terms of one step of 8 rows in order."""
    settings = {"optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 1.0, "train_sampling_strategy": "sequential"}
    trainer = build(parts, dataset, max_steps=1, **settings, **options)
    before = parameters(trainer.model)
    trainer.train()
    after = parameters(trainer.model)
    return {name: before[name] - after[name] for name in before}, train_logs(trainer)[0]


def assert_same_gradients(actual: dict, expected: dict) -> None:
    for name in expected:
        torch.testing.assert_close(
            actual[name], expected[name], rtol=1e-3, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]
