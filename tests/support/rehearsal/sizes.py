"""Which checkpoints are rehearsed. Without torch, which would make the process large that measures memory."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Size:
    """Names and shapes. Of a tower: width, layers, heads; its feed-forward layers are four times as wide."""

    recipe: str  # in hub_configs/
    clip: str
    bart: str
    vision: tuple[int, int, int]
    text: tuple[int, int, int]
    bart_tower: tuple[int, int, int]  # of the encoder and of the decoder
    projection_dim: int
    image_size: int
    patch_size: int
    formats: tuple[str, ...]  # of CLIP's weights
    sub_config_dicts: bool  # whether CLIP's config.json tells the towers' shapes a second time
    bart_dtype: str


BASE = Size(
    recipe="vlkd-vit-base-patch16-bart-base",
    clip="openai/clip-vit-base-patch16",
    bart="facebook/bart-base",
    vision=(768, 12, 12),
    text=(512, 12, 8),
    bart_tower=(768, 6, 12),
    projection_dim=512,
    image_size=224,
    patch_size=16,
    formats=("bin",),
    sub_config_dicts=False,
    bart_dtype="float32",
)
LARGE = Size(
    recipe="vlkd-vit-large-patch14-bart-large",
    clip="openai/clip-vit-large-patch14",
    bart="facebook/bart-large",
    vision=(1024, 24, 16),
    text=(768, 12, 12),
    bart_tower=(1024, 12, 16),
    projection_dim=768,
    image_size=224,
    patch_size=14,
    formats=("bin", "safetensors"),
    sub_config_dicts=True,
    bart_dtype="float16",
)
SMALL = (32, 2, 4)
TINY = replace(BASE, vision=SMALL, text=SMALL, bart_tower=SMALL, projection_dim=24, image_size=32)
SIZES = {"base": BASE, "large": LARGE, "tiny": TINY}
