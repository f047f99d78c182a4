"""CLIP never changes, so what it says of an image or a caption is computed once and kept on disk.

The cache is two columns (see `column_cache`), float16, each row's embeddings stored flat (a row of `teacher_embeds`
holds as many as the row has captions): `datasets` reads flat rows five times as fast. Each is named by a fingerprint
of the data, the weights and the settings of what prepares them: change any of them and it is computed anew.
"""

import copy
from collections.abc import Iterator
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
from trainer.cache.columns import CachedColumn, fill, fingerprint, in_workers
from trainer.data.rows import draft_side, load_image, read_captions
from trainer.data.sources import check_columns
from trainer.models import teacher_embeds

ImageTokens = Literal["pooled", "patch", "all"]


def add_teacher_embeds(
    dataset: Dataset,
    teacher: CLIPTextModelWithProjection,
    tokenizer: PreTrainedTokenizerBase,
    caption_column: str = "caption",
    cache_dir: str | None = None,
) -> Dataset:
    """Add the column `teacher_embeds`: for each row the embeddings of all its captions, one after the other.

    Raises:
        ValueError: a caption is missing; it names the row's place and the column. Or see `column_cache.fill`.
    """
    check_columns(dataset.column_names, "", caption_column=caption_column)
    columns = [teacher_column(dataset, teacher, tokenizer, caption_column, cache_dir)]
    fill(columns)
    return beside(dataset, columns)


def add_image_features(
    dataset: Dataset,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    tokens: ImageTokens = "all",
    image_column: str = "image",
    cache_dir: str | None = None,
    workers: int = 0,
) -> Dataset:
    """Replace the image column by `image_features`: see `features_column`.

    Raises:
        ValueError: an image cannot be read. Or see `column_cache.fill`.
    """
    check_columns(dataset.column_names, "", image_column=image_column)
    columns = [features_column(dataset, model, processor, tokens, image_column, cache_dir, workers)]
    fill(columns)
    return beside(dataset.remove_columns(image_column), columns)


def beside(dataset: Dataset, columns: list[CachedColumn]) -> Dataset:
    """The dataset with columns of the cache, which are read as arrays."""
    dataset = dataset.with_format(None)
    if dataset._indices is not None:  # else joining would copy the columns of the cache too
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
    """t of every caption: row_captions × projection_dim, flat."""
    captions_of = dataset.with_format(None).select_columns([caption_column])

    def embed(batches: list[range]) -> Iterator[dict[str, list[np.ndarray]]]:
        for numbers in batches:
            rows = zip(captions_of[numbers][caption_column], numbers, strict=True)
            rows = [read_captions(captions, f"row {number}", caption_column) for captions, number in rows]
            tokens = tokenizer(sum(rows, []), padding=True, truncation=True, return_tensors="pt").to(teacher.device)
            embeds = to_float16(teacher_embeds(teacher, tokens["input_ids"], tokens["attention_mask"]), numbers)
            ends = np.cumsum([len(captions) for captions in rows])[:-1]
            yield {"teacher_embeds": [row.reshape(-1) for row in np.split(embeds, ends)]}

    settings = (tower_settings(teacher.config), tokenizer_settings(tokenizer), caption_column)
    count = _count_captions(captions_of, caption_column)
    return CachedColumn(
        name="teacher_embeds",
        key=fingerprint(dataset, teacher.named_parameters(), *settings),
        features=Features({"teacher_embeds": List(Value("float16"))}),
        rows=len(dataset),
        row_bytes=2 * teacher.config.projection_dim * count / max(1, len(dataset)),
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
    """V of every token ("all"; "patch" is the same, since ITCL needs the class token beside the patches), or of the
    class token alone ("pooled"): image_tokens × projection_dim, flat.

    The key covers the model's frozen parameters, which are CLIP's as long as nothing of BART is frozen yet. A GPU
    computes under float16 autocast: about twice as far from float32 as float16's own rounding (seen with a CPU's
    autocast; bfloat16 is 13 times as far). That is no part of the key.

    Args:
        workers: processes that decode images ahead of the model.
    """
    min_side, device = draft_side(processor), model.device
    pixels = _PixelValues(dataset.with_format(None).select_columns([image_column]), processor, image_column, min_side)

    def encode(batches: list[range]) -> Iterator[dict[str, np.ndarray]]:
        for numbers, pixel_values in zip(batches, in_workers(pixels, batches, workers), strict=True):
            with torch.no_grad(), torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):
                output = model.get_image_features(pixel_values.to(device))
            features = output.last_hidden_state  # (batch, image_tokens, projection_dim), class token first
            features = features[:, :1] if tokens == "pooled" else features
            yield {"image_features": to_float16(features, numbers).reshape(len(numbers), -1)}

    frozen = ((name, parameter) for name, parameter in model.named_parameters() if not parameter.requires_grad)
    kind = "pooled" if tokens == "pooled" else "all"
    settings = (tower_settings(model.config.vision_config), model.config.patch_attention, kind)
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
        unit="images",
        remedy="cache_image_features to pooled or none" if kind == "all" else "cache_image_features to none",
    )


class _PixelValues(torch.utils.data.Dataset):
    """Decodes images and prepares them for CLIP: (rows, 3, height, width). Runs in workers."""

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
    """How many numbers the cache holds of an image."""
    vision = config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    return config.projection_dim * (1 if tokens == "pooled" else patches + 1)


def to_float16(values: Tensor, rows: range) -> np.ndarray:
    """As the cache holds them.

    Raises:
        ValueError: they are not finite, or too large.
    """
    values = values.half()
    if not values.isfinite().all():
        raise ValueError(
            f"clip: its outputs for rows {rows.start} to {rows.stop - 1} are not finite in float16; the checkpoint "
            "may be damaged. Download it again, or name another."
        )
    return values.cpu().numpy()


def tower_settings(config: PreTrainedConfig) -> str:
    """What decides, beside the weights, what a tower of CLIP computes."""
    names = ("num_attention_heads", "hidden_act", "layer_norm_eps", "eos_token_id")
    return " ".join(f"{name}={getattr(config, name, None)}" for name in names)


def tokenizer_settings(tokenizer: PreTrainedTokenizerBase) -> str:
    """All that decides what a text is cut into; without padding and truncation, which each call sets anew."""
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
