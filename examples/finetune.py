"""
Fine-tunes a VLKD model with transformers' own `Trainer`: labels in, loss out.

    python examples/finetune.py --model my_vlkd --data my_images --output my_finetuned

`my_images` is a folder of images with a metadata.jsonl of captions, {"file_name": "1.jpg", "caption": "a dog"}, or of
questions, {"file_name": "1.jpg", "question": "what is it?", "answer": "a dog"}.
"""

import argparse
import random
from functools import partial
from typing import Any

import torch
from datasets import Dataset, load_dataset
from torch import Tensor
from transformers import PreTrainedModel, Trainer, TrainingArguments

from vlkd import VLKDForConditionalGeneration, VLKDProcessor


def prompt_and_target(row: dict[str, Any], processor: VLKDProcessor) -> tuple[str, str]:
    """The encoder's prompt with a `<mask>`, and the decoder's target: the same text with the mask filled in.

    Raises:
        ValueError: the row has neither a caption nor a question with its answer.
    """
    caption, question, answer = (text_of(row.get(name)) for name in ("caption", "question", "answer"))
    if caption:
        return "<mask>", caption
    if question and answer:
        prompt = processor.build_vqa_prompt(question)
        return prompt, prompt.replace("<mask>", answer)
    raise ValueError(
        f"row {row} has no `caption` and no `question` with an `answer`; add them to metadata.jsonl or metadata.csv."
    )


def text_of(value: Any) -> str:
    """A text, one of several at random, or a number as a text; empty if there is none."""
    value = random.choice(value or [None]) if isinstance(value, list) else value
    return "" if value is None else str(value)


def collate(rows: list[dict[str, Any]], processor: VLKDProcessor, model: PreTrainedModel) -> dict[str, Tensor]:
    """Build a batch of `pixel_values`, `input_ids` and `attention_mask` (the prompts), and `labels` (the targets).

    `decoder_input_ids` are the labels shifted right, which the model needs if `label_smoothing_factor` is set, since
    `Trainer` then withholds the labels from it.
    """
    prompts, targets = zip(*(prompt_and_target(row, processor) for row in rows), strict=True)
    batch = processor(images=[row["image"] for row in rows], text=list(prompts))
    labels = processor.tokenizer(list(targets), padding=True, truncation=True, return_tensors="pt")["input_ids"]
    labels = labels.masked_fill(labels == processor.tokenizer.pad_token_id, -100)
    return {**batch, "labels": labels, "decoder_input_ids": model.prepare_decoder_input_ids_from_labels(labels)}


def build_trainer(
    model: PreTrainedModel, processor: VLKDProcessor, rows: Dataset, output: str, **options: Any
) -> Trainer:
    """A `Trainer` for a VLKD model, with or without an adapter; `options` are passed to `TrainingArguments`."""
    arguments = TrainingArguments(
        output,
        remove_unused_columns=False,  # the collator, not the model, reads the dataset's columns
        label_names=["labels"],  # Trainer does not find them through an adapter
        report_to="none",
        **options,
    )
    return Trainer(
        model,
        arguments,
        train_dataset=rows,
        data_collator=partial(collate, processor=processor, model=model),
        processing_class=processor,
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Hub name or folder of a VLKD model")
    parser.add_argument("--data", required=True, help="folder of images with metadata.jsonl or metadata.csv")
    parser.add_argument("--output", required=True, help="output folder")
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--epochs", type=float, default=3)
    return parser.parse_args()


def main(adapt: Any = lambda model: model) -> None:
    """Train `adapt(model)`, and save it."""
    given = parse_arguments()
    trainer = build_trainer(
        adapt(VLKDForConditionalGeneration.from_pretrained(given.model, dtype=torch.float32)),
        VLKDProcessor.from_pretrained(given.model),
        load_dataset("imagefolder", data_dir=given.data, split="train"),
        given.output,
        learning_rate=given.learning_rate,
        per_device_train_batch_size=given.batch_size,
        num_train_epochs=given.epochs,
        save_strategy="no",
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()
