"""Every option of a training run."""

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import yaml
from accelerate.utils import parse_flag_from_env
from transformers import SchedulerType, TrainingArguments

from trainer.config_loader import ConfigLoader
from trainer.precision import find_device, log_training_precision, training_bf16

# Options of ModelArguments that are fields of VLKDConfig, by the same names.
CONFIG_OPTIONS = ("image_tokens", "image_projector")
CHOICES = {"freeze": ("none", "decoder", "all"), "projector_optimizer": ("adamw", "muon")}
LORA_OPTIONS = ("lora_r", "lora_alpha", "lora_dropout")
LOSS_WEIGHTS = ("ttdm_weight", "itcl_weight", "icti_weight", "itdd_weight")
# Options of `TrainingArguments` that VLKD supports only with some values: those values, and the reason.
SUPPORTED_VALUES: dict[str, tuple[tuple[Any, ...], str]] = {
    "label_smoothing_factor": ((0,), "the losses of VLKD have no label smoothing"),
    "train_sampling_strategy": (("random", "sequential", "group_by_length"), "ITCL needs batches of one size"),
    "length_column_name": (("length",), "group_by_length measures the captions itself"),
    "neftune_noise_alpha": ((None,), "NEFTune's hook does not reach BART's encoder and decoder"),
    "use_liger_kernel": ((False,), "Liger has no kernels for VLKD"),
    "liger_kernel_config": ((None,), "Liger has no kernels for VLKD"),
    "use_cache": ((False,), "training uses no cache"),
    "deepspeed": ((None,), "use torchrun, or FSDP2 as in docs/scaling.md"),
    "parallelism_config": ((None,), "use torchrun, or FSDP2 as in docs/scaling.md"),
    "remove_unused_columns": ((False,), "the collator, not the model, reads the dataset's columns"),
    "label_names": ((["labels"],), "the other inputs of the model are not labels"),
    "logging_nan_inf_filter": ((False,), "a loss that is not finite stops the run"),
}
# The YAML words for a boolean, where an option takes a string too.
BOOLEAN_WORDS = dict.fromkeys(("true", "yes", "on"), True) | dict.fromkeys(("false", "no", "off", "none"), False)
# Optimizers that update weights during the backward pass, before a loss that is not finite could stop the run.
STEP_IN_BACKWARD = ("lomo", "adalomo", "_layerwise")
WITH_TARGET_MODULES = ("galore", "apollo")


@dataclass
class ModelArguments:
    """The checkpoints that a run starts from: Hub names or local folders."""

    _argument_group_name = "model"

    bart: str | None = field(
        default=None, metadata={"help": "BART checkpoint to join with clip; alternative to model_name_or_path."}
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "VLKD checkpoint to train further; alternative to bart."}
    )
    image_projector: Literal["linear", "mlp"] = field(
        default="mlp",
        metadata={"help": "W_d, the projection from the joint space to BART: an MLP, or linear as in the paper."},
    )
    image_tokens: Literal["all", "patch", "pooled"] = field(
        default="all", metadata={"help": "CLIP's image tokens that the decoder sees."}
    )
    projector_init: Literal["pinv", "random"] = field(
        default="pinv", metadata={"help": "Initialization of W_d: the pseudo-inverse of W_e, or random."}
    )
    use_peft: bool = field(
        default=False,
        metadata={"help": "Train a LoRA adapter instead of BART's weights and merge it into them at the end."},
    )
    lora_r: int = field(default=16, metadata={"help": "LoRA rank; requires use_peft."})
    lora_alpha: int = field(default=32, metadata={"help": "LoRA alpha; requires use_peft."})
    lora_dropout: float = field(default=0.0, metadata={"help": "LoRA dropout; requires use_peft."})
    attn_implementation: str | None = field(
        default=None,
        metadata={"help": "sdpa, eager, flash_attention_2, ...; transformers' choice by default."},
    )

    def __post_init__(self):
        if (self.bart is None) == (self.model_name_or_path is None):
            raise ValueError(
                "set either bart (start from CLIP and BART) or model_name_or_path (train a VLKD checkpoint further)."
            )
        for name in LORA_OPTIONS:
            if not self.use_peft and getattr(self, name) != getattr(type(self), name):  # the class holds the default
                raise ValueError(f"{name} is {getattr(self, name)}, which requires use_peft: true.")
        if self.lora_r < 1:
            raise ValueError(f"lora_r is {self.lora_r}; it must be 1 or more.")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout is {self.lora_dropout}; it must be at least 0 and less than 1.")

    def lora_options(self) -> dict[str, Any]:
        """Arguments of `trainer.lora.add_lora`."""
        return {"r": self.lora_r, "lora_alpha": self.lora_alpha, "lora_dropout": self.lora_dropout}

    def sources(self) -> dict[str, Any]:
        """The options as they are written to train.yaml, without LoRA's if `use_peft` is off."""
        values = asdict(self)
        if self.model_name_or_path is not None:  # the model's own config has these
            values |= dict.fromkeys((*CONFIG_OPTIONS, "projector_init"))
        return values if self.use_peft else values | dict.fromkeys(("use_peft", *LORA_OPTIONS))


@dataclass
class DataArguments:
    """The images and captions. docs/data.md has an example of each option.

    A dataset is named by a local folder, a Hub name, a COCO caption file, or `module:function`, which is called as
    `function(split=..., **dataset_kwargs)` and returns a `datasets.Dataset`; the working directory is importable.
    """

    _argument_group_name = "data"

    dataset_name: list[str] | None = field(
        default=None,
        metadata={
            "help": "Datasets of images and captions, one or more: folder, Hub name, COCO file or module:function."
        },
    )
    dataset_probabilities: list[float] | None = field(
        default=None,
        metadata={"help": "Probability of each dataset; if unset, an epoch contains each row of each dataset once."},
    )
    dataset_kwargs: dict | str | None = field(
        default=None, metadata={"help": "Additional arguments of load_dataset or of the function, as {name: value}."}
    )
    image_dir: str | None = field(
        default=None, metadata={"help": "Folder of the images that a COCO file or a column of file names lists."}
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read the data shard by shard, for tar files and very large datasets."}
    )
    shuffle_buffer_size: int = field(
        default=1000, metadata={"help": "Rows that each worker shuffles at once when streaming; 0 keeps the order."}
    )
    on_error: Literal["skip", "raise"] = field(
        default="skip", metadata={"help": "Skip invalid rows and list them in skipped.jsonl, or stop at the first."}
    )
    max_skipped_fraction: float = field(
        default=0.01, metadata={"help": "Stop when more than this share of the rows is invalid."}
    )
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_test_split: str | None = field(default=None, metadata={"help": "Split to evaluate on; none by default."})
    image_column: list[str] = field(
        default_factory=lambda: ["image"], metadata={"help": "Column of images; one name, or one for each dataset."}
    )
    caption_column: list[str] = field(
        default_factory=lambda: ["caption"],
        metadata={"help": "Column of captions (texts, or lists of texts); one name, or one for each dataset."},
    )
    cache_image_features: Literal["none", "pooled", "all"] = field(
        default="none",
        metadata={
            "help": "Compute CLIP's image features once and train from disk: all tokens (395 kB an image at L/14), or "
            "pooled (1.5 kB; requires image_tokens: pooled)."
        },
    )
    cache_dir: str | None = field(
        default=None, metadata={"help": "Folder of the feature cache; by default in the cache folder of datasets."}
    )

    def __post_init__(self):
        if not self.dataset_name:
            raise ValueError("dataset_name is not set: name a local folder, a dataset on the Hub or module:function.")
        self.dataset_name = [self.dataset_name] if isinstance(self.dataset_name, str) else self.dataset_name
        self.image_column = _one_for_each("image_column", self.image_column, self.dataset_name)
        self.caption_column = _one_for_each("caption_column", self.caption_column, self.dataset_name)
        self.dataset_kwargs = _as_dict("dataset_kwargs", self.dataset_kwargs)
        weights, count = self.dataset_probabilities, len(self.dataset_name)
        if weights is not None and (len(weights) != count or not all(weight > 0 for weight in weights)):
            raise ValueError(
                f"dataset_probabilities is {weights}; give a number above 0 for each of the {count} datasets."
            )
        if self.shuffle_buffer_size < 0:
            raise ValueError(f"shuffle_buffer_size is {self.shuffle_buffer_size}; it must be 0 or more.")
        if not 0 <= self.max_skipped_fraction <= 1:
            raise ValueError(f"max_skipped_fraction is {self.max_skipped_fraction}; it must be between 0 and 1.")
        if self.streaming and self.cache_image_features != "none":
            raise ValueError(
                f"cache_image_features is {self.cache_image_features}, which streaming does not support; set it to "
                "none, or streaming to false."
            )

    def sources(self) -> dict[str, Any]:
        """The options as they are written to train.yaml, where a single dataset or column is not a list."""
        values = {**asdict(self), "cache_dir": None}
        if len(self.dataset_name) == 1:
            values["dataset_name"] = self.dataset_name[0]
        columns = ("image_column", "caption_column")
        return values | {name: values[name][0] for name in columns if len(set(values[name])) == 1}


def _one_for_each(name: str, columns: list[str] | str, specs: list[str]) -> list[str]:
    columns = [columns] if isinstance(columns, str) else columns
    if len(columns) not in (1, len(specs)):
        raise ValueError(f"{name} names {len(columns)} columns for {len(specs)} datasets; name one, or one for each.")
    return columns * (len(specs) if len(columns) == 1 else 1)


def _as_dict(name: str, value: dict[str, Any] | str | None) -> dict[str, Any]:
    """Parse a mapping, which is a text such as `'{size: 3}'` on the command line."""
    try:
        parsed = yaml.load(value, Loader=ConfigLoader) if isinstance(value, str) else value
    except yaml.YAMLError:
        parsed = value
    if parsed is not None and not isinstance(parsed, dict):
        raise ValueError(f"{name} is {value!r}; it must be a mapping such as '{{name: value}}'.")
    return parsed or {}


def _changed(name: str, default: Any) -> Any:
    """A field of `TrainingArguments` with a different default."""
    (option,) = (option for option in fields(TrainingArguments) if option.name == name)
    return field(default=default, metadata=option.metadata)


@dataclass
class VLKDTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with the options of VLKD. The defaults are the recommended recipe.

    Defaults that differ from `TrainingArguments`:
        per_device_train_batch_size: 64, since the other rows of a batch are the negatives of ITCL.
        per_device_eval_batch_size: 64, so that `eval_itcl` has as many negatives as `itcl`.
        train_sampling_strategy: "group_by_length", batches of captions of similar length, with little padding.
        lr_scheduler_type: "cosine".
        warmup_steps: 0.03, a fraction of all steps.
        weight_decay: 0.01.
        logging_steps: 10.
        save_total_limit: 2, since a checkpoint takes 2.0 GB (base) or 6.1 GB (large). 0 keeps all checkpoints.
        greater_is_better: False if `metric_for_best_model` is one of the losses, such as "icti".
        bf16: None, which becomes True on devices that are fast at bfloat16, unless fp16 is set, else False.
        remove_unused_columns: False, since the collator, not the model, reads the dataset's columns.
        label_names: ["labels"], since the other inputs of the model are not labels.
        logging_nan_inf_filter: False, since a loss that is not finite stops the run.

    `seed` draws captions and corruptions. `data_seed`, or `seed` if that is unset, draws the order of the rows.

    Raises:
        ValueError: a value is out of range, or VLKD does not support it.
    """

    _argument_group_name = "training"

    clip: str | None = field(
        default=None,
        metadata={
            "help": "CLIP checkpoint whose text tower is the teacher. If unset, the one the model was made from."
        },
    )
    ttdm_weight: float = field(default=1.0, metadata={"help": "λ₁, the weight of text-text distance minimization."})
    itcl_weight: float = field(default=1.0, metadata={"help": "λ₂, the weight of image-text contrastive learning."})
    icti_weight: float = field(default=1.0, metadata={"help": "λ₃, the weight of image-conditioned text infilling."})
    itdd_weight: float = field(
        default=3.0,
        metadata={"help": "λ₄, the weight of image-text decoder distillation; the paper does not have it (0)."},
    )
    freeze: Literal["none", "decoder", "all"] = field(
        default="none", metadata={"help": "Part of BART to freeze. The projections W_e and W_d are always trained."}
    )
    projector_learning_rate: float = field(
        default=1e-3,
        metadata={"help": "Learning rate of the projections W_e and W_d; learning_rate is BART's."},
    )
    projector_optimizer: Literal["adamw", "muon"] = field(
        default="muon",
        metadata={"help": "Optimizer of the projections' matrices: muon, or adamw for the same as BART's (optim)."},
    )
    mask_ratio: float = field(default=0.5, metadata={"help": "ρ, the fraction of a caption's tokens that is masked."})
    full_mask_probability: float = field(
        default=0.6,
        metadata={"help": "Probability that one <mask> replaces the whole caption, as in captioning."},
    )
    max_text_length: int = field(
        default=64, metadata={"help": "Captions are truncated to this many BART tokens. CLIP reads at most 77."}
    )
    contrastive_chunk_size: int | None = field(
        default=None,
        metadata={
            "help": "Compute the gradient of a device's batch in chunks of this many rows, to save memory; ITCL still "
            "uses all rows as negatives. Off if unset."
        },
    )
    eval_samples: int = field(
        default=0,
        metadata={
            "help": "Caption this many validation images at each evaluation, for samples.html in output_dir and for "
            "report_to."
        },
    )

    # Fields of `TrainingArguments` with a different default.
    per_device_train_batch_size: int = _changed("per_device_train_batch_size", 64)
    per_device_eval_batch_size: int = _changed("per_device_eval_batch_size", 64)
    train_sampling_strategy: str = _changed("train_sampling_strategy", "group_by_length")
    lr_scheduler_type: SchedulerType | str = _changed("lr_scheduler_type", "cosine")
    warmup_steps: float = _changed("warmup_steps", 0.03)
    weight_decay: float = _changed("weight_decay", 0.01)
    logging_steps: float = _changed("logging_steps", 10)
    remove_unused_columns: bool = _changed("remove_unused_columns", False)
    logging_nan_inf_filter: bool = _changed("logging_nan_inf_filter", False)
    label_names: list[str] | None = field(default_factory=lambda: ["labels"])
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Checkpoints to keep: the newest ones and the best one; 0 keeps all."}
    )
    bf16: bool | None = field(
        default=None,
        metadata={
            "help": "Train in bfloat16 mixed precision. By default on if the device is fast at it and fp16 is off."
        },
    )

    def __post_init__(self):
        check_supported(self)
        metric = (self.metric_for_best_model or "").rpartition("_")[2]  # of "icti", "eval_icti" or "eval_SPLIT_icti"
        if self.greater_is_better is None and f"{metric}_weight" in LOSS_WEIGHTS:
            self.greater_is_better = False
        checkpoint = self.resume_from_checkpoint
        self.resume_from_checkpoint = BOOLEAN_WORDS.get(str(checkpoint).lower(), checkpoint) or None
        if BOOLEAN_WORDS.get(str(self.report_to).lower()) is False:
            self.report_to = "none"
        device = find_device("cpu" if self.use_cpu or parse_flag_from_env("ACCELERATE_USE_CPU") else "auto")
        self.use_cpu = device.type == "cpu"  # else TrainingArguments refuses bf16 where there is no GPU
        if self.fp16 and device.type == "cpu":
            raise ValueError("fp16=True needs a GPU; leave fp16 unset.")
        self.bf16 = training_bf16(self.bf16, self.fp16, device)
        super().__post_init__()
        reached = (self.ttdm_weight or self.itcl_weight) and (self.icti_weight or self.itdd_weight)
        if self.activation_checkpointing and self.ddp_find_unused_parameters is None and not reached:
            self.ddp_find_unused_parameters = True  # W_e, or W_d and the decoder, get no gradient
        if self.process_index == 0:
            log_training_precision(self.mixed_precision, device)
        self._check_ranges()

    def _check_ranges(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}.")
        for name in ("learning_rate", "projector_learning_rate"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more.")
        for name in ("mask_ratio", "full_mask_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be between 0 and 1.")
        for name in LOSS_WEIGHTS:
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; set it to 0 (off) or a positive number.")
        if not any(self.loss_weights().values()):
            raise ValueError(f"{', '.join(LOSS_WEIGHTS)} are all 0; set at least one to a positive number.")
        if self.contrastive_chunk_size is not None and self.contrastive_chunk_size < 1:
            raise ValueError(
                f"contrastive_chunk_size is {self.contrastive_chunk_size}; set a number of rows, or leave it unset."
            )
        if self.eval_samples < 0:
            raise ValueError(f"eval_samples is {self.eval_samples}; set it to 0 (off) or a number of images.")
        if self.eval_samples and self.eval_strategy == "no":
            raise ValueError(
                f"eval_samples is {self.eval_samples}, but eval_strategy is no; set it to steps or epoch, and give a "
                "dataset to evaluate on."
            )
        if self.max_text_length < 3:
            raise ValueError(f"max_text_length is {self.max_text_length}; `<s>`, a token and `</s>` need at least 3.")

    def loss_weights(self) -> dict[str, float]:
        """λ by the name of the loss, as in the logs; ITDD only if it is on."""
        weights = {"ttdm": self.ttdm_weight, "itcl": self.itcl_weight, "icti": self.icti_weight}
        return weights | ({"itdd": self.itdd_weight} if self.itdd_weight else {})


def check_checkpoints(bart: str | None, clip: str | None) -> None:
    """Raise a ValueError if `bart` has no CLIP to join with."""
    if bart is not None and clip is None:
        raise ValueError("clip is not set; set it to the CLIP checkpoint to join with bart.")


def check_supported(args: TrainingArguments) -> None:
    """Raise a ValueError if an option of `TrainingArguments` has a value that VLKD does not support."""
    for name, (allowed, reason) in SUPPORTED_VALUES.items():
        value = getattr(args, name)
        if value not in allowed:
            remedy = " or ".join(map(repr, allowed))
            raise ValueError(f"{name} is {value!r}, which VLKD does not support: {reason}. Set it to {remedy}.")
    optim = str(getattr(args.optim, "value", args.optim))
    if optim.endswith(STEP_IN_BACKWARD):
        raise ValueError(
            f"optim is {optim}, which updates weights during the backward pass, before VLKD checks that losses and "
            "gradients are finite. Use another optimizer, such as adamw_torch or adafactor."
        )
    if args.optim_target_modules is not None and not optim.startswith(WITH_TARGET_MODULES):
        raise ValueError(
            f"optim_target_modules is set, but optim={optim} ignores it. Unset it, or choose a GaLore or APOLLO "
            "optimizer."
        )
