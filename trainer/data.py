"""Where the examples come from: datasets by name, and the rows a training step sees."""

import importlib
import sys
from pathlib import Path
from typing import Any

import datasets
import torch
from torch.utils.data import Dataset

from trainer.infilling import seeded_rng

DOCUMENTS = 1  # the random stream that draws replay documents; stream 0 draws captions and corruptions


class EpochDataset(Dataset):
    """Rows that know their place: each carries `index` and `epoch`, and, with `texts`, a `document` to replay.

    Captions and corruptions are drawn from (seed, epoch, index), hence alike in every process layout. The epoch lives
    in shared memory, so that persistent workers see it change. It is deliberately not called `set_epoch`: accelerate
    calls a method of that name on one process and not on several, and on evaluation data too.

    Args:
        dataset: rows by number.
        texts: the documents of the text replay; one is drawn for each row and epoch.
        seed: of that draw.
    """

    def __init__(self, dataset: datasets.Dataset, texts: datasets.Column | list[str] | None = None, seed: int = 0):
        if isinstance(dataset, datasets.IterableDataset):
            raise ValueError(
                "the dataset is a streaming one; load it with streaming=False (rows are seeded by index)."
            )
        self.dataset = dataset
        self.texts = texts
        self.seed = seed
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._complete(self.dataset[index], index)

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """One read for a whole batch, which `datasets` does much faster than row by row."""
        if not hasattr(self.dataset, "__getitems__"):
            return [self[index] for index in indices]
        rows = self.dataset.__getitems__(indices)
        return [self._complete(row, index) for row, index in zip(rows, indices, strict=True)]

    def start_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def _complete(self, row: dict[str, Any], index: int) -> dict[str, Any]:
        epoch = int(self._epoch)
        row = {**row, "index": index, "epoch": epoch}
        if self.texts is not None:
            rng = seeded_rng(self.seed, DOCUMENTS, epoch, index)
            number = int(rng.integers(len(self.texts)))
            row["document"] = self.texts[number]
            if not isinstance(row["document"], str) or not row["document"].strip():
                raise ValueError(f"document {number} of the replay is {row['document']!r}. Filter such documents out.")
        return row


def load_split(spec: str, split: str, **kwargs) -> datasets.Dataset:
    """One split of the dataset that `spec` names.

    Args:
        spec: a folder that `save_to_disk` wrote, a folder of files or a name on the Hub that `load_dataset` reads, or
            `"module:function"`: `function(split=split, **kwargs)` is called; the working directory is importable.
        split: the split's name.

    Raises:
        ValueError: there is no such dataset, function or split.
    """
    if ":" in spec and not Path(spec).exists():
        return _import_function(spec)(split=split, **kwargs)
    if Path(spec).is_dir() and (Path(spec, "dataset_dict.json").exists() or Path(spec, "state.json").exists()):
        return _split_of_saved(spec, split)
    try:
        return datasets.load_dataset(spec, split=split, **kwargs)
    except (OSError, ValueError) as error:  # DatasetNotFoundError and ConnectionError are OSErrors
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"dataset '{spec}', split '{split}', cannot be loaded from disk or the Hub: {reason}"
        ) from error


def check_columns(dataset: datasets.Dataset, spec: str, **columns: str) -> None:
    """Raise a ValueError if a column that an argument names (`caption_column="caption"`) is not in the dataset."""
    for argument, column in columns.items():
        if column not in dataset.column_names:
            raise ValueError(
                f"{argument}: dataset '{spec}' has no column '{column}'; it has {', '.join(dataset.column_names)}."
            )


def list_captions(captions: Any, index: int, column: str) -> list[str]:
    """The captions of one row as a list.

    Raises:
        ValueError: there is none, or one is no text or empty; it names row and column.
    """
    texts = [captions] if isinstance(captions, str) else captions
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(
            f"row {index}: column '{column}' holds {captions!r}; every caption must be a text that is not empty. "
            "Filter such rows out."
        )
    return texts


def check_image(image: Any, index: int, column: str) -> None:
    """Raise a ValueError that names row and column if the row has no image."""
    if image is None:
        raise ValueError(f"row {index}: column '{column}' holds no image. Filter such rows out.")


def _import_function(spec: str):
    module_name, _, function_name = spec.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module_name), function_name)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ValueError(
            f"dataset '{spec}' should name an importable function as 'module:function': {error}"
        ) from error


def _split_of_saved(folder: str, split: str) -> datasets.Dataset:
    saved = datasets.load_from_disk(folder)
    if isinstance(saved, datasets.Dataset):  # one split was saved, whose name the folder may not tell
        saved = {str(saved.split or "train"): saved}
    if split not in saved:
        raise ValueError(f"dataset '{folder}' has no split '{split}'; it has {', '.join(saved)}.")
    return saved[split]
