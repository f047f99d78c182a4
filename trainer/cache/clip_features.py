"""The outputs of frozen CLIP for images and captions, computed once and stored on disk as float16.

There are two columns, `image_features` and `teacher_embeds`. Each row is flat, which `datasets` reads five times as
fast as nested lists. A column's key covers the data, the weights and the settings of processor and tokenizer.
"""

import copy
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
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
from trainer.data.rows import check_column, load_image, read_captions
from trainer.image_loader import min_jpeg_side
from trainer.models import teacher_embeds

ImageTokens = Literal["pooled", "all"]
SAMPLE = 1000  # rows from which the size of the teacher's embeddings is estimated


@dataclass
class TeacherEmbeds:
    """The column `teacher_embeds`: t of each caption of a row, flattened, (captions × projection_dim,).

    Args:
        teacher: CLIP's text tower.
        tokenizer: CLIP's.
        caption_column: name of the column of captions.
        cache_dir: see `cache_folder`.
    """

    teacher: CLIPTextModelWithProjection
    tokenizer: PreTrainedTokenizerBase
    caption_column: str = "caption"
    cache_dir: str | None = None

    def column(self, dataset: Dataset) -> CachedColumn:
        """
        Raises:
            ValueError: there is no such column; when it is computed: a caption is missing.
        """
        check_column(self.caption_column, dataset.column_names, option="caption_column")
        captions = dataset.with_format(None).select_columns([self.caption_column])
        sample = captions[:SAMPLE][self.caption_column] or [""]
        captions_per_row = sum(len(row) if isinstance(row, list) else 1 for row in sample) / len(sample)
        settings = (tower_settings(self.teacher.config), tokenizer_settings(self.tokenizer), self.caption_column)
        return CachedColumn(
            name="teacher_embeds",
            key=fingerprint(dataset, self.teacher.named_parameters(), *settings),
            features=Features({"teacher_embeds": List(Value("float16"))}),
            rows=len(dataset),
            row_bytes=2 * self.teacher.config.projection_dim * captions_per_row,
            compute=lambda batches: map(partial(self._embed, captions), batches),
            cache_dir=self.cache_dir,
        )

    def _embed(self, dataset: Dataset, numbers: range) -> dict[str, list[np.ndarray]]:
        rows = zip(dataset[numbers][self.caption_column], numbers, strict=True)
        rows = [read_captions(captions, f"row {number}", self.caption_column) for captions, number in rows]
        tokens = self.tokenizer(sum(rows, []), padding=True, truncation=True, return_tensors="pt")
        tokens = tokens.to(self.teacher.device)
        embeds = to_float16(teacher_embeds(self.teacher, tokens["input_ids"], tokens["attention_mask"]), numbers)
        ends = np.cumsum([len(captions) for captions in rows])[:-1]
        return {"teacher_embeds": [row.reshape(-1) for row in np.split(embeds, ends)]}


@dataclass
class ImageFeatures:
    """The column `image_features`: V of all tokens ("all") or of the class token ("pooled") of an image, flattened,
    (image_tokens × projection_dim,).

    The key contains the model's frozen parameters, which are CLIP's as long as BART is not frozen yet. GPUs compute
    under float16 autocast, whose error is about twice the rounding to float16 (bfloat16: 13 times). The key does not
    depend on the device.

    Args:
        model: its vision tower computes the features.
        processor: prepares the images.
        tokens: "pooled" or "all".
        image_column: name of the column of images.
        cache_dir: see `cache_folder`.
        workers: processes that decode images.
    """

    model: PreTrainedModel
    processor: ProcessorMixin
    tokens: ImageTokens = "all"
    image_column: str = "image"
    cache_dir: str | None = None
    workers: int = 0

    def column(self, dataset: Dataset) -> CachedColumn:
        """
        Raises:
            ValueError: there is no such column; when it is computed: an image cannot be read.
        """
        check_column(self.image_column, dataset.column_names, option="image_column")
        images = dataset.with_format(None).select_columns([self.image_column])
        min_side, config = min_jpeg_side(self.processor), self.model.config
        pixels = _PixelValues(images, self.processor, self.image_column, min_side)
        frozen = ((name, weight) for name, weight in self.model.named_parameters() if not weight.requires_grad)
        settings = (tower_settings(config.vision_config), self.tokens)
        settings += (self.processor.image_processor.to_json_string(), str(min_side), self.image_column)
        width = features_width(config, self.tokens)
        return CachedColumn(
            name="image_features",
            key=fingerprint(dataset, frozen, *settings),
            features=Features({"image_features": List(Value("float16"), length=width)}),
            rows=len(dataset),
            row_bytes=2 * width,
            compute=lambda batches: map(self._encode, in_workers(pixels, batches, self.workers), batches),
            cache_dir=self.cache_dir,
        )

    @torch.no_grad()
    def _encode(self, pixel_values: Tensor, numbers: range) -> dict[str, list[np.ndarray]]:
        device = self.model.device
        with torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):
            output = self.model.get_image_features(pixel_values.to(device))
        features = output.last_hidden_state  # (batch, image_tokens, projection_dim), class token first
        features = features[:, :1] if self.tokens == "pooled" else features
        return {"image_features": list(to_float16(features, numbers).reshape(len(numbers), -1))}


def add_cached_columns(datasets: list[Dataset], kinds: list[TeacherEmbeds | ImageFeatures]) -> list[Dataset]:
    """Add a column of each kind, read as arrays, to each dataset; `image_features` replace the images.

    Raises:
        ValueError: a caption or an image cannot be read, or there is not enough disk space.
    """
    columns = [[kind.column(dataset) for kind in kinds] for dataset in datasets]
    compute_missing(sum(columns, []))
    replaced = [kind.image_column for kind in kinds if isinstance(kind, ImageFeatures)]
    pairs = zip(datasets, columns, strict=True)
    return [_with_cached_columns(dataset.remove_columns(replaced), own) for dataset, own in pairs]


def _with_cached_columns(dataset: Dataset, columns: list[CachedColumn]) -> Dataset:
    dataset = dataset.with_format(None)
    if dataset._indices is not None:  # otherwise `concatenate_datasets` would copy the cached columns too
        dataset = dataset.flatten_indices()
    joined = concatenate_datasets([dataset, *(column.open() for column in columns)], axis=1)
    cached = [column for column in ("image_features", "teacher_embeds") if column in joined.column_names]
    return joined.with_format("numpy", columns=cached, output_all_columns=True)


class _PixelValues(torch.utils.data.Dataset):
    """Decodes and preprocesses images in workers: (rows, 3, height, width)."""

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
    """The number of values that are cached for an image."""
    return config.projection_dim * (1 if tokens == "pooled" else config.num_patches + 1)


def to_float16(values: Tensor, rows: range) -> np.ndarray:
    """Round CLIP's outputs for `rows` to float16.

    Raises:
        ValueError: a value is not finite or too large for float16.
    """
    values = values.half()
    if not values.isfinite().all():
        raise ValueError(
            f"clip: its outputs for rows {rows.start} to {rows.stop - 1} are not finite in float16; the checkpoint "
            "may be damaged. Download it again, or use another."
        )
    return values.cpu().numpy()


def tower_settings(config: PreTrainedConfig) -> str:
    """The settings of a CLIP tower that its outputs depend on."""
    names = ("num_attention_heads", "hidden_act", "layer_norm_eps", "eos_token_id")
    return " ".join(f"{name}={getattr(config, name, None)}" for name in names)


def tokenizer_settings(tokenizer: PreTrainedTokenizerBase) -> str:
    """The settings that tokens depend on, without padding and truncation, which each call sets."""
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.no_padding()
    backend.no_truncation()
    return f"{tokenizer.model_max_length} {backend.to_str()}"
