"""Which model and which data: the two other halves of a training run's flat YAML file."""

import re
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import yaml

# Options of ModelArguments that are fields of VLKDConfig, by the same names.
CONFIG_OPTIONS = ("image_tokens", "image_projector", "image_token_expansion", "patch_attention", "prompt_in_encoder")


class ConfigLoader(yaml.SafeLoader):
    """YAML 1.1 reads `1e-6` as a text; this loader reads it as a number."""


ConfigLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789")
)


@dataclass
class ModelArguments:
    """The checkpoints a run starts from: hub names or local folders."""

    _argument_group_name = "model"

    bart: str | None = field(
        default=None, metadata={"help": "BART checkpoint to start from, joined with clip; or give model."}
    )
    model: str | None = field(default=None, metadata={"help": "VLKD checkpoint to train further, in place of bart."})
    image_projector: Literal["linear", "mlp"] = field(
        default="linear",
        metadata={"help": "W_d, from the joint space to BART's width: the paper's linear map, or our MLP."},
    )
    image_tokens: Literal["all", "patch", "pooled"] = field(
        default="all", metadata={"help": "Which of CLIP's image tokens the decoder sees."}
    )
    image_token_expansion: int = field(
        default=1, metadata={"help": "Vectors that the decoder sees of each image token; 1 is the paper's."}
    )
    patch_attention: Literal["global", "self"] = field(
        default="global",
        metadata={"help": "What a patch attends to in CLIP's last layer: all, or itself alone."},
    )
    prompt_in_encoder: bool = field(
        default=True,
        metadata={
            "help": "Whether the encoder reads the prompt's words before <mask> too; the decoder starts from them."
        },
    )
    projector_init: Literal["pinv", "random"] = field(
        default="pinv", metadata={"help": "Start of W_d: the pseudo-inverse of W_e, or random."}
    )
    lora_rank: int | None = field(
        default=None,
        metadata={
            "help": "Train a LoRA adapter of this rank in the place of BART's weights, and merge it into them at the "
            "end. Off if unset."
        },
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "sdpa, eager, flash_attention_2, ...; transformers' choice if unset. eager suits tiny models."
        },
    )

    def __post_init__(self):
        if (self.bart is None) == (self.model is None):
            raise ValueError("set either bart (start from CLIP and BART) or model (train a VLKD checkpoint further).")


@dataclass
class DataArguments:
    """The images and captions, and the plain text of the replay. docs/data.md has an example of each.

    A dataset is named by a local folder, a hub name, a COCO caption file, or `module:function`, which is called as
    `function(split=..., **kwargs)` and returns a `datasets.Dataset`; the working directory is importable.
    """

    _argument_group_name = "data"

    dataset: list[str] | None = field(
        default=None,
        metadata={"help": "Images and captions: folder, hub name, COCO file or module:function; or several of them."},
    )
    dataset_weights: list[float] | None = field(
        default=None,
        metadata={
            "help": "How often rows of each dataset are drawn; if unset, each row of all is seen once an epoch."
        },
    )
    dataset_kwargs: dict | str | None = field(
        default=None, metadata={"help": "Further arguments of load_dataset or the function, as {name: value}."}
    )
    image_root: str | None = field(
        default=None, metadata={"help": "Folder of the images that a COCO file or a column of file names names."}
    )
    streaming: bool = field(
        default=False,
        metadata={"help": "Read shards one after the other, as for tar files and data larger than the disk."},
    )
    shuffle_buffer: int = field(
        default=1000, metadata={"help": "Rows that each worker shuffles together when streaming; 0 keeps the order."}
    )
    on_error: Literal["skip", "raise"] = field(
        default="skip",
        metadata={"help": "Pass flawed rows over and list them in skipped.jsonl, or stop at the first."},
    )
    max_skipped: float = field(default=0.01, metadata={"help": "The share of flawed rows above which training stops."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str | None = field(default=None, metadata={"help": "Split to evaluate on; none if unset."})
    image_column: list[str] = field(
        default_factory=lambda: ["image"], metadata={"help": "Column of images; or one for each dataset."}
    )
    caption_column: list[str] = field(
        default_factory=lambda: ["caption"],
        metadata={
            "help": "Column of captions, a text, or a list of texts of which one is drawn an epoch; or one for each "
            "dataset."
        },
    )
    text_dataset: str | None = field(
        default=None,
        metadata={
            "help": "Plain text for the replay (replay_weight), named as dataset is, read from the same splits."
        },
    )
    text_dataset_kwargs: dict | str | None = field(
        default=None, metadata={"help": "As dataset_kwargs, for text_dataset."}
    )
    text_column: str = field(default="text", metadata={"help": "Column of documents in text_dataset."})
    image_features: Literal["off", "pooled", "patch", "all"] = field(
        default="off",
        metadata={
            "help": "Compute CLIP's image features once and train from disk: all tokens (395 kB an image at L/14), "
            "patch (the same, since itcl needs the class token too), or pooled (1.5 kB; for image_tokens: pooled)."
        },
    )
    cache_dir: str | None = field(
        default=None, metadata={"help": "Folder of the feature cache; in datasets' cache folder if unset."}
    )

    def __post_init__(self):
        if not self.dataset:
            raise ValueError("dataset is not set: name a local folder, a dataset on the Hub or module:function.")
        self.dataset = [self.dataset] if isinstance(self.dataset, str) else self.dataset
        self.image_column = _one_for_each("image_column", self.image_column, self.dataset)
        self.caption_column = _one_for_each("caption_column", self.caption_column, self.dataset)
        self.dataset_kwargs = _as_dict("dataset_kwargs", self.dataset_kwargs)
        self.text_dataset_kwargs = _as_dict("text_dataset_kwargs", self.text_dataset_kwargs)
        if self.dataset_weights is not None:
            _check_weights(self.dataset_weights, self.dataset)
        if self.shuffle_buffer < 0:
            raise ValueError(f"shuffle_buffer is {self.shuffle_buffer}; it is a number of rows, or 0 for none.")
        if not 0 <= self.max_skipped <= 1:
            raise ValueError(f"max_skipped is {self.max_skipped}; it is a share from 0 to 1.")
        if self.streaming and self.image_features != "off":
            raise ValueError(
                f"image_features is {self.image_features}, which needs rows by number; set it to off, or streaming to "
                "false."
            )

    def sources(self) -> dict[str, Any]:
        """The options by their keys in train.yaml; a single dataset or column as itself, no list."""
        values = {**asdict(self), "cache_dir": None}
        if len(self.dataset) == 1:
            values["dataset"] = self.dataset[0]
        columns = ("image_column", "caption_column")
        return values | {name: values[name][0] for name in columns if len(set(values[name])) == 1}


def _one_for_each(name: str, columns: list[str] | str, specs: list[str]) -> list[str]:
    columns = [columns] if isinstance(columns, str) else columns
    if len(columns) not in (1, len(specs)):
        raise ValueError(f"{name} names {len(columns)} columns for {len(specs)} datasets; name one, or one for each.")
    return columns * (len(specs) if len(columns) == 1 else 1)


def _check_weights(weights: list[float], specs: list[str]) -> None:
    if len(weights) != len(specs) or not all(weight > 0 for weight in weights):
        raise ValueError(f"dataset_weights is {weights}; give a number above 0 for each of the {len(specs)} datasets.")


def _as_dict(name: str, value: dict[str, Any] | str | None) -> dict[str, Any]:
    """Command-line values are texts: `'{size: 3}'`."""
    try:
        parsed = yaml.load(value, Loader=ConfigLoader) if isinstance(value, str) else value
    except yaml.YAMLError:
        parsed = value
    if parsed is not None and not isinstance(parsed, dict):
        raise ValueError(f"{name} is {value!r}; it must be a mapping such as '{{name: value}}'.")
    return parsed or {}
