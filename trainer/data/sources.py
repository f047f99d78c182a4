"""Load the datasets that a run names, as rows of an image and captions."""

import json
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tarfile import TarError
from typing import Any

import datasets
from datasets import Dataset, Features, Image, IterableDataset, List, Value
from datasets.exceptions import DatasetsError
from datasets.packaged_modules.webdataset.webdataset import WebDataset

from trainer.arguments import DataArguments
from trainer.data.metadata import as_text, file_dates, load_files
from trainer.data.paths import is_missing_path
from trainer.data.rows import DataError, as_rows

FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
SHARDS = 64  # a dataset that lies on disk as a whole is streamed in so many pieces, in every layout alike
# A caption in a tar file that is not UTF-8 would end the reading of its shard; this way its row is known as flawed.
WebDataset.DECODERS = {**WebDataset.DECODERS, "txt": lambda data: data.decode("utf-8", errors="replace")}


def load_split(
    spec: str, split: str, streaming: bool = False, texts: Sequence[str] = (), **kwargs
) -> datasets.Dataset | datasets.IterableDataset:
    """One split of the dataset that `spec` names.

    Args:
        spec: a folder that `save_to_disk` wrote, a folder of files or a name on the Hub that `load_dataset` reads, or
            `"module:function"`: `function(split=split, **kwargs)` is called; the working directory is importable.
        split: the split's name.
        streaming: whether `load_dataset` streams; `save_to_disk` folders and functions give ordinary datasets.
        texts: columns that a CSV file is not to convert: 1984, true, None and N/A stay text.
        **kwargs: arguments of `load_dataset` or of the function.

    Raises:
        ValueError: there is no such dataset, function or split.
    """
    spec = os.path.expanduser(spec)
    is_folder = Path(spec).is_dir()
    if FUNCTION.fullmatch(spec) and not Path(spec).exists():
        return import_function(spec, "dataset")(split=split, **kwargs)
    if is_folder and (Path(spec, "dataset_dict.json").exists() or Path(spec, "state.json").exists()):
        return _split_of_saved(spec, split)
    if "://" in spec:
        raise ValueError(f"dataset '{spec}' is a URL: {_instead_of_url(spec)}.")
    if is_missing_path(spec):
        raise ValueError(f"dataset '{spec}' does not exist: give a folder, or a name on the Hub.")
    if is_folder and "data_files" not in kwargs:  # a bare `text` or `csv` is a builder of `load_dataset`
        spec = os.path.abspath(spec)
    try:
        return load_files(spec, split, streaming, texts, **kwargs)
    except (OSError, ValueError, TarError, DatasetsError) as error:  # Not found, no connection: an OSError
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        where = "from disk" if Path(spec).exists() else "from the Hub, and there is no such folder here"
        raise ValueError(f"dataset '{spec}', split '{split}', cannot be loaded {where}: {reason}") from error


def _instead_of_url(spec: str) -> str:
    repository = re.fullmatch(r"hf://datasets/([\w.-]+/[\w.-]+)/?", spec)
    if repository:
        return f"write dataset_name: {repository[1]}"
    options = f"dataset_name: parquet, dataset_kwargs: {{data_files: '{spec}'}}"
    return f"name the files' format and their URL, such as {options}"


def check_columns(names: Sequence[str], spec: str, **columns: str) -> None:
    """Raise a ValueError if a column that an argument names (`caption_column="caption"`) is not among `names`."""
    for argument, column in columns.items():
        if column not in names:
            dataset = f"dataset '{spec}'" if spec else "the dataset"
            found = ", ".join(names)
            raise DataError(
                f"{argument}: {dataset} has no column '{column}'; it has {found}. Set {argument} to its name."
            )


def import_function(spec: str, what: str) -> Callable:
    """The function that `"module:function"` names; the working directory is importable.

    Raises:
        ValueError: there is none.
    """
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return pkgutil.resolve_name(spec)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{what} '{spec}' should name an importable function as 'module:function': {error}"
        ) from error


def _split_of_saved(folder: str, split: str) -> datasets.Dataset:
    saved = datasets.load_from_disk(folder)
    if isinstance(saved, datasets.Dataset):  # one split was saved, whose name the folder may not tell
        saved = {str(saved.split or "train"): saved}
    if split not in saved:
        raise ValueError(f"dataset '{folder}' has no split '{split}'; it has {', '.join(saved)}.")
    return saved[split]


def load_sources(args: DataArguments, split: str, streaming: bool) -> list[Dataset | IterableDataset]:
    """One split of each dataset that `args` names: its images, not decoded, and captions, in columns of one name each.

    Raises:
        ValueError: a dataset, file, split or column is missing, or of the wrong kind.
    """
    specs = zip(args.dataset_name, args.image_column, args.caption_column, strict=True)
    loaded = [load_source(spec, split, image, caption, args, streaming) for spec, image, caption in specs]
    names = (args.image_column[0], args.caption_column[0])
    return [source.rename_columns(_other_names(source, names)) for source in loaded]


def load_source(
    spec: str, split: str, image_column: str, caption_column: str, args: DataArguments, streaming: bool
) -> Dataset | IterableDataset:
    """One split of one dataset, as `load_sources` tells."""
    if spec.endswith(".json"):
        root = (args.image_dir or "").replace("{split}", split)
        source = load_coco(spec.replace("{split}", split), root, image_column, caption_column)
    else:
        columns = [image_column, caption_column]
        source = load_split(spec, split, streaming, texts=columns, **args.dataset_kwargs)
    check_columns(source.column_names, spec, image_column=image_column, caption_column=caption_column)
    source = source.select_columns([image_column, caption_column])
    kind = source.features[image_column] if source.features else None
    if kind in (Value("string"), Value("large_string")) and args.image_dir:
        options = {"column": image_column, "root": args.image_dir}
        source = source.map(_with_root, fn_kwargs=options, features=source.features)
    if isinstance(kind, (Image, Value)):
        source = source.cast_column(image_column, Image(decode=False))
    if streaming and isinstance(source, Dataset):
        source = source.to_iterable_dataset(num_shards=max(1, min(SHARDS, len(source))))
    return source


def load_coco(file: str, image_dir: str, image_column: str = "image", caption_column: str = "caption") -> Dataset:
    """The images of a COCO caption file, in its order, with all captions of each.

    Args:
        file: JSON of `images` (`id`, `file_name`) and `annotations` (`image_id`, `caption`).
        image_dir: the folder of the images; that of the file if empty.

    Raises:
        ValueError: the file cannot be read, or is no such file.
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
            f"dataset '{file}' is no COCO caption file, with the lists images (id, file_name) and annotations "
            f"(image_id, caption): {type(error).__name__}: {error}."
        ) from error
    features = Features({image_column: Image(decode=False), caption_column: List(Value("string"))})
    rows = {image_column: paths, caption_column: list(captions.values())}
    # What is cached of the rows is found by their content: an image that was replaced must make a difference.
    return Dataset.from_dict(rows, info=datasets.DatasetInfo(description=file_dates(paths), features=features))


def join_sources(
    sources: list[Dataset], caption_column: str, weights: list[float] | None = None, seed: int = 0
) -> Dataset:
    """The rows of all sources as one dataset: one source after the other, or, with weights, drawn from them at random
    until each row of each was there, those of smaller or preferred sources several times."""
    if len(sources) == 1:
        return sources[0]
    if len({str(source.features[caption_column]) for source in sources}) > 1:
        sources = [_with_lists(source, caption_column) for source in sources]
    if weights is None:
        return datasets.concatenate_datasets(sources)
    shares = [weight / sum(weights) for weight in weights]
    return datasets.interleave_datasets(sources, shares, seed, stopping_strategy="all_exhausted")


def to_disk(source: IterableDataset) -> Dataset:
    """A stream's rows by number, in the cache folder of `datasets`."""
    return Dataset.from_generator(_rows, gen_kwargs={"source": source}, features=source.features)


def _rows(source: IterableDataset):
    for table in source.with_format("arrow").iter(batch_size=16):
        for row in as_rows(table):
            yield {name: _decoded(value) for name, value in row.items()}


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(part) for part in value]
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _texts(captions: Any) -> list[str | None]:
    return [as_text(caption) for caption in (captions if isinstance(captions, list) else [captions])]


def _with_root(row: dict[str, Any], column: str, root: str) -> dict[str, Any]:
    return {column: os.path.join(root, row[column])} if row[column] and "://" not in row[column] else {}


def _other_names(source: Dataset | IterableDataset, names: tuple[str, str]) -> dict[str, str]:
    return {old: new for old, new in zip(source.column_names, names, strict=True) if old != new}


def _with_lists(source: Dataset, column: str) -> Dataset:
    """With a list of captions in each row, where there was one caption; the other columns are not copied."""
    if source.features[column] == List(Value("string")):
        return source
    lists = source.select_columns([column]).map(
        lambda rows: {column: [_texts(captions) for captions in rows[column]]},
        batched=True,
        features=Features({column: List(Value("string"))}),
    )
    return datasets.concatenate_datasets([source.remove_columns([column]), lists], axis=1)
