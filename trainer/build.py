"""From the options of a run to a ready `VLKDTrainer`."""

from dataclasses import asdict
from pathlib import Path

import datasets
from transformers import CLIPTextModelWithProjection, PreTrainedTokenizerBase, set_seed
from transformers.trainer_utils import HubStrategy

from modeling_vlkd import VLKDForConditionalGeneration, VLKDProcessor
from trainer.arguments import CONFIG_OPTIONS, DataArguments, ModelArguments, VLKDTrainingArguments
from trainer.cache.bad_rows import drop_invalid_rows, invalid_rows_column
from trainer.cache.clip_features import beside, features_column, teacher_column
from trainer.cache.columns import CachedColumn, check_room, fill
from trainer.callbacks import ReportSkipped
from trainer.data.epoch_dataset import EpochDataset
from trainer.data.rows import draft_side
from trainer.data.skipped import FILE as SKIPPED
from trainer.data.skipped import RowDecoder, SkipLog
from trainer.data.sources import join_sources, load_sources, to_disk
from trainer.data.streaming import StreamingDataset
from trainer.lora import add_lora
from trainer.models import load_teacher, load_vlkd, teacher_name
from trainer.vlkd_trainer import VLKDTrainer


def build_trainer(model_args: ModelArguments, data_args: DataArguments, args: VLKDTrainingArguments) -> VLKDTrainer:
    """Load checkpoints and data, fill the feature cache, and build the trainer.

    Raises:
        ValueError: a checkpoint, dataset, split or column is missing, or two options contradict each other.
    """
    if args.eval_strategy != "no" and data_args.dataset_test_split is None:
        raise ValueError(f"eval_strategy is {args.eval_strategy.value}, which requires dataset_test_split.")
    if model_args.lora_rank is not None and args.push_to_hub and args.hub_strategy != HubStrategy.END:
        raise ValueError(
            f"hub_strategy is {args.hub_strategy.value}, which would push checkpoints, and with lora_rank they are "
            "adapters; set it to end."
        )
    model, processor = load_model(model_args, args.clip, args.seed)
    teacher, teacher_tokenizer = load_teacher(teacher_name(args.clip, model.config), model)
    check_image_features(data_args, model)
    model, teacher = model.to(args.device), teacher.to(args.device)

    if args.resume_from_checkpoint is None and args.process_index == 0:
        Path(args.output_dir, SKIPPED).unlink(missing_ok=True)  # an earlier run's

    def rows(split: str) -> EpochDataset:
        return load_rows(data_args, args, split, model, processor, teacher, teacher_tokenizer)

    streaming, split = data_args.streaming, data_args.dataset_train_split
    train_dataset = load_stream(data_args, args, split, processor) if streaming else rows(split)
    eval_dataset = rows(data_args.dataset_test_split) if data_args.dataset_test_split else None
    if model_args.lora_rank is not None:  # after the cache, whose key counts all that is frozen
        set_seed(args.seed)
        model = add_lora(model, model_args.lora_rank)
    return VLKDTrainer(
        model,
        args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=processor,
        run_config={**asdict(model_args), **data_args.sources()},
        callbacks=[ReportSkipped(args.output_dir)],
    )


def load_model(
    args: ModelArguments, clip: str | None = None, seed: int = 0
) -> tuple[VLKDForConditionalGeneration, VLKDProcessor]:
    """Join CLIP and BART by maps that `seed` draws, or load a VLKD checkpoint, in float32.

    Raises:
        ValueError: a checkpoint is missing or of another kind.
    """
    if args.model_name_or_path is None:
        options = {name: getattr(args, name) for name in (*CONFIG_OPTIONS, "projector_init")}
        processor = VLKDProcessor.from_vision_text_pretrained(clip, args.bart)  # first: it is the smaller
        model = VLKDForConditionalGeneration.from_vision_text_pretrained(clip, args.bart, seed=seed, **options)
    else:
        model, processor = load_vlkd(args.model_name_or_path, "model_name_or_path")
    if args.attn_implementation is not None:
        model.set_attn_implementation(args.attn_implementation)
    return model, processor


def check_image_features(data_args: DataArguments, model: VLKDForConditionalGeneration) -> None:
    """Raise a ValueError if the feature cache would hold fewer image tokens than the decoder sees."""
    if data_args.cache_image_features == "pooled" and model.config.image_tokens != "pooled":
        raise ValueError(
            f"cache_image_features is pooled, but the decoder sees image_tokens={model.config.image_tokens}; set "
            "cache_image_features to all or none, or image_tokens to pooled."
        )


def load_rows(
    data_args: DataArguments,
    args: VLKDTrainingArguments,
    split: str,
    model: VLKDForConditionalGeneration,
    processor: VLKDProcessor,
    teacher: CLIPTextModelWithProjection,
    teacher_tokenizer: PreTrainedTokenizerBase,
) -> EpochDataset:
    """A split by number, without invalid captions (or images, with `cache_image_features`), with the cache filled.

    Other flawed images are passed over when they are read.

    Raises:
        ValueError: a dataset, split or column is missing, the split is empty, or too many rows are flawed.
    """
    image_column, caption_column = data_args.image_column[0], data_args.caption_column[0]
    cached = data_args.cache_image_features != "none"
    with args.main_process_first(desc="feature cache"):  # the others read what the first one wrote
        sources = load_sources(data_args, split, streaming=data_args.streaming)
        sources = [to_disk(source) if data_args.streaming else source for source in sources]
        count = sum(map(len, sources))
        if not count:
            raise ValueError(f"dataset_name: split '{split}' of {' and '.join(data_args.dataset_name)} has no rows.")
        read = row_reader(data_args, args, split, processor, count)
        workers, cache_dir = args.dataloader_num_workers, data_args.cache_dir

        def feature_columns(source: datasets.Dataset) -> list[CachedColumn]:
            columns = [teacher_column(source, teacher, teacher_tokenizer, caption_column, cache_dir)]
            if cached:
                options = (data_args.cache_image_features, image_column, cache_dir, workers)
                columns.append(features_column(source, model, processor, *options))
            return columns

        checked = [caption_column, *([image_column] if cached else [])]
        firsts = [sum(map(len, sources[:number])) for number in range(len(sources))]
        looking = [(read, checked, cache_dir, first, workers) for first in firsts]
        if any(invalid_rows_column(source, *how).missing() for source, how in zip(sources, looking, strict=True)):
            check_room([column for source in sources for column in feature_columns(source)])  # it may take hours
        sources = [drop_invalid_rows(source, *how) for source, how in zip(sources, looking, strict=True)]
        columns = [feature_columns(source) for source in sources]
        fill([column for of_source in columns for column in of_source])
        sources = [source.remove_columns(image_column) if cached else source for source in sources]
        sources = [beside(source, of_source) for source, of_source in zip(sources, columns, strict=True)]
        joined = join_sources(sources, caption_column, data_args.dataset_probabilities, args.seed)
        return EpochDataset(joined, args.seed, read)


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
            weights=data_args.dataset_probabilities,
            seed=args.seed,
            buffer=data_args.shuffle_buffer_size,
            rank=args.process_index,
            world_size=args.world_size,
        )


def row_reader(
    data_args: DataArguments,
    args: VLKDTrainingArguments,
    split: str,
    processor: VLKDProcessor,
    rows: int | None = None,
) -> RowDecoder:
    """How the rows of a split are read, and what becomes of flawed ones; `rows` as in `SkipLog`."""
    skipped = SkipLog(args.output_dir, split, rows, data_args.max_skipped_fraction, data_args.on_error)
    return RowDecoder(data_args.image_column[0], data_args.caption_column[0], skipped, draft_side(processor))
