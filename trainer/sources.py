"""Where images and captions come from: what `dataset` names in train.yaml, as rows of two columns."""

import json
import os
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, Features, Image, IterableDataset, List, Value
from datasets.packaged_modules.webdataset.webdataset import WebDataset

from trainer.arguments import DataArguments
from trainer.data import as_rows, as_text, check_columns, load_split
from trainer.metadata import file_dates

SHARDS = 64  # a dataset that lies on disk as a whole is streamed in so many pieces, in every layout alike

# A caption in a tar file that is not UTF-8 would end the reading of its shard; this way its row is known as flawed.
WebDataset.DECODERS = {**WebDataset.DECODERS, "txt": lambda data: data.decode("utf-8", errors="replace")}


def load_sources(args: DataArguments, split: str, streaming: bool) -> list[Dataset | IterableDataset]:
    """One split of each dataset that `args` names: its images, not decoded, and captions, in columns of one name each.

    Raises:
        ValueError: a dataset, file, split or column is missing, or of the wrong kind.
    """
    specs = zip(args.dataset, args.image_column, args.caption_column, strict=True)
    loaded = [load_source(spec, split, image, caption, args, streaming) for spec, image, caption in specs]
    names = (args.image_column[0], args.caption_column[0])
    return [source.rename_columns(_other_names(source, names)) for source in loaded]


def load_source(
    spec: str, split: str, image_column: str, caption_column: str, args: DataArguments, streaming: bool
) -> Dataset | IterableDataset:
    """One split of one dataset, as `load_sources` tells."""
    if spec.endswith(".json"):
        root = (args.image_root or "").replace("{split}", split)
        source = load_coco(spec.replace("{split}", split), root, image_column, caption_column)
    else:
        columns = [image_column, caption_column]
        source = load_split(spec, split, streaming, texts=columns, **args.dataset_kwargs)
    check_columns(source.column_names, spec, image_column=image_column, caption_column=caption_column)
    source = source.select_columns([image_column, caption_column])
    kind = source.features[image_column] if source.features else None
    if kind in (Value("string"), Value("large_string")) and args.image_root:
        options = {"column": image_column, "root": args.image_root}
        source = source.map(_with_root, fn_kwargs=options, features=source.features)
    if isinstance(kind, (Image, Value)):
        source = source.cast_column(image_column, Image(decode=False))
    if streaming and isinstance(source, Dataset):
        source = source.to_iterable_dataset(num_shards=max(1, min(SHARDS, len(source))))
    return source


def load_coco(file: str, image_root: str, image_column: str = "image", caption_column: str = "caption") -> Dataset:
    """The images of a COCO caption file, in its order, with all captions of each.

    Args:
        file: JSON of `images` (`id`, `file_name`) and `annotations` (`image_id`, `caption`).
        image_root: the folder of the images; that of the file if empty.

    Raises:
        ValueError: the file cannot be read, or is no such file.
    """
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8", errors="replace"))
        captions: dict[Any, list[str]] = {image["id"]: [] for image in content["images"]}
        for annotation in content["annotations"]:
            captions[annotation["image_id"]].append(annotation["caption"])
        root = Path(image_root or Path(file).parent)
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
