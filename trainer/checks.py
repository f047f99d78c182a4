"""What `VLKDTrainer` checks before it starts: its arguments and its datasets."""

from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset

from trainer.arguments import VLKDTrainingArguments
from trainer.data.collator import check_collator
from trainer.data.epoch_dataset import EpochDataset
from trainer.data.streaming import StreamingDataset


def check_trainer_arguments(
    model: Any,
    args: VLKDTrainingArguments,
    train_dataset: Any,
    processing_class: Any,
    collator: Callable | None,
    teacher: Any,
    others: dict[str, Any],
) -> None:
    """Raise a ValueError if arguments of `VLKDTrainer` are unsuitable, contradict each other, or have no effect."""
    if not isinstance(args, VLKDTrainingArguments):
        raise ValueError(f"args is a {type(args).__name__}; pass VLKDTrainingArguments, which has the same options.")
    if not hasattr(model, "freeze_language_model"):
        raise ValueError(
            f"model is a {type(model).__name__}, but VLKDTrainer trains the model that also generates: load it with "
            "VLKDForConditionalGeneration.from_pretrained or from_vision_text_pretrained."
        )
    if collator is not None:
        check_collator(collator, args)
    elif not hasattr(processing_class, "image_processor"):
        given = "not set" if processing_class is None else f"a {type(processing_class).__name__}"
        raise ValueError(
            f"processing_class is {given}; pass a VLKDProcessor, which prepares images too: "
            "VLKDProcessor.from_pretrained(...), or from_vision_text_pretrained(clip, bart)."
        )
    if teacher is not None and not (isinstance(teacher, tuple) and len(teacher) == 2):
        raise ValueError(
            f"teacher is a {type(teacher).__name__}; pass (CLIPTextModelWithProjection, tokenizer), or set args.clip "
            "to the name of a checkpoint."
        )
    if isinstance(train_dataset, dict):
        raise ValueError(
            f"train_dataset holds the splits {', '.join(train_dataset)}; pass one of them, such as "
            f"dataset[{next(iter(train_dataset), 'train')!r}]."
        )
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs are visible, but one process trains on one GPU. Start one process per GPU with "
            f"`torchrun --nproc_per_node {args.n_gpu} ...`, or set CUDA_VISIBLE_DEVICES=0."
        )
    if args.world_size > 1 and not args.accelerator_config.even_batches:
        raise ValueError(
            "accelerator_config: ITCL compares the rows of all processes, which even_batches=False can leave with "
            "different numbers of batches. Leave even_batches on."
        )
    if others.get("compute_loss_func") is not None:
        raise ValueError("compute_loss_func has no effect; override VLKDTrainer.compute_loss instead.")
    if others.get("model_init") is not None:
        raise ValueError("model_init is not supported, since args would not be applied to its models; pass model.")
    for name in ("projector_learning_rate", "projector_optimizer"):
        changed = getattr(args, name) != getattr(VLKDTrainingArguments, name)  # the class holds the default
        if changed and others.get("optimizers", (None, None))[0] is not None:
            raise ValueError(f"{name} has no effect on the optimizer in `optimizers`; leave one of them out.")
    if isinstance(train_dataset, StreamingDataset):
        for name, allowed in (("data_seed", (None,)), ("train_sampling_strategy", ("group_by_length", "random"))):
            if getattr(args, name) not in allowed:
                raise ValueError(
                    f"{name} has no effect on a stream, whose order is set by seed and shuffle_buffer_size; leave it "
                    "out."
                )


def check_dtypes(model: torch.nn.Module) -> None:
    """Raise a ValueError if a trained weight has half precision, which rounds small updates to zero."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype in (torch.float16, torch.bfloat16):
            raise ValueError(
                f"the weight {name} has dtype {parameter.dtype}, which is too coarse for training; load the model "
                "with dtype=torch.float32. bf16=True and fp16=True still compute in half precision."
            )


def check_dataset(dataset: Any) -> None:
    """Raise a ValueError if a dataset is empty, has a transform, or is a list of rows."""
    if isinstance(dataset, list | tuple):
        raise ValueError(
            f"the dataset is a {type(dataset).__name__} of rows; pass a datasets.Dataset: Dataset.from_list(rows)."
        )
    if isinstance(dataset, Dataset) and dataset.format["type"] == "custom":
        raise ValueError(
            "the dataset has a transform (set_transform or with_transform), which adding the cached columns would "
            "remove; pass EpochDataset(dataset), which applies the transform to every row."
        )
    if hasattr(dataset, "__len__") and len(dataset) == 0:
        raise ValueError("the dataset is empty; check the split and the filters that it was loaded with.")


def column_names(dataset: Any) -> list[str]:
    """The columns of a dataset, or of the one in an `EpochDataset`; none if they are not known before reading."""
    dataset = dataset.dataset if isinstance(dataset, EpochDataset) else dataset
    return list(getattr(dataset, "column_names", None) or ())
