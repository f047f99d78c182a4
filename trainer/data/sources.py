"""Load the datasets of a run as rows of an image and captions."""

import inspect
import json
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tarfile import TarError
from typing import Any

import datasets
from datasets import Dataset, Features, Image, IterableDataset, List, Value
from datasets.exceptions import DatasetsError

from trainer.arguments import DataArguments
from trainer.data.metadata import as_text_list, file_dates, load_files
from trainer.data.paths import is_missing_path
from trainer.data.rows import check_column, iterate_rows

FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
SHARDS = 64  # a map-style dataset is streamed in this many pieces


def load_sources(args: DataArguments, split: str, streaming: bool) -> list[Dataset | IterableDataset]:
    """One split of each dataset in `args`: undecoded images and captions, with the column names of the first one.

    Raises:
        ValueError: a dataset, file, split or column is missing, or of the wrong kind.
    """
    sources = []
    for spec, *columns in zip(args.dataset_name, args.image_column, args.caption_column, strict=True):
        source = _load_source(args, spec, split, *columns, streaming)
        names = zip(columns, (args.image_column[0], args.caption_column[0]), strict=True)
        sources.append(source.rename_columns({old: new for old, new in names if old != new}))
    return sources


def _load_source(
    args: DataArguments, spec: str, split: str, image_column: str, caption_column: str, streaming: bool
) -> Dataset | IterableDataset:
    columns = {"image_column": image_column, "caption_column": caption_column}
    if spec.endswith(".json"):
        root = (args.image_dir or "").replace("{split}", split)
        source = load_coco(spec.replace("{split}", split), root, image_column, caption_column)
    else:
        source = load_split(spec, split, streaming, texts=list(columns.values()), **args.dataset_kwargs)
    for option, column in columns.items():
        check_column(column, source.column_names, f"dataset '{spec}'", option)
    source = source.select_columns(list(columns.values()))
    kind = source.features[image_column] if source.features else None
    if kind in (Value("string"), Value("large_string")) and args.image_dir:
        options = {"column": image_column, "root": args.image_dir}
        source = source.map(_with_root, fn_kwargs=options, features=source.features)
    source = with_undecoded(source, image_column)
    if streaming and isinstance(source, Dataset):
        source = source.to_iterable_dataset(num_shards=max(1, min(SHARDS, len(source))))
    return source


def with_undecoded(source: Dataset | IterableDataset, image_column: str) -> Dataset | IterableDataset:
    """The dataset with its images as paths or bytes."""
    kind = source.features[image_column] if source.features else None
    return source.cast_column(image_column, Image(decode=False)) if isinstance(kind, (Image, Value)) else source


def _with_root(row: dict[str, Any], column: str, root: str) -> dict[str, Any]:
    return {column: os.path.join(root, row[column])} if row[column] and "://" not in row[column] else {}


def load_split(
    spec: str, split: str, /, streaming: bool = False, texts: Sequence[str] = (), **kwargs: Any
) -> Dataset | IterableDataset:
    """One split of the dataset that `spec` names.

    Args:
        spec: a folder that `save_to_disk` wrote, a folder of files or a name on the Hub that `load_dataset` reads, or
            `"module:function"`: `function(split=split, **kwargs)` is called; the working directory is importable.
        split: the split's name.
        streaming: passed to `load_dataset`; all other sources return a `Dataset`.
        texts: columns of CSV files and image folders that are kept as text, such as 1984, true, None and N/A.
        **kwargs: arguments of `load_dataset` or of the function.

    Raises:
        ValueError: there is no such dataset, function or split, or the function does not take `kwargs`.
    """
    if "split" in kwargs:
        raise ValueError(f"dataset_kwargs has split: {kwargs['split']!r}; name the split by its own option.")
    spec = os.path.expanduser(spec)
    is_folder = Path(spec).is_dir()
    if FUNCTION.fullmatch(spec) and not Path(spec).exists():
        return _call(spec, split=split, **kwargs)
    if is_folder and (Path(spec, "dataset_dict.json").exists() or Path(spec, "state.json").exists()):
        return _split_of_saved(spec, split)
    if "://" in spec:
        raise ValueError(
            f"dataset '{spec}' is a URL: give a name on the Hub (user/name), or the files' format and URL, such as "
            f"dataset_name: parquet, dataset_kwargs: {{data_files: '{spec}'}}."
        )
    if is_missing_path(spec):
        raise ValueError(f"dataset '{spec}' does not exist: give a folder, or a name on the Hub (user/name).")
    if is_folder and "data_files" not in kwargs:  # a bare `text` or `csv` is a builder of `load_dataset`
        spec = os.path.abspath(spec)
    try:
        return load_files(spec, split, streaming, texts, **kwargs)
    except (OSError, ValueError, TarError, DatasetsError) as error:  # not found, no connection: an OSError
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        where = "from disk" if Path(spec).exists() else "from the Hub, and there is no such local folder"
        raise ValueError(f"dataset '{spec}', split '{split}', cannot be loaded {where}: {reason}") from error


def _call(spec: str, **kwargs: Any) -> Dataset:
    function = import_function(spec, "dataset")
    try:
        inspect.signature(function).bind(**kwargs)
    except TypeError as error:
        raise ValueError(f"dataset '{spec}' does not take these dataset_kwargs: {error}.") from error
    return function(**kwargs)


def _split_of_saved(folder: str, split: str) -> Dataset:
    try:
        saved = datasets.load_from_disk(folder)
    except IndexError as error:  # of a dataset without rows
        raise ValueError(f"dataset '{folder}' has no rows.") from error
    if isinstance(saved, Dataset):  # a single split, which may have no name
        saved = {str(saved.split or "train"): saved}
    if split not in saved:
        raise ValueError(f"dataset '{folder}' has no split '{split}'; it has {', '.join(saved)}.")
    return saved[split]


def import_function(spec: str, what: str) -> Callable:
    """The function that `"module:function"` names; the working directory is importable.

    Raises:
        ValueError: it cannot be imported.
    """
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return pkgutil.resolve_name(spec)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{what} '{spec}' should name an importable function as 'module:function': {error}"
        ) from error


def load_coco(file: str, image_dir: str, image_column: str = "image", caption_column: str = "caption") -> Dataset:
    """The images of a COCO caption file, in its order, with all captions of each.

    Args:
        file: JSON of `images` (`id`, `file_name`) and `annotations` (`image_id`, `caption`).
        image_dir: folder of the images; the folder of `file` if empty.
        image_column, caption_column: names of the new columns.

    Raises:
        ValueError: the file cannot be read, or is not a COCO caption file.
    """
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8", errors="replace"))
        captions: dict[Any, list[str]] = {image["id"]: [] for image in content["images"]}
        for annotation in content["annotations"]:
            captions[annotation["image_id"]].append(annotation["caption"])
        root = Path(image_dir or Path(file).parent)
        paths = [str(root / image["file_name"]) for image in content["images"]]
    except OSError as error:
        raise ValueError(f"dataset '{file}' cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"dataset '{file}' is not a COCO caption file, with the lists images (id, file_name) and annotations "
            f"(image_id, caption): {type(error).__name__}: {error}."
        ) from error
    features = Features({image_column: Image(decode=False), caption_column: List(Value("string"))})
    rows = {image_column: paths, caption_column: list(captions.values())}
    # The file dates are part of the fingerprint, so that the feature cache detects replaced images.
    return Dataset.from_dict(rows, info=datasets.DatasetInfo(description=file_dates(paths), features=features))


def mix_sources(
    sources: list[Dataset], caption_column: str, probabilities: list[float] | None = None, seed: int = 0
) -> Dataset:
    """Concatenate the sources, or interleave them at random with these probabilities.

    Interleaving ends when every row of every source was drawn; rows of some sources are then drawn several times.
    """
    if len(sources) == 1:
        return sources[0]
    if len({str(source.features[caption_column]) for source in sources}) > 1:
        sources = [_with_caption_lists(source, caption_column) for source in sources]
    if probabilities is None:
        return datasets.concatenate_datasets(sources)
    probabilities = [probability / sum(probabilities) for probability in probabilities]
    return datasets.interleave_datasets(sources, probabilities, seed, stopping_strategy="all_exhausted")


def _with_caption_lists(source: Dataset, column: str) -> Dataset:
    """Convert single captions to lists of one, without copying the other columns."""
    if source.features[column] == List(Value("string")):
        return source
    lists = source.select_columns([column]).map(
        lambda rows: {column: list(map(as_text_list, rows[column]))},
        batched=True,
        features=Features({column: List(Value("string"))}),
    )
    return datasets.concatenate_datasets([source.remove_columns([column]), lists], axis=1)


def to_disk(source: IterableDataset) -> Dataset:
    """Write a stream to the cache folder of `datasets`, and return it as a map-style dataset."""
    return Dataset.from_generator(_decoded_rows, gen_kwargs={"source": source}, features=source.features)


def _decoded_rows(source: IterableDataset) -> Iterator[dict[str, Any]]:
    for row in iterate_rows(source):
        yield {name: _decoded(value) for name, value in row.items()}


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(part) for part in value]
    return value.decode(errors="replace") if isinstance(value, bytes) else value
