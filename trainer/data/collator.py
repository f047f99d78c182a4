"""Images and captions become one training batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from modeling_vlkd import VLKDConfig
from trainer.arguments import VLKDTrainingArguments
from trainer.data.infilling import TextInfilling, seeded_rng
from trainer.data.rows import load_image, read_captions

CAPTIONS = 0  # the random stream that draws captions and corrupts them


@dataclass
class VLKDDataCollator:
    """Builds what `VLKDTrainer.compute_loss` takes from rows of an `EpochDataset`.

    A row holds `index` and `epoch`, an `image` (or `image_features`, if the cache replaced it), a `caption` or a list
    of captions of which one is drawn, and, with the cache, `teacher_embeds`. A `row_name` appears in messages.
    Everything random is drawn from (seed, epoch, index).

    The batch: `pixel_values` (batch, 3, height, width) or `image_features` (batch, image_tokens, projection_dim); the
    corrupted caption `input_ids`, `attention_mask`; the caption itself as `caption_input_ids`,
    `caption_attention_mask`, as `labels` (-100 where padded) and, moved one to the right, `decoder_input_ids`; for the
    teacher `teacher_embeds` (batch, projection_dim) or `teacher_input_ids`, `teacher_attention_mask`; `row_names`, for
    messages. With `with_itdd_targets`, what `itdd` needs:
    `itdd_input_ids`, `itdd_attention_mask`, `itdd_decoder_input_ids`, `itdd_labels`.

    Args:
        processor: CLIP's image processor and BART's tokenizer.
        teacher_tokenizer: CLIP's tokenizer; rows with `teacher_embeds` do not need it.
        infilling: how captions are corrupted.
        decoder_start_token_id: what the decoder reads first (BART: `</s>`).
        projection_dim: the width of the joint space, in which cached columns, stored flat, are read back.
        max_text_length: captions are cut to this many tokens.
        seed: of every draw.
        with_itdd_targets: whether to add what `itdd` needs.

    Raises:
        ValueError: a row has no image, no caption, or an empty one; the message names row and column.
    """

    processor: ProcessorMixin
    teacher_tokenizer: PreTrainedTokenizerBase | None
    infilling: TextInfilling
    decoder_start_token_id: int
    projection_dim: int
    max_text_length: int = 64
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
        """The collator that `args` ask for, for a model of this config.

        Raises:
            ValueError: `mask_ratio` or `full_mask_probability` is out of its range.
        """
        return cls(
            processor=processor,
            teacher_tokenizer=teacher_tokenizer,
            infilling=TextInfilling(processor.tokenizer.mask_token_id, args.mask_ratio, args.full_mask_probability),
            decoder_start_token_id=config.text_config.decoder_start_token_id,
            projection_dim=config.projection_dim,
            max_text_length=min(args.max_text_length, config.text_config.max_position_embeddings),
            seed=args.seed,
            with_itdd_targets=args.itdd_weight > 0,
        )

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        rngs = [seeded_rng(self.seed, CAPTIONS, example["epoch"], example["index"]) for example in examples]
        drawn = [self._draw_caption(example, rng) for example, rng in zip(examples, rngs, strict=True)]
        captions = [caption for caption, _ in drawn]
        ids = self._tokenize(captions)

        batch = self._images(examples)
        batch |= self._denoising(ids, rngs)
        batch |= self._padded(ids, "caption_input_ids", "caption_attention_mask")
        batch |= self._teacher(captions, [embeds for _, embeds in drawn])
        batch["row_names"] = [f"{_name(example)} of epoch {example['epoch']}" for example in examples]
        if self.with_itdd_targets:
            batch |= self._itdd_targets(examples, captions, ids)
        return batch

    def _draw_caption(self, example: dict[str, Any], rng: np.random.Generator) -> tuple[str, np.ndarray | None]:
        """One of the row's captions and, where the cache has it, the teacher's embedding of it."""
        captions = _captions(example)
        choice = int(rng.integers(len(captions)))
        if "teacher_embeds" not in example:
            return captions[choice], None
        return captions[choice], np.reshape(example["teacher_embeds"], (-1, self.projection_dim))[choice]

    def _itdd_targets(
        self, examples: list[dict[str, Any]], captions: list[str], ids: list[list[int]]
    ) -> dict[str, Tensor]:
        """The longest of an image's other captions, as BART reads it; to write, the caption of the row before.

        That one is about another image, so that the decoder, which is to read the image as it reads the caption, must
        see what is not so as well as what is.
        """
        said = [self._longest_other(example, drawn) for example, drawn in zip(examples, captions, strict=True)]
        texts = self._tokenize([f"{self.processor.tokenizer.mask_token}. {text}" for text in said])
        others = [ids[-1], *ids[:-1]]
        return {
            **self._padded(texts, "itdd_input_ids", "itdd_attention_mask"),
            "itdd_decoder_input_ids": self._moved_right(others),
            "itdd_labels": pad(others, -100),
        }

    def _longest_other(self, example: dict[str, Any], drawn: str) -> str:
        captions = _captions(example)
        return max((text for text in captions if text != drawn), key=len, default=drawn)

    def _images(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        if "image_features" in examples[0]:
            features = np.stack([example["image_features"] for example in examples])
            return {"image_features": torch.from_numpy(features).float().view(len(examples), -1, self.projection_dim)}
        images = [load_image(_cell(example, "image"), _name(example), "image") for example in examples]
        return {"pixel_values": self.processor(images=images, return_tensors="pt")["pixel_values"]}

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        return self.processor.tokenizer(texts, truncation=True, max_length=self.max_text_length)["input_ids"]

    def _denoising(self, ids: list[list[int]], rngs: list[np.random.Generator]) -> dict[str, Tensor]:
        """The corrupted texts, the texts as labels and the labels moved one to the right."""
        corrupted = [self.infilling(row, rng) for row, rng in zip(ids, rngs, strict=True)]
        corrupted = [self._cut(row) for row in corrupted]
        return {
            **self._padded(corrupted, "input_ids", "attention_mask"),
            "decoder_input_ids": self._moved_right(ids),
            "labels": pad(ids, -100),
        }

    def _moved_right(self, ids: list[list[int]]) -> Tensor:
        shifted = [[self.decoder_start_token_id, *row[:-1]] for row in ids]
        return pad(shifted, self.processor.tokenizer.pad_token_id)

    def _cut(self, row: list[int]) -> list[int]:
        """Masks that hide no token make a text longer; it must still fit the encoder."""
        return row if len(row) <= self.max_text_length else [*row[: self.max_text_length - 1], row[-1]]

    def _padded(self, rows: list[list[int]], ids_name: str, mask_name: str) -> dict[str, Tensor]:
        return {
            ids_name: pad(rows, self.processor.tokenizer.pad_token_id),
            mask_name: pad([[1] * len(row) for row in rows], 0),
        }

    def _teacher(self, captions: list[str], embeds: list[np.ndarray | None]) -> dict[str, Tensor]:
        if embeds[0] is not None:
            return {"teacher_embeds": torch.from_numpy(np.stack(embeds)).float()}
        if self.teacher_tokenizer is None:
            raise ValueError("rows without teacher_embeds need the collator's teacher_tokenizer: CLIP's.")
        tokens = self.teacher_tokenizer(captions, padding=True, truncation=True, return_tensors="pt")
        return {"teacher_input_ids": tokens["input_ids"], "teacher_attention_mask": tokens["attention_mask"]}


def check_collator(collator: Callable, args: VLKDTrainingArguments) -> None:
    """Check a collator that the trainer did not build, since `args` are published with the weights.

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
                "data_collator. Make them agree, or leave data_collator out: VLKDTrainer builds it from the arguments."
            )


def _name(example: dict[str, Any]) -> str:
    return example.get("row_name", f"row {example['index']}")


def _cell(example: dict[str, Any], column: str) -> Any:
    if column not in example:
        raise ValueError(
            f"{_name(example)} has no column '{column}'; it has {', '.join(example)}. Rename the dataset's column: "
            f"`dataset.rename_column(..., '{column}')`."
        )
    return example[column]


def _captions(example: dict[str, Any]) -> list[str]:
    return read_captions(_cell(example, "caption"), _name(example), "caption")


def pad(rows: list[list[int]], value: int) -> Tensor:
    """(batch, longest row), filled with `value` on the right."""
    padded = np.full((len(rows), max(map(len, rows))), value)
    for line, row in zip(padded, rows, strict=True):
        line[: len(row)] = row
    return torch.from_numpy(padded)
