"""Builds training batches from rows of images and captions."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from modeling_vlkd import VLKDConfig
from trainer.arguments import VLKDTrainingArguments
from trainer.data.infilling import CAPTIONS, TextInfilling, seeded_rng
from trainer.data.rows import check_column, load_image, read_captions

ITDD_EVERY = 4  # ITDD is computed for one in so many images; with one seed, all of them were no better


@dataclass
class VLKDDataCollator:
    """Builds the batches of `VLKDTrainer` from rows of an `EpochDataset` or `StreamingDataset`.

    A row has `index` and `epoch`, an `image` (or cached `image_features`), a `caption` or a list of captions of which
    one is drawn, with the cache `teacher_embeds`, and for messages `row_name`. Everything random is drawn from
    (seed, epoch, index).

    The batch:

    - `pixel_values` (batch, 3, height, width) or `image_features` (batch, image_tokens, projection_dim);
    - `input_ids`, `attention_mask`: the corrupted captions;
    - `caption_input_ids`, `caption_attention_mask`: the captions, which are also the `labels` (padded with -100) and,
      shifted right, the `decoder_input_ids`;
    - `teacher_embeds` (batch, projection_dim) or `teacher_input_ids`, `teacher_attention_mask`;
    - with `with_itdd_targets`, for the first rows, one in `ITDD_EVERY`: `itdd_input_ids`, `itdd_attention_mask`,
      `itdd_decoder_input_ids`, `itdd_labels`;
    - `row_names`, for messages.

    Args:
        processor: the `VLKDProcessor`: CLIP's image processor and BART's tokenizer.
        teacher_tokenizer: CLIP's tokenizer; not needed for rows with `teacher_embeds`.
        infilling: corrupts the captions.
        decoder_start_token_id: the decoder's first input (BART: `</s>`).
        projection_dim: width of the joint space; cached columns, which are stored flat, are reshaped to it.
        max_text_length: captions are truncated to this many tokens.
        pad_to_multiple_of: texts are padded to a multiple of this many tokens; 8 for the tensor cores of GPUs.
        seed: seed of every random draw.
        with_itdd_targets: whether to add the inputs of `itdd`.

    Raises:
        ValueError: a row has no image or no caption, or one cannot be read; the message names row and column.
    """

    processor: ProcessorMixin
    teacher_tokenizer: PreTrainedTokenizerBase | None
    infilling: TextInfilling
    decoder_start_token_id: int
    projection_dim: int
    max_text_length: int = 64
    pad_to_multiple_of: int = 1
    seed: int = 0
    with_itdd_targets: bool = False

    @classmethod
    def from_args(
        cls,
        args: VLKDTrainingArguments,
        config: VLKDConfig,
        processor: ProcessorMixin,
        teacher_tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> "VLKDDataCollator":
        """The collator for these training arguments and a model of this config.

        Raises:
            ValueError: `mask_ratio` or `full_mask_probability` is out of range.
        """
        return cls(
            processor=processor,
            teacher_tokenizer=teacher_tokenizer,
            infilling=TextInfilling(processor.tokenizer.mask_token_id, args.mask_ratio, args.full_mask_probability),
            decoder_start_token_id=config.text_config.decoder_start_token_id,
            projection_dim=config.projection_dim,
            max_text_length=min(args.max_text_length, config.text_config.max_position_embeddings),
            pad_to_multiple_of=8 if args.device.type == "cuda" else 1,
            seed=args.seed,
            with_itdd_targets=args.itdd_weight > 0,
        )

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        rngs = [seeded_rng(self.seed, CAPTIONS, row["epoch"], row["index"]) for row in rows]
        captions = [_captions(row) for row in rows]
        choices = [int(rng.integers(len(texts))) for texts, rng in zip(captions, rngs, strict=True)]
        drawn = [texts[choice] for texts, choice in zip(captions, choices, strict=True)]
        ids = self._tokenize(drawn)
        corrupted = [self._truncate(self.infilling(row, rng)) for row, rng in zip(ids, rngs, strict=True)]

        batch = self._images(rows)
        batch |= self._pad(corrupted, "input_ids", "attention_mask")
        batch |= self._pad(ids, "caption_input_ids", "caption_attention_mask")
        batch |= {"decoder_input_ids": self._shift_right(ids), "labels": self._pad_rows(ids, -100)}
        batch |= self._teacher(rows, choices, drawn)
        if self.with_itdd_targets:
            batch |= self._itdd_targets(captions, drawn, ids)
        batch["row_names"] = [f"{_name(row)} of epoch {row['epoch']}" for row in rows]
        return batch

    def _images(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        if "image_features" in rows[0]:
            features = torch.from_numpy(np.stack([row["image_features"] for row in rows])).float()
            return {"image_features": features.view(len(rows), -1, self.projection_dim)}
        for row in rows:
            check_column("image", row, _name(row))
        images = [load_image(row["image"], _name(row), "image") for row in rows]
        return {"pixel_values": self.processor(images=images, return_tensors="pt")["pixel_values"]}

    def _teacher(self, rows: list[dict[str, Any]], choices: list[int], captions: list[str]) -> dict[str, Tensor]:
        """CLIP's embeddings of the drawn captions from the cache, or the captions as CLIP's tokens."""
        if "teacher_embeds" in rows[0]:
            embeds = [np.reshape(row["teacher_embeds"], (-1, self.projection_dim)) for row in rows]
            embeds = np.stack([row[choice] for row, choice in zip(embeds, choices, strict=True)])
            return {"teacher_embeds": torch.from_numpy(embeds).float()}
        if self.teacher_tokenizer is None:
            raise ValueError("rows without teacher_embeds need CLIP's tokenizer as teacher_tokenizer.")
        tokens = self.teacher_tokenizer(captions, padding=True, truncation=True, return_tensors="pt")
        return {"teacher_input_ids": tokens["input_ids"], "teacher_attention_mask": tokens["attention_mask"]}

    def _itdd_targets(self, captions: list[list[str]], drawn: list[str], ids: list[list[int]]) -> dict[str, Tensor]:
        """BART reads the longest other caption of the image; the decoder writes the caption of the previous row.

        Since that caption describes another image, the decoder also learns what is not in the image.
        """
        rows = math.ceil(len(ids) / ITDD_EVERY)
        pairs = zip(captions[:rows], drawn[:rows], strict=True)
        longest = [max((text for text in texts if text != own), key=len, default=own) for texts, own in pairs]
        texts = self._tokenize([f"{self.processor.tokenizer.mask_token}. {text}" for text in longest])
        others = [ids[-1], *ids[: rows - 1]]
        targets = {"itdd_decoder_input_ids": self._shift_right(others), "itdd_labels": self._pad_rows(others, -100)}
        return targets | self._pad(texts, "itdd_input_ids", "itdd_attention_mask")

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        return self.processor.tokenizer(texts, truncation=True, max_length=self.max_text_length)["input_ids"]

    def _truncate(self, row: list[int]) -> list[int]:
        """Cut a corrupted text, which masks that hide no token can make too long for the encoder."""
        return row if len(row) <= self.max_text_length else [*row[: self.max_text_length - 1], row[-1]]

    def _shift_right(self, rows: list[list[int]]) -> Tensor:
        shifted = [[self.decoder_start_token_id, *row[:-1]] for row in rows]
        return self._pad_rows(shifted, self.processor.tokenizer.pad_token_id)

    def _pad(self, rows: list[list[int]], ids_name: str, mask_name: str) -> dict[str, Tensor]:
        return {
            ids_name: self._pad_rows(rows, self.processor.tokenizer.pad_token_id),
            mask_name: self._pad_rows([[1] * len(row) for row in rows], 0),
        }

    def _pad_rows(self, rows: list[list[int]], value: int) -> Tensor:
        """(batch, longest row or a little more), filled with `value` on the right."""
        longest, multiple = max(map(len, rows)), self.pad_to_multiple_of
        width = max(longest, min(-(-longest // multiple) * multiple, self.max_text_length))
        padded = np.full((len(rows), width), value)
        for line, row in zip(padded, rows, strict=True):
            line[: len(row)] = row
        return torch.from_numpy(padded)


def check_collator(collator: Callable, args: VLKDTrainingArguments) -> None:
    """Check a collator that the trainer did not build: `args` are published with the weights.

    Raises:
        ValueError: the arguments that shape batches are not the collator's.
    """
    known = {}
    if isinstance(collator, VLKDDataCollator):
        names = ("mask_ratio", "full_mask_probability")
        known = {name: getattr(collator.infilling, name) for name in names}
        known["max_text_length"] = collator.max_text_length
    for name in ("mask_ratio", "full_mask_probability", "max_text_length"):
        value = getattr(args, name)
        if value != known.get(name, getattr(VLKDTrainingArguments, name)):  # the class holds the default
            raise ValueError(
                f"{name} is {value} in the training arguments, but {known.get(name, 'without effect')} in "
                "data_collator. Make them agree, or omit data_collator: VLKDTrainer builds it from the arguments."
            )


def _name(row: dict[str, Any]) -> str:
    return row.get("row_name", f"row {row['index']}")


def _captions(row: dict[str, Any]) -> list[str]:
    check_column("caption", row, _name(row))
    return read_captions(row["caption"], _name(row), "caption")
