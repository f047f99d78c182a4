"""Checks of the arguments of `VLKDTrainer`."""

from typing import Any

from trainer.arguments import VLKDTrainingArguments


def check_trainer_arguments(
    model: Any,
    args: VLKDTrainingArguments,
    train_dataset: Any,
    processing_class: Any,
    has_collator: bool,
    others: dict[str, Any],
) -> None:
    """Raise a ValueError if arguments of `VLKDTrainer` are of the wrong type or have no effect."""
    if not isinstance(args, VLKDTrainingArguments):
        raise ValueError(f"args is a {type(args).__name__}; pass VLKDTrainingArguments, which has the same options.")
    if not hasattr(model, "freeze_language_model"):
        raise ValueError(
            f"model is a {type(model).__name__}; pass a VLKDForConditionalGeneration, from from_pretrained or "
            "from_vision_text_pretrained."
        )
    if not has_collator and not hasattr(processing_class, "image_processor"):
        given = "not set" if processing_class is None else f"a {type(processing_class).__name__}"
        raise ValueError(
            f"processing_class is {given}; pass a VLKDProcessor, from VLKDProcessor.from_pretrained(...) or "
            "from_vision_text_pretrained(clip, bart)."
        )
    if isinstance(train_dataset, dict):
        raise ValueError(
            f"train_dataset holds the splits {', '.join(train_dataset)}; pass one of them, such as "
            f"dataset[{next(iter(train_dataset), 'train')!r}]."
        )
    if args.n_gpu > 1:
        raise ValueError(f"{args.n_gpu} GPUs in one process are not supported; start one process per GPU: torchrun.")
    if others.get("compute_loss_func") is not None:
        raise ValueError("compute_loss_func has no effect; override VLKDTrainer.compute_loss instead.")
    if others.get("model_init") is not None:
        raise ValueError("model_init is not supported, since args would not be applied to its models; pass model.")
