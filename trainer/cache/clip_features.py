"""The outputs of frozen CLIP for images and captions, computed once and stored on disk as float16.

There are two columns, `image_features` and `teacher_embeds`. Each row is flat, which `datasets` reads five times as
fast as nested lists. A column's key covers the data, the weights and the settings of processor and tokenizer.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset, Features, List, Value, concatenate_datasets
from torch import Tensor
from transformers import (
    CLIPTextModelWithProjection,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from modeling_vlkd import VLKDConfig
from trainer.cache.columns import CachedColumn, compute_missing, fingerprint, in_workers
from trainer.data.rows import check_column, load_image, min_jpeg_side, read_captions
from trainer.models import teacher_embeds

ImageTokens = Literal["pooled", "all"]


@dataclass
class FeatureCache:
    """What is cached of a dataset, and all that is needed to compute it.

    Args:
        model: its vision tower computes image features.
        processor: prepares images.
        teacher: CLIP's text tower.
        tokenizer: CLIP's.
        image_tokens: the image features to cache, or "none".
        image_column: name of the column.
        caption_column: name of the column.
        cache_dir: see `cache_folder`.
        workers: processes that decode images.
    """

    model: PreTrainedModel
    processor: ProcessorMixin
    teacher: CLIPTextModelWithProjection
    tokenizer: PreTrainedTokenizerBase
    image_tokens: Literal["none", "pooled", "all"]
    image_column: str
    caption_column: str
    cache_dir: str | None = None
    workers: int = 0

    def columns(self, dataset: Dataset) -> list[CachedColumn]:
        columns = [teacher_column(dataset, self.teacher, self.tokenizer, self.caption_column, self.cache_dir)]
        if self.image_tokens != "none":
            options = (self.image_tokens, self.image_column, self.cache_dir, self.workers)
            columns.append(features_column(dataset, self.model, self.processor, *options))
        return columns

    def add_to(self, datasets: list[Dataset]) -> list[Dataset]:
        """The datasets with the cached columns, in place of their images if the image features are cached.

        Raises:
            ValueError: there is not enough disk space.
        """
        columns = [self.columns(dataset) for dataset in datasets]
        compute_missing(sum(columns, []))
        if self.image_tokens != "none":
            datasets = [dataset.remove_columns(self.image_column) for dataset in datasets]
        return [with_cached_columns(dataset, own) for dataset, own in zip(datasets, columns, strict=True)]


def add_teacher_embeds(
    dataset: Dataset,
    teacher: CLIPTextModelWithProjection,
    tokenizer: PreTrainedTokenizerBase,
    caption_column: str = "caption",
    cache_dir: str | None = None,
) -> Dataset:
    """Add the column `teacher_embeds`: for each row the embeddings of all its captions, one after the other.

    Raises:
        ValueError: a caption is missing, or there is not enough disk space.
    """
    check_column(caption_column, dataset.column_names, option="caption_column")
    columns = [teacher_column(dataset, teacher, tokenizer, caption_column, cache_dir)]
    compute_missing(columns)
    return with_cached_columns(dataset, columns)


def add_image_features(
    dataset: Dataset,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    tokens: ImageTokens = "all",
    image_column: str = "image",
    cache_dir: str | None = None,
    workers: int = 0,
) -> Dataset:
    """Replace the image column by `image_features`; see `features_column`.

    Raises:
        ValueError: an image cannot be read, or there is not enough disk space.
    """
    check_column(image_column, dataset.column_names, option="image_column")
    columns = [features_column(dataset, model, processor, tokens, image_column, cache_dir, workers)]
    compute_missing(columns)
    return with_cached_columns(dataset.remove_columns(image_column), columns)


def with_cached_columns(dataset: Dataset, columns: list[CachedColumn]) -> Dataset:
    """The dataset with columns of the cache, which are read as arrays."""
    dataset = dataset.with_format(None)
    if dataset._indices is not None:  # otherwise `concatenate_datasets` would copy the cached columns too
        dataset = dataset.flatten_indices()
    joined = concatenate_datasets([dataset, *(column.open() for column in columns)], axis=1)
    cached = [column for column in ("image_features", "teacher_embeds") if column in joined.column_names]
    return joined.with_format("numpy", columns=cached, output_all_columns=True)


def teacher_column(
    dataset: Dataset,
    teacher: CLIPTextModelWithProjection,
    tokenizer: PreTrainedTokenizerBase,
    caption_column: str,
    cache_dir: str | None,
) -> CachedColumn:
    """t of every caption; a row is (captions × projection_dim,)."""
    all_captions = dataset.with_format(None).select_columns([caption_column])

    def embed(batches: list[range]) -> Iterator[dict[str, list[np.ndarray]]]:
        for numbers in batches:
            rows = zip(all_captions[numbers][caption_column], numbers, strict=True)
            rows = [read_captions(captions, f"row {number}", caption_column) for captions, number in rows]
            tokens = tokenizer(sum(rows, []), padding=True, truncation=True, return_tensors="pt").to(teacher.device)
            embeds = to_float16(teacher_embeds(teacher, tokens["input_ids"], tokens["attention_mask"]), numbers)
            ends = np.cumsum([len(captions) for captions in rows])[:-1]
            yield {"teacher_embeds": [row.reshape(-1) for row in np.split(embeds, ends)]}

    settings = (tower_settings(teacher.config), tokenizer_settings(tokenizer), caption_column)
    captions_per_row = _count_captions(all_captions, caption_column) / max(1, len(dataset))
    return CachedColumn(
        name="teacher_embeds",
        key=fingerprint(dataset, teacher.named_parameters(), *settings),
        features=Features({"teacher_embeds": List(Value("float16"))}),
        rows=len(dataset),
        row_bytes=2 * teacher.config.projection_dim * captions_per_row,
        compute=embed,
        cache_dir=cache_dir,
    )


def features_column(
    dataset: Dataset,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    tokens: ImageTokens,
    image_column: str,
    cache_dir: str | None,
    workers: int,
) -> CachedColumn:
    """V of every token ("all") or of the class token ("pooled"); a row is (image_tokens × projection_dim,).

    The key covers the model's frozen parameters, which are CLIP's as long as BART is not frozen yet. A GPU computes
    under float16 autocast, whose error is about twice float16's own rounding (bfloat16: 13 times); that is not part
    of the key.

    Args:
        dataset: with the image column.
        model: its vision tower computes the features.
        processor: prepares the images.
        tokens: "pooled" or "all".
        image_column: name of the column.
        cache_dir: see `cache_folder`.
        workers: processes that decode images.
    """
    min_side, device = min_jpeg_side(processor), model.device
    pixels = _PixelValues(dataset.with_format(None).select_columns([image_column]), processor, image_column, min_side)

    def encode(batches: list[range]) -> Iterator[dict[str, list[np.ndarray]]]:
        for numbers, pixel_values in zip(batches, in_workers(pixels, batches, workers), strict=True):
            with torch.no_grad(), torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):
                output = model.get_image_features(pixel_values.to(device))
            features = output.last_hidden_state  # (batch, image_tokens, projection_dim), class token first
            features = features[:, :1] if tokens == "pooled" else features
            yield {"image_features": list(to_float16(features, numbers).reshape(len(numbers), -1))}

    frozen = ((name, parameter) for name, parameter in model.named_parameters() if not parameter.requires_grad)
    settings = (tower_settings(model.config.vision_config), model.config.patch_attention, tokens)
    settings += (processor.image_processor.to_json_string(), str(min_side), image_column)
    width = features_width(model.config, tokens)
    return CachedColumn(
        name="image_features",
        key=fingerprint(dataset, frozen, *settings),
        features=Features({"image_features": List(Value("float16"), length=width)}),
        rows=len(dataset),
        row_bytes=2 * width,
        compute=encode,
        cache_dir=cache_dir,
    )


class _PixelValues(torch.utils.data.Dataset):
    """Decodes images and prepares them for CLIP, (rows, 3, height, width), in workers."""

    def __init__(self, dataset: Dataset, processor: ProcessorMixin, image_column: str, min_side: int):
        self.dataset = dataset
        self.processor = processor
        self.image_column = image_column
        self.min_side = min_side

    def __getitems__(self, numbers: range) -> Tensor:
        rows = zip(self.dataset[numbers][self.image_column], numbers, strict=True)
        images = [load_image(image, f"row {number}", self.image_column, self.min_side) for image, number in rows]
        return self.processor(images=images, return_tensors="pt")["pixel_values"]


def features_width(config: VLKDConfig, tokens: ImageTokens) -> int:
    """How many numbers are cached of an image."""
    return config.projection_dim * (1 if tokens == "pooled" else config.num_patches + 1)


def to_float16(values: Tensor, rows: range) -> np.ndarray:
    """
    Raises:
        ValueError: a value is not finite, or too large for float16.
    """
    values = values.half()
    if not values.isfinite().all():
        raise ValueError(
            f"clip: its outputs for rows {rows.start} to {rows.stop - 1} are not finite in float16; the checkpoint "
            "may be damaged. Download it again, or use another."
        )
    return values.cpu().numpy()


def tower_settings(config: PreTrainedConfig) -> str:
    """What decides the outputs of a tower of CLIP besides its weights."""
    names = ("num_attention_heads", "hidden_act", "layer_norm_eps", "eos_token_id")
    return " ".join(f"{name}={getattr(config, name, None)}" for name in names)


def tokenizer_settings(tokenizer: PreTrainedTokenizerBase) -> str:
    """What decides the tokens of a text; without padding and truncation, which each call sets."""
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.no_padding()
    backend.no_truncation()
    return f"{tokenizer.model_max_length} {backend.to_str()}"


def _count_captions(dataset: Dataset, column: str) -> int:
    count = 0
    for batch in dataset.with_format("arrow").iter(batch_size=10_000):
        captions = batch.column(column)
        is_list = pa.types.is_list(captions.type) or pa.types.is_large_list(captions.type)
        count += (pc.sum(pc.list_value_length(captions)).as_py() or 0) if is_list else len(captions)
    return count
