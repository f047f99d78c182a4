"""CLIP never changes, so what it says of an image or a caption is computed once and kept on disk.

The cache is a dataset of `datasets`: memory-mapped Arrow, one more column, float16, each row's embeddings stored flat
(a row of `teacher_embeds` holds as many as the row has captions): `datasets` reads flat rows five times as fast. Its
file is named by a fingerprint of the data, the weights and the settings of what prepares them: change any of them and
it is computed anew.
"""

import copy
import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, List, Value, concatenate_datasets
from datasets import config as datasets_config
from torch import Tensor
from transformers import (
    AutoTokenizer,
    CLIPModel,
    CLIPTextModelWithProjection,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from modeling_vlkd.conversion_vlkd import check_checkpoint
from trainer.data import check_image, list_captions

BATCH_SIZE = 256


def load_teacher(clip: str) -> tuple[CLIPTextModelWithProjection, PreTrainedTokenizerBase]:
    """CLIP's frozen text tower, in float32, and its tokenizer, which cuts captions to what the tower can read.

    Raises:
        ValueError: there is no such checkpoint, or it has no tokenizer.
    """
    check_checkpoint("clip", clip, "clip")
    try:
        both_towers = CLIPModel.from_pretrained(clip, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(clip)
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"clip: '{clip}' is no complete CLIP checkpoint: {reason}") from error
    config = copy.deepcopy(both_towers.config.text_config)
    config.projection_dim = both_towers.config.projection_dim  # a tower's own config may hold another number
    with torch.device("meta"):
        teacher = CLIPTextModelWithProjection(config)
    teacher.text_model, teacher.text_projection = both_towers.text_model, both_towers.text_projection
    teacher.eval().requires_grad_(False)
    tokenizer.model_max_length = min(tokenizer.model_max_length, teacher.config.max_position_embeddings)
    return teacher, tokenizer


@torch.no_grad()
def teacher_embeds(teacher: CLIPTextModelWithProjection, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """t: (batch, projection_dim), unit norm, float32."""
    embeds = teacher(input_ids=input_ids, attention_mask=attention_mask).text_embeds
    return torch.nn.functional.normalize(embeds.float(), dim=-1)


def add_teacher_embeds(
    dataset: Dataset,
    teacher: CLIPTextModelWithProjection,
    tokenizer: PreTrainedTokenizerBase,
    caption_column: str = "caption",
    cache_dir: str | None = None,
) -> Dataset:
    """Add the column `teacher_embeds`: for each row the embeddings of all its captions, one after the other.

    Raises:
        ValueError: a caption is missing; it names the row's place and the column.
    """

    def embed(batch: dict[str, list], indices: list[int]) -> dict[str, list[np.ndarray]]:
        rows = [list_captions(*row, caption_column) for row in zip(batch[caption_column], indices, strict=True)]
        tokens = tokenizer(sum(rows, []), padding=True, truncation=True, return_tensors="pt").to(teacher.device)
        embeds = teacher_embeds(teacher, tokens["input_ids"], tokens["attention_mask"]).half().cpu().numpy()
        ends = np.cumsum([len(captions) for captions in rows])[:-1]
        return {"teacher_embeds": [row.reshape(-1) for row in np.split(embeds, ends)]}

    key = fingerprint(dataset, teacher.named_parameters(), tokenizer_settings(tokenizer), caption_column)
    return _add_column(dataset, "teacher_embeds", List(Value("float16")), embed, [caption_column], key, cache_dir)


def add_image_features(
    dataset: Dataset,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    tokens: str = "all",
    image_column: str = "image",
    cache_dir: str | None = None,
) -> Dataset:
    """Replace the image column by `image_features`: V of every token ("all") or of the first one ("pooled").

    The key covers the model's frozen parameters, which are CLIP's as long as nothing of BART is frozen yet.
    """

    @torch.no_grad()
    def encode(batch: dict[str, list], indices: list[int]) -> dict[str, np.ndarray]:
        for index, image in zip(indices, batch[image_column], strict=True):
            check_image(image, index, image_column)
        pixel_values = processor(images=batch[image_column], return_tensors="pt")["pixel_values"].to(model.device)
        features = model.get_image_features(pixel_values).last_hidden_state  # (batch, image_tokens, projection_dim)
        features = features if tokens == "all" else features[:, :1]
        return {"image_features": features.flatten(1).half().cpu().numpy()}

    width = encode(dataset[:1], [0])["image_features"].shape[1]
    frozen = ((name, parameter) for name, parameter in model.named_parameters() if not parameter.requires_grad)
    settings = (processor.image_processor.to_json_string(), image_column, tokens, model.config.patch_attention)
    key = fingerprint(dataset, frozen, *settings)
    column = List(Value("float16"), length=width)
    return _add_column(dataset, "image_features", column, encode, [image_column], key, cache_dir, [image_column])


def fingerprint(dataset: Dataset, parameters: Iterable[tuple[str, Tensor]], *settings: str) -> str:
    """A key of the data, of the weights' names and values, and of the settings."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (dataset._fingerprint, *settings):  # the only name under which `datasets` offers its fingerprint
        digest.update(part.encode() + b"\0")
    for name, parameter in parameters:
        digest.update(name.encode() + str(parameter.dtype).encode())
        digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def tokenizer_settings(tokenizer: PreTrainedTokenizerBase) -> str:
    """All that decides what a text is cut into; without padding and truncation, which each call sets anew."""
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.no_padding()
    backend.no_truncation()
    return f"{tokenizer.model_max_length} {backend.to_str()}"


def _add_column(
    dataset: Dataset,
    name: str,
    column: List,
    compute: Callable[..., dict[str, Any]],
    inputs: list[str],
    key: str,
    cache_dir: str | None,
    drop: Sequence[str] = (),
) -> Dataset:
    """Map `compute` over `inputs` alone, into a file named by the key, and put the result beside the other columns."""
    folder = Path(cache_dir) if cache_dir else Path(datasets_config.HF_DATASETS_CACHE) / "vlkd"
    folder.mkdir(parents=True, exist_ok=True)
    dataset = dataset.with_format(None)
    computed = dataset.select_columns(inputs).map(
        compute,
        batched=True,
        batch_size=BATCH_SIZE,
        with_indices=True,
        remove_columns=inputs,
        features=Features({name: column}),
        new_fingerprint=key,
        cache_file_name=str(folder / f"{name}-{key}.arrow"),
        desc=f"CLIP's {name}",
    )
    joined = concatenate_datasets([dataset.remove_columns(list(drop)), computed], axis=1)
    cached = [column for column in ("image_features", "teacher_embeds") if column in joined.column_names]
    return joined.with_format("numpy", columns=cached, output_all_columns=True)
