"""Which model and which data: the two other halves of a training run's flat YAML file."""

from dataclasses import dataclass, field
from typing import Any, Literal

import yaml


@dataclass
class ModelArguments:
    """The checkpoints a run starts from: hub names or local folders."""

    _argument_group_name = "model"

    clip: str | None = field(
        default=None,
        metadata={"help": "CLIP checkpoint: the image tower, and the text tower that teaches. Always needed."},
    )
    bart: str | None = field(default=None, metadata={"help": "BART checkpoint to start from; or give model."})
    model: str | None = field(
        default=None,
        metadata={"help": "VLKD checkpoint to train further, in place of bart; clip must be the one it has."},
    )
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
    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "sdpa, eager, flash_attention_2, ...; transformers' choice if unset. eager suits tiny models."
        },
    )

    def __post_init__(self):
        if self.clip is None:
            raise ValueError("clip is not set: name a CLIP checkpoint (its text tower teaches).")
        if (self.bart is None) == (self.model is None):
            raise ValueError("set either bart (start from CLIP and BART) or model (train a VLKD checkpoint further).")


@dataclass
class DataArguments:
    """The images and captions, and the plain text of the replay.

    A dataset is named by a local folder, a hub name, or `module:function`, which is called as
    `function(split=..., **kwargs)` and returns a `datasets.Dataset`; the working directory is importable.
    """

    _argument_group_name = "data"

    dataset: str | None = field(
        default=None, metadata={"help": "Images and captions: folder, hub name or module:function."}
    )
    dataset_kwargs: dict | str | None = field(
        default=None, metadata={"help": "Further arguments of load_dataset or the function, as {name: value}."}
    )
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str | None = field(default=None, metadata={"help": "Split to evaluate on; none if unset."})
    image_column: str = field(default="image", metadata={"help": "Column of images."})
    caption_column: str = field(
        default="caption",
        metadata={"help": "Column of captions: a text, or a list of texts of which one is drawn an epoch."},
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
    image_features: Literal["off", "pooled", "all"] = field(
        default="off",
        metadata={
            "help": "Compute CLIP's image features once and train from disk: all tokens (395 kB an image at L/14), or "
            " the pooled one (1.5 kB; for image_tokens: pooled)."
        },
    )
    cache_dir: str | None = field(
        default=None, metadata={"help": "Folder of the feature cache; in datasets' cache folder if unset."}
    )

    def __post_init__(self):
        if self.dataset is None:
            raise ValueError("dataset is not set: name a local folder, a dataset on the Hub or module:function.")
        self.dataset_kwargs = _as_dict("dataset_kwargs", self.dataset_kwargs)
        self.text_dataset_kwargs = _as_dict("text_dataset_kwargs", self.text_dataset_kwargs)


def _as_dict(name: str, value: dict[str, Any] | str | None) -> dict[str, Any]:
    """Command-line values are texts: `'{size: 3}'`."""
    parsed = yaml.safe_load(value) if isinstance(value, str) else value
    if parsed is not None and not isinstance(parsed, dict):
        raise ValueError(f"{name} is {value!r}; it must be a mapping such as '{{name: value}}'.")
    return parsed or {}
