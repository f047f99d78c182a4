"""Image search: CLIP's embeddings of images in an index on disk, which a text or an image is compared with."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import datasets
import faiss
import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel

from modeling_vlkd import VLKDProcessor
from modeling_vlkd.image_loading_vlkd import read_image
from trainer.image_loader import ImageBatch, load_images, min_jpeg_side

COLUMN = "embedding"  # of the dataset, and the name of its FAISS index
FAISS_FILE = "embedding.faiss"
MODEL_FILE = "vlkd_index.json"  # {"model": its name, "digest": the hash of its files}
BATCH = 64  # images


@torch.no_grad()
def embed_images(
    model: PreTrainedModel, processor: VLKDProcessor, images: list[Path | str]
) -> Iterator[tuple[ImageBatch, np.ndarray]]:
    """Yield batches of images, in order, with the embeddings (n, d_j) of those that could be read.

    Args:
        model, processor: what `load_for_inference` returns.
        images: paths and URLs.
    """
    read = partial(read_image, min_side=min_jpeg_side(processor))
    for batch in load_images(read, images, processor, BATCH):
        if not batch.numbers:
            yield batch, np.empty((0, model.config.projection_dim), np.float32)
            continue
        pixels = batch.pixel_values.to(model.device, model.dtype)
        yield batch, _unit(model.get_image_features(pixels).pooler_output)


@torch.no_grad()
def embed_text(model: PreTrainedModel, processor: VLKDProcessor, text: str) -> np.ndarray:
    """The embedding (d_j,) of a text.

    Raises:
        ValueError: the text is longer than BART's limit.
    """
    inputs = processor(text=[text]).to(model.device)
    return _unit(model.get_text_features(**inputs).pooler_output)[0]


def _unit(embeds: torch.Tensor) -> np.ndarray:
    """Unit vectors in float32; those of a model in bfloat16 are of unit norm to two digits only."""
    return torch.nn.functional.normalize(embeds.float(), dim=-1).cpu().numpy()


@contextmanager
def new_index(folder: Path, overwrite: bool) -> Iterator[Path]:
    """Yield an empty folder, which is renamed to `folder` at the end; an error leaves everything as it was.

    Raises:
        ValueError: `folder` exists, and is not an index or `overwrite` is False.
    """
    if folder.exists() and not (folder / MODEL_FILE).is_file():
        raise ValueError(f"--output {folder} exists and is not an index; give a new folder.")
    if folder.exists() and not overwrite:
        raise ValueError(f"--output {folder} is an index; give a new folder, or replace it with --overwrite.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        new, old = Path(scratch, "new"), Path(scratch, "old")
        new.mkdir()
        yield new
        if folder.exists():
            os.rename(folder, old)
        try:
            os.rename(new, folder)
        except OSError:
            if old.exists():
                os.rename(old, folder)
            raise


def write_index(folder: Path, images: list[str], embeddings: Iterable[np.ndarray], model: str, digest: str) -> None:
    """Write an index into an empty folder.

    Args:
        folder: an empty folder.
        images: n absolute paths or URLs.
        embeddings: their unit vectors, in arrays (any number, d_j), n rows in all.
        model: the name of the model that made them.
        digest: the hash of its files.
    """
    datasets.disable_progress_bars()
    dataset = Dataset.from_dict({"path": images, COLUMN: np.concatenate([*embeddings])})
    dataset.save_to_disk(folder)
    indexed = dataset.with_format("numpy")
    indexed.add_faiss_index(COLUMN, metric_type=faiss.METRIC_INNER_PRODUCT)
    indexed.save_faiss_index(COLUMN, folder / FAISS_FILE)
    made_by = json.dumps({"model": model, "digest": digest}, ensure_ascii=False, indent=2)
    (folder / MODEL_FILE).write_text(f"{made_by}\n", encoding="utf-8")


def load_index(folder: Path) -> tuple[Dataset, str, str]:
    """The dataset with its FAISS index, and the name and digest of the model that made it.

    Raises:
        ValueError: `folder` is not an index, or cannot be read.
    """
    if not (folder / MODEL_FILE).is_file():
        raise ValueError(f"--index {folder} is not an index: it has no {MODEL_FILE}. `vlkd embed` makes one.")
    try:
        made_by = json.loads((folder / MODEL_FILE).read_text(encoding="utf-8"))
        model, digest = made_by["model"], made_by["digest"]
        dataset = datasets.load_from_disk(str(folder))
        dataset.load_faiss_index(COLUMN, folder / FAISS_FILE)
    except Exception as error:  # each library raises its own types for a broken file
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(
            f"--index {folder} cannot be read ({reason}). Make it again with `vlkd embed ... --overwrite`."
        ) from error
    return dataset, model, digest


def nearest(dataset: Dataset, embedding: np.ndarray, top_k: int) -> list[tuple[str, float]]:
    """The paths that are nearest to an embedding (d_j,), at most `top_k`, with their cosine similarities."""
    scores, found = dataset.get_nearest_examples(COLUMN, embedding, k=min(top_k, len(dataset)))
    return list(zip(found["path"], scores.tolist(), strict=True))
