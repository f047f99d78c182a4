"""What train.yaml names as data, as the trainer takes it: rows by number, with what CLIP says of them, or a stream."""

from typing import Any

import datasets
from transformers import CLIPTextModelWithProjection, PreTrainedTokenizerBase

from modeling_vlkd import VLKDForConditionalGeneration, VLKDProcessor
from trainer.arguments import DataArguments
from trainer.column_cache import CachedColumn, check_room, fill
from trainer.data import EpochDataset, check_columns, load_split
from trainer.feature_cache import beside, features_column, teacher_column
from trainer.flaws import RowReader, SkippedRows, drop_flawed, flaws_column
from trainer.rows import draft_side
from trainer.sources import join_sources, load_sources, to_disk
from trainer.streaming import StreamingDataset
from trainer.training_args import VLKDTrainingArguments


def load_rows(
    data_args: DataArguments,
    args: VLKDTrainingArguments,
    split: str,
    model: VLKDForConditionalGeneration,
    processor: VLKDProcessor,
    teacher: CLIPTextModelWithProjection,
    teacher_tokenizer: PreTrainedTokenizerBase,
) -> EpochDataset:
    """A split by number, without rows whose captions (with `image_features`: or images) are flawed, the cache filled.

    Other flawed images are passed over when they are read.

    Raises:
        ValueError: a dataset, split or column is missing, the split is empty, or too many rows are flawed.
    """
    image_column, caption_column = data_args.image_column[0], data_args.caption_column[0]
    cached = data_args.image_features != "off"
    with args.main_process_first(desc="feature cache"):  # the others read what the first one wrote
        sources = load_sources(data_args, split, streaming=data_args.streaming)
        sources = [to_disk(source) if data_args.streaming else source for source in sources]
        count = sum(map(len, sources))
        if not count:
            raise ValueError(f"dataset: split '{split}' of {' and '.join(data_args.dataset)} has no rows.")
        read = row_reader(data_args, args, split, processor, count)
        workers, cache_dir = args.dataloader_num_workers, data_args.cache_dir

        def feature_columns(source: datasets.Dataset) -> list[CachedColumn]:
            columns = [teacher_column(source, teacher, teacher_tokenizer, caption_column, cache_dir)]
            if cached:
                options = (data_args.image_features, image_column, cache_dir, workers)
                columns.append(features_column(source, model, processor, *options))
            return columns

        checked = [caption_column, *([image_column] if cached else [])]
        firsts = [sum(map(len, sources[:number])) for number in range(len(sources))]
        looking = [(read, checked, cache_dir, first, workers) for first in firsts]
        if any(flaws_column(source, *how).missing() for source, how in zip(sources, looking, strict=True)):
            check_room([column for source in sources for column in feature_columns(source)])  # it may take hours
        sources = [drop_flawed(source, *how) for source, how in zip(sources, looking, strict=True)]
        columns = [feature_columns(source) for source in sources]
        fill([column for of_source in columns for column in of_source])
        sources = [source.remove_columns(image_column) if cached else source for source in sources]
        sources = [beside(source, of_source) for source, of_source in zip(sources, columns, strict=True)]
        joined = join_sources(sources, caption_column, data_args.dataset_weights, args.seed)
        return EpochDataset(joined, load_texts(data_args, args, split), args.seed, read)


def load_stream(
    data_args: DataArguments, args: VLKDTrainingArguments, split: str, processor: VLKDProcessor
) -> StreamingDataset:
    """A split as a stream, for this process.

    Raises:
        ValueError: a dataset, split or column is missing, or an option does not suit a stream.
    """
    if args.max_steps <= 0:
        raise ValueError("streaming is on, but max_steps is not set: a stream has no length; set the number of steps.")
    for name in ("eval_strategy", "save_strategy"):
        if getattr(args, name) == "epoch":
            raise ValueError(f"{name} is epoch, and a stream's epochs end unnoticed; set it to steps.")
    with args.main_process_first(desc="dataset"):
        return StreamingDataset(
            load_sources(data_args, split, streaming=True),
            row_reader(data_args, args, split, processor),
            weights=data_args.dataset_weights,
            texts=load_texts(data_args, args, split),
            seed=args.seed,
            buffer=data_args.shuffle_buffer,
            rank=args.process_index,
            world_size=args.world_size,
        )


def row_reader(
    data_args: DataArguments,
    args: VLKDTrainingArguments,
    split: str,
    processor: VLKDProcessor,
    rows: int | None = None,
) -> RowReader:
    """How the rows of a split are read, and what becomes of flawed ones; `rows` as in `SkippedRows`."""
    skipped = SkippedRows(args.output_dir, split, rows, data_args.max_skipped, data_args.on_error)
    return RowReader(data_args.image_column[0], data_args.caption_column[0], skipped, draft_side(processor))


def load_texts(data_args: DataArguments, args: VLKDTrainingArguments, split: str) -> datasets.Column | None:
    """The column of documents of one split, if there is a replay."""
    if not args.replay_weight:
        return None
    columns = [data_args.text_column]
    dataset: Any = load_split(data_args.text_dataset, split, texts=columns, **data_args.text_dataset_kwargs)
    check_columns(dataset.column_names, data_args.text_dataset, text_column=data_args.text_column)
    return dataset[data_args.text_column]
