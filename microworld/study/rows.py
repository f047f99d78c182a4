"""What the study trains: each row is one of the two recipes with a few keys of `vlkd train` changed."""

from dataclasses import dataclass, field
from typing import Any

RECIPES = {"paper": "hub_configs/microworld/train.yaml", "ours": "hub_configs/microworld/train_plus.yaml"}
RANDOM_BART = "random"  # in a row's `bart`: a BART of the same shape with random weights, drawn by the seed
IMAGES = 8000  # what both recipes train on
# One step that changes nothing: what the teachers can do before they are distilled.
_NO_TRAINING = {"max_steps": 1, "warmup_steps": 0, "learning_rate": 0.0, "projector_learning_rate": 0.0}


@dataclass(frozen=True)
class Row:
    """One line of the study.

    Args:
        name: as the command line, the folder and the JSON call it.
        label: as tables and plots call it.
        phrase: how a sentence about it begins: "without ICTI".
        base: the recipe it starts from, a key of RECIPES.
        overrides: keys of `vlkd train`.
        against: the row it is compared with; None for what stands alone.
    """

    name: str
    label: str
    phrase: str
    base: str = "paper"
    overrides: dict[str, Any] = field(default_factory=dict)
    against: str | None = "paper"


def _images(size: int) -> dict[str, Any]:
    return {"dataset_kwargs": {"size": size, "captions_per_image": 4}}


ROWS = (
    Row("paper", "the paper's recipe", "by the paper's recipe", against=None),
    Row("ours", "our recipe", "by our recipe", base="ours"),
    Row("untrained", "before training", "before any training", overrides=_NO_TRAINING),
    Row("without-icti", "without ICTI", "without ICTI", overrides={"icti_weight": 0.0}),
    Row("without-itcl", "without ITCL", "without ITCL", overrides={"itcl_weight": 0.0}),
    Row("without-ttdm", "without TTDM", "without TTDM", overrides={"ttdm_weight": 0.0}),
    Row("with-itdd", "with ITDD too", "with ITDD besides", overrides={"itdd_weight": 3.0}),
    Row("frozen-bart", "BART frozen", "with BART frozen", overrides={"freeze": "all"}),
    Row("random-bart", "random BART", "with a BART of random weights", overrides={"bart": RANDOM_BART}),
    Row("mlp", "MLP for W_d", "with an MLP in place of the linear W_d", overrides={"image_projector": "mlp"}),
    Row(
        "random-projector",
        "W_d at random",
        "with W_d drawn at random in place of the pseudo-inverse",
        overrides={"projector_init": "random"},
    ),
    Row(
        "patch-tokens",
        "patch tokens only",
        "with the patch tokens alone before the decoder",
        overrides={"image_tokens": "patch"},
    ),
    Row(
        "pooled-token",
        "pooled token only",
        "with the pooled token alone before the decoder",
        overrides={"image_tokens": "pooled"},
    ),
    Row(
        "global-attention",
        "global patch attention",
        "with patches that attend to each other in CLIP's last layer",
        overrides={"patch_attention": "global"},
    ),
    Row(
        "prompt-in-encoder",
        "question in the encoder",
        "with the question in the encoder too",
        overrides={"prompt_in_encoder": True},
    ),
    *(
        Row(
            f"lr-{rate}",
            f"learning rate {rate}",
            f"at a learning rate of {rate}",
            overrides={"learning_rate": float(rate)},
        )
        for rate in ("1e-5", "1e-4", "3e-4", "1e-3")
    ),
    Row("images-80", "80 images", "with 80 images in place of 8,000", overrides=_images(IMAGES // 100)),
    Row("images-800", "800 images", "with 800 images in place of 8,000", overrides=_images(IMAGES // 10)),
    Row(
        "ours-one-vector",
        "one vector a token",
        "with one vector of each image token",
        base="ours",
        overrides={"image_token_expansion": 1},
        against="ours",
    ),
    Row("ours-no-itdd", "without ITDD", "without ITDD", base="ours", overrides={"itdd_weight": 0.0}, against="ours"),
    Row(
        "ours-no-statements",
        "no short statements",
        "without short statements among the captions",
        base="ours",
        overrides={"dataset_kwargs": {"size": IMAGES, "captions_per_image": 6}},
        against="ours",
    ),
    Row(
        "ours-decoder-learns",
        "decoder learns too",
        "with a decoder that learns too",
        base="ours",
        overrides={"freeze": "none"},
        against="ours",
    ),
)


BY_NAME = {row.name: row for row in ROWS}


def rows_named(names: list[str] | None) -> list[Row]:
    """The rows of these names, in the study's own order; all of them for None.

    Raises:
        ValueError: there is no such row.
    """
    if unknown := [name for name in names or [] if name not in BY_NAME]:
        raise ValueError(f"rows: there is no {', '.join(unknown)}; the rows are {', '.join(BY_NAME)}.")
    return [row for row in ROWS if names is None or row.name in names]
