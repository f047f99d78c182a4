"""Build a `VLKDTrainer` from the options of a run."""

from pathlib import Path

from datasets import Dataset
from transformers import set_seed
from transformers.trainer_utils import HubStrategy

from modeling_vlkd import VLKDForConditionalGeneration, VLKDProcessor
from trainer.arguments import CONFIG_OPTIONS, DataArguments, ModelArguments, VLKDTrainingArguments
from trainer.cache.clip_features import ImageFeatures, TeacherEmbeds, add_cached_columns
from trainer.cache.columns import check_disk_space
from trainer.cache.invalid_rows import InvalidRows
from trainer.callbacks import ReportSkipped
from trainer.data.epoch_dataset import EpochDataset
from trainer.data.skipped import FILE as SKIPPED
from trainer.data.skipped import RowDecoder, SkipLog
from trainer.data.sources import load_sources, mix_sources, to_disk
from trainer.data.streaming import StreamingDataset
from trainer.image_loader import min_jpeg_side
from trainer.lora import add_lora
from trainer.models import load_teacher, load_vlkd, teacher_name
from trainer.vlkd_trainer import VLKDTrainer


def build_trainer(model_args: ModelArguments, data_args: DataArguments, args: VLKDTrainingArguments) -> VLKDTrainer:
    """Load checkpoints and data, fill the feature cache, and build the trainer.

    Raises:
        ValueError: a checkpoint, dataset, split or column is missing, or two options contradict each other.
    """
    if args.eval_strategy != "no" and data_args.dataset_test_split is None:
        raise ValueError(
            f"eval_strategy is {args.eval_strategy.value}, but dataset_test_split is not set. Set it to the split to "
            "evaluate on, or set eval_strategy to no."
        )
    if model_args.use_peft and args.push_to_hub and args.hub_strategy != HubStrategy.END:
        raise ValueError(
            f"hub_strategy={args.hub_strategy.value} would push checkpoints, which are adapters with use_peft; set it "
            "to end."
        )
    model, processor = load_model(model_args, args.clip, args.seed)
    if args.resume_from_checkpoint is None and args.process_index == 0:
        Path(args.output_dir, SKIPPED).unlink(missing_ok=True)  # an earlier run's
    if data_args.streaming:
        kinds = []  # nothing is cached; CLIP runs during training
        train_dataset = load_stream(data_args, args, processor)
    else:
        kinds = cached_kinds(data_args, args, model, processor)
        train_dataset = load_rows(data_args, args, data_args.dataset_train_split, processor, kinds)
    eval_dataset = sample_dataset = None
    if data_args.dataset_test_split:
        eval_dataset = load_rows(data_args, args, data_args.dataset_test_split, processor, kinds)
    if args.eval_samples and data_args.cache_image_features != "none":  # the rows above have features, but no images
        sample_dataset = load_rows(data_args, args, data_args.dataset_test_split, processor, kinds=[])
    if model_args.use_peft:  # after the cache, whose key covers everything that is frozen
        set_seed(args.seed)
        model = add_lora(model, **model_args.lora_options())
    return VLKDTrainer(
        model,
        args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        sample_dataset=sample_dataset,
        processing_class=processor,
        run_config={**model_args.sources(), **data_args.sources()},
        callbacks=[ReportSkipped(args.output_dir)],
    )


def load_model(
    args: ModelArguments, clip: str | None = None, seed: int = 0
) -> tuple[VLKDForConditionalGeneration, VLKDProcessor]:
    """Join CLIP and BART, with projections initialized from `seed`, or load a VLKD checkpoint; in float32.

    Raises:
        ValueError: a checkpoint is missing or of another kind.
    """
    if args.model_name_or_path is None:
        options = {name: getattr(args, name) for name in (*CONFIG_OPTIONS, "projector_init")}
        processor = VLKDProcessor.from_vision_text_pretrained(clip, args.bart)  # fails fast
        model = VLKDForConditionalGeneration.from_vision_text_pretrained(clip, args.bart, seed=seed, **options)
    else:
        model, processor = load_vlkd(args.model_name_or_path, "model_name_or_path")
        for name in CONFIG_OPTIONS:
            value, built = getattr(args, name), getattr(model.config, name)
            if value not in (getattr(ModelArguments, name), built):  # the class holds the default
                raise ValueError(
                    f"{name} is {value}, but model_name_or_path was built with {built}; leave {name} out."
                )
    if args.attn_implementation is not None:
        model.set_attn_implementation(args.attn_implementation)
    return model, processor


def cached_kinds(
    data_args: DataArguments,
    args: VLKDTrainingArguments,
    model: VLKDForConditionalGeneration,
    processor: VLKDProcessor,
) -> list[TeacherEmbeds | ImageFeatures]:
    """The columns that the feature cache stores for this run. Moves the model and the teacher to the device.

    Raises:
        ValueError: the teacher is not the CLIP of the model, or the decoder needs more image tokens than are cached.
    """
    tokens, cache_dir = data_args.cache_image_features, data_args.cache_dir
    if tokens == "pooled" and model.config.image_tokens != "pooled":
        raise ValueError(
            f"cache_image_features is pooled, but the decoder sees image_tokens={model.config.image_tokens}; set "
            "cache_image_features to all or none, or image_tokens to pooled."
        )
    clip = teacher_name(args.clip, model.config)
    teacher, tokenizer = load_teacher(clip, model)
    kinds = [TeacherEmbeds(teacher.to(args.device), tokenizer, data_args.caption_column[0], cache_dir)]
    if tokens != "none":
        options = (tokens, data_args.image_column[0], cache_dir, args.dataloader_num_workers)
        kinds.append(ImageFeatures(model.to(args.device), processor, *options))
    return kinds


def load_rows(
    data_args: DataArguments,
    args: VLKDTrainingArguments,
    split: str,
    processor: VLKDProcessor,
    kinds: list[TeacherEmbeds | ImageFeatures],
) -> EpochDataset:
    """A split without invalid rows and with the columns of `kinds` from the feature cache.

    Images are checked here only if their features are cached. Otherwise `EpochDataset` replaces invalid ones later.

    Raises:
        ValueError: a dataset, split or column is missing, the split is empty, or too many rows are invalid.
    """
    with args.main_process_first(desc="feature cache"):  # the other processes read what the first one wrote
        sources = load_numbered_sources(data_args, split)
        decoder = build_decoder(data_args, args, split, processor, rows=sum(map(len, sources)))
        checked = [decoder.caption_column, *(kind.image_column for kind in kinds if isinstance(kind, ImageFeatures))]
        invalid_rows = InvalidRows(decoder, checked, data_args.cache_dir, args.dataloader_num_workers)
        if any(invalid_rows.column(source).missing() for source in sources):  # decoding all images may take hours
            check_disk_space([kind.column(source) for source in sources for kind in kinds])
        sources = [invalid_rows.drop_from(source) for source in sources]
        sources = add_cached_columns(sources, kinds)
        dataset = mix_sources(sources, decoder.caption_column, data_args.dataset_probabilities, args.seed)
    return EpochDataset(dataset, args.seed, decoder)


def load_numbered_sources(data_args: DataArguments, split: str) -> list[Dataset]:
    """The datasets of a split, with a column `row_number` that counts through all of them. Streams are copied to disk.

    Raises:
        ValueError: a dataset, split or column is missing, or the split is empty.
    """
    numbered, first = [], 0
    for source in load_sources(data_args, split, data_args.streaming):
        source = to_disk(source) if data_args.streaming else source
        numbered.append(source.add_column("row_number", range(first, first + len(source))))
        first += len(source)
    if not first:
        raise ValueError(f"dataset_name: split '{split}' of {' and '.join(data_args.dataset_name)} has no rows.")
    return numbered


def load_stream(data_args: DataArguments, args: VLKDTrainingArguments, processor: VLKDProcessor) -> StreamingDataset:
    """The training split as a stream, for this process.

    Raises:
        ValueError: a dataset, split or column is missing, or an option does not support streams.
    """
    if args.max_steps <= 0:
        raise ValueError("streaming requires max_steps, since a stream has no length.")
    for name in ("eval_strategy", "save_strategy"):
        if getattr(args, name) == "epoch":
            raise ValueError(f"{name} is epoch, which a stream does not support; set it to steps.")
    split = data_args.dataset_train_split
    with args.main_process_first(desc="dataset"):
        return StreamingDataset(
            load_sources(data_args, split, streaming=True),
            build_decoder(data_args, args, split, processor),
            probabilities=data_args.dataset_probabilities,
            seed=args.seed,
            buffer_size=data_args.shuffle_buffer_size,
            rank=args.process_index,
            world_size=args.world_size,
        )


def build_decoder(
    data_args: DataArguments,
    args: VLKDTrainingArguments,
    split: str,
    processor: VLKDProcessor,
    rows: int | None = None,
) -> RowDecoder:
    """The decoder of a split's rows, which records invalid ones; `rows` as in `SkipLog`."""
    skipped = SkipLog(args.output_dir, split, rows, data_args.max_skipped_fraction, data_args.on_error)
    return RowDecoder(data_args.image_column[0], data_args.caption_column[0], skipped, min_jpeg_side(processor))
