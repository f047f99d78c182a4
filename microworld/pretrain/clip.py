"""Pretrains the small CLIP contrastively on pictures and their captions.

A picture has a caption of the whole, and a phrase for each of its groups ("two small penguins"), as the captions of a
photograph describe all or part of it. Each has a hard negative or two. Pictures grow from stage to stage, as a CLIP of
photographs is trained at a low resolution and finished at a higher one. In the last stages, the tokens of patches
learn from texts too, as in FILIP (Yao et al., ICLR 2022).
"""

import itertools
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageEnhance
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from microworld.pretrain.common import fit
from microworld.world.language import absent_kinds, caption, phrase
from microworld.world.rendering import render
from microworld.world.scenes import BACKGROUNDS, CANVAS, COUNTS, SIZES, Group, Scene, relation, scenes
from trainer.precision import is_bf16_fast

PATCH = 16  # pixels a side: an object covers parts of four to sixteen patches
# What a caption of each detail tells, so that a change of it makes the caption wrong.
_TOLD = {
    "brief": ("kind", "count"),
    "some": ("kind", "count", "size", "background"),
    "full": ("kind", "count", "size", "background", "swap", "swap", "swap"),
}


class Stage(NamedTuple):
    """Steps on pictures of `canvas` × `canvas` pixels; each caption has `negatives` hard negatives.

    `options` of `sample_scene` choose what fits into the pictures. `tokens`: the texts that patches are compared with.
    """

    canvas: int
    batch_size: int
    steps: int
    options: dict[str, Any]
    negatives: int = 2
    tokens: tuple[str, ...] = ()
    learning_rate: float = 1e-3


class Texts(NamedTuple):
    """N texts of B pictures, followed by their hard negatives.

    `owners` (N,) is the picture of each text, `is_true` (B, N + negatives) tells of which pictures each text is true.
    """

    texts: list[str]
    owners: torch.Tensor
    is_true: torch.Tensor


STAGES = (
    Stage(48, 256, 500, {"numbers": (1,), "counts": (1,)}, negatives=0),
    Stage(96, 128, 1500, {"numbers": (1, 2, 2, 3), "counts": (1, 1, 2, 3)}),
    Stage(CANVAS, 96, 2000, {"numbers": (1, 2, 2, 3, 3)}),
    Stage(CANVAS, 96, 1100, {"numbers": (1, 2, 2, 3, 3)}, tokens=("phrases",), learning_rate=4e-4),
    Stage(CANVAS, 96, 450, {"numbers": (1, 2, 2, 3, 3)}, tokens=("captions", "phrases"), learning_rate=4e-4),
)


def build_processor(captions: int = 10_000) -> CLIPProcessor:
    """CLIP's own image processor at this world's size, and a tokenizer made from captions."""
    rng, stream = random.Random("clip tokenizer"), scenes("train", seed=-1)
    tokenizer = build_tokenizer([caption(next(stream), rng) for _ in range(captions)])
    size, crop_size = {"shortest_edge": CANVAS}, {"height": CANVAS, "width": CANVAS}
    return CLIPProcessor(CLIPImageProcessor(size=size, crop_size=crop_size), tokenizer)


def build_tokenizer(texts: Sequence[str]) -> CLIPTokenizer:
    """A byte-level BPE in which every word of the texts is one token: its parts are merged from the left.

    It is not trained by the tokenizers library: with CLIP's word endings, that gives another vocabulary on each run.
    """
    letters = sorted(ByteLevel.alphabet())
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    vocab, merges = {token: i for i, token in enumerate(tokens)}, []
    for word in sorted({word for text in texts for word in re.findall("[a-z]+", text)}):
        parts = CLIPTokenizer(vocab=vocab, merges=merges).tokenize(word)
        for end in range(1, len(parts)):
            merges.append(("".join(parts[:end]), parts[end]))
            vocab.setdefault("".join(parts[: end + 1]), len(vocab))
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


def build_model(tokenizer: CLIPTokenizer, canvas: int) -> CLIPModel:
    """A random CLIP of 4.2M parameters: four vision layers, three text layers."""
    text = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4}
    vision = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8}
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = CLIPConfig(
        text_config=text | ids | {"vocab_size": len(tokenizer), "max_position_embeddings": 77},
        vision_config=vision | {"image_size": canvas, "patch_size": PATCH},
        projection_dim=256,
    )
    model = CLIPModel._from_config(config, attn_implementation="eager")
    # A square matrix drawn at random is nearly singular: no linear map could recover all that the tokens hold.
    nn.init.orthogonal_(model.visual_projection.weight)
    return model


def positions(canvas: int, width: int) -> torch.Tensor:
    """(1 + patches, width): sines and cosines of each patch's row and column, and zeros for the class token.

    A smaller canvas has the middle of the largest one's table, so that neighbors differ by the same amount on every
    canvas. The scale is that of the patch embeddings: learned positions that started at CLIP's own scale, 0.02, stayed
    30 times smaller than these.
    """
    side, margin = canvas // PATCH, (CANVAS - canvas) // PATCH / 2
    frequencies = 100 ** (-torch.arange(width // 4) / (width // 4))
    angles = (torch.arange(side) + margin)[:, None] * frequencies
    line = torch.cat([angles.sin(), angles.cos()], dim=1)  # (side, width / 2)
    grid = torch.cat([line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)], dim=2)
    return 1.5 * torch.cat([torch.zeros(1, width), grid.flatten(0, 1)])


def with_canvas(model: CLIPModel, canvas: int) -> CLIPModel:
    """The model for pictures of another size: all weights but the positions, which are fixed."""
    config = CLIPConfig.from_dict(model.config.to_dict())
    config.vision_config.image_size = canvas
    larger = CLIPModel._from_config(config, attn_implementation="eager")
    name = "vision_model.embeddings.position_embedding.weight"
    larger.load_state_dict(model.state_dict() | {name: positions(canvas, config.vision_config.hidden_size)})
    larger.get_parameter(name).requires_grad_(False)
    return larger


def hard_negatives(scene: Scene, detail: str, rng: random.Random, number: int) -> list[Scene]:
    """`number` scenes that differ in one thing that a caption of this detail tells.

    Random captions rarely differ in one thing only. These do, so the image must decide which one is right.
    """
    told = [name for name in _TOLD[detail] if name != "swap" or len(scene.groups) > 1]
    return [_change(scene, name, rng) for name in rng.choices(told, k=number)]


def _change(scene: Scene, name: str, rng: random.Random) -> Scene:
    """One trait of one group, or the background, becomes another; or two groups exchange their kinds."""
    if name == "background":
        return replace(scene, background=rng.choice([other for other in BACKGROUNDS if other != scene.background]))
    groups = list(scene.groups)
    i = rng.randrange(len(groups))
    if name == "swap":
        j = rng.choice([other for other in range(len(groups)) if other != i])
        groups[i], groups[j] = replace(groups[i], kind=groups[j].kind), replace(groups[j], kind=groups[i].kind)
    else:
        groups[i] = _change_group(scene, groups[i], name, rng)
    if not all(relation(a, b) for a, b in itertools.combinations(groups, 2)):  # a larger group left no clear one
        return _change(scene, "kind", rng)
    return replace(scene, groups=tuple(groups))


def _change_group(scene: Scene, group: Group, name: str, rng: random.Random) -> Group:
    values = absent_kinds(scene, group.kind, rng) if name == "kind" else {"count": COUNTS, "size": SIZES}[name]
    return replace(group, **{name: rng.choice([value for value in values if value != getattr(group, name)])})


def jitter(image: Image.Image, rng: random.Random) -> Image.Image:
    """The picture with other saturation and contrast in half of the cases: a kind is more than an artist's colors."""
    if rng.random() < 0.5:
        return image
    image = ImageEnhance.Color(image).enhance(rng.uniform(0.3, 1.5))
    return ImageEnhance.Contrast(image).enhance(rng.uniform(0.7, 1.3))


def batches(processor: CLIPProcessor, stage: Stage, seed: int) -> Iterator[tuple[torch.Tensor, Texts, Texts]]:
    """Endless batches: pixel values (B, 3, H, W), captions of the whole pictures, and phrases of single groups."""
    rng = random.Random(f"clip {stage.canvas} {seed}")
    stream = scenes("train", f"clip {stage.canvas} {seed}", canvas=stage.canvas, **stage.options)
    while True:
        drawn = [next(stream) for _ in range(stage.batch_size)]
        captions, negatives = [], []
        for scene in drawn:
            detail = rng.choice(tuple(_TOLD)) if stage.negatives else "some"
            captions.append(caption(scene, rng, detail))
            negatives += [caption(other, rng, detail) for other in hard_negatives(scene, detail, rng, stage.negatives)]
        images = [jitter(render(scene, rng, canvas=stage.canvas), rng) for scene in drawn]
        inputs = processor.image_processor(images, do_resize=False, do_center_crop=False, return_tensors="pt")
        texts, number = captions + negatives, len(drawn)
        wholes = Texts(texts, torch.arange(number), torch.eye(number, len(texts), dtype=torch.bool))
        yield inputs.pixel_values, wholes, _phrases(drawn, rng)


def _phrases(drawn: Sequence[Scene], rng: random.Random) -> Texts:
    """A phrase for each group, half of them with its size; then a hard negative of each."""
    owners, groups, others = [], [], []
    for owner, scene in enumerate(drawn):
        for group in scene.groups:
            size = rng.random() < 0.5
            owners.append(owner)
            groups.append((group, size))
            others.append((_change_group(scene, group, rng.choice(("kind", "count", "size")[: 2 + size]), rng), size))
    told = [(group.kind, group.count, size and group.size) for group, size in groups + others]
    true = [{(g.kind, g.count, size) for g in scene.groups for size in (g.size, False)} for scene in drawn]
    texts = [phrase(group, size, numeral=rng.random() < 1 / 3) for group, size in groups + others]
    return Texts(texts, torch.tensor(owners), torch.tensor([[text in of_scene for text in told] for of_scene in true]))


def embed_texts(model: CLIPModel, processor: CLIPProcessor, texts: Sequence[str], chunk: int = 64) -> torch.Tensor:
    """(texts, d_j), unit norm. Texts of similar length are embedded together, so that little is padding."""
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    embeds = []
    for start in range(0, len(order), chunk):
        rows = order[start : start + chunk]
        inputs = processor.tokenizer([texts[row] for row in rows], padding=True, return_tensors="pt")
        embeds.append(model.get_text_features(**inputs).pooler_output)
    return nn.functional.normalize(torch.cat(embeds)[torch.tensor(order).argsort()], dim=-1)


def pretrain_clip(folder: Path, stages: Sequence[Stage] = STAGES, seed: int = 0, captions: int = 10_000) -> None:
    """Write the checkpoint (fp16) and its processor to `folder`. `captions` captions give the tokenizer its words."""
    torch.manual_seed(seed)
    processor = build_processor(captions)
    model = build_model(processor.tokenizer, stages[0].canvas)
    for number, stage in enumerate(stages):
        model = with_canvas(model, stage.canvas)
        train(model, processor, stage, folder, seed + number)  # no stage repeats the scenes of another


def train(model: CLIPModel, processor: CLIPProcessor, stage: Stage, folder: Path, seed: int) -> None:
    """Train on the pictures of a stage."""

    def loss_of(batch: tuple[torch.Tensor, Texts, Texts]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        pixels, *both = batch
        with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16_fast("cpu")):
            states = model.vision_model.post_layernorm(model.vision_model(pixels).last_hidden_state)
            tokens = nn.functional.normalize(model.visual_projection(states), dim=-1).float()  # class token first
            embeds = [embed_texts(model, processor, texts).float() for texts, _, _ in both]
        tokens = model.logit_scale.exp() * tokens
        losses = {}
        for name, each, (_, *about) in zip(("captions", "phrases"), embeds, both, strict=True):
            losses[name] = contrastive_loss(tokens[:, 0] @ each.T, *about)
            if name in stage.tokens:  # the patches that a text fits best count most
                losses[f"tokens, {name}"] = contrastive_loss((tokens[:, 1:] @ each.T).logsumexp(dim=1), *about)
        return sum(losses.values()), losses

    options = {"steps": stage.steps, "learning_rate": stage.learning_rate, "warmup": min(200, stage.steps // 4)}
    fit(model, processor, folder, batches(processor, stage, seed), loss_of, **options, name=f"clip {stage.canvas}")


def contrastive_loss(scores: torch.Tensor, owners: torch.Tensor, is_true: torch.Tensor) -> torch.Tensor:
    """CLIP's loss of N texts and B images, where a text may be true of images other than its own.

    Those are left out of its denominators, as are the other true texts of its image. `scores` (B, N + negatives) are
    scaled; `owners` (N,) and `is_true` (B, N + negatives) are those of `Texts`.
    """
    texts = torch.arange(len(owners))
    others = is_true[owners]  # (N, N + negatives), a copy
    others[texts, texts] = False
    of_image = nn.functional.cross_entropy(scores[owners].masked_fill(others, -torch.inf), texts)
    others = is_true[:, : len(owners)].T.clone()  # (N, B)
    others[texts, owners] = False
    of_text = nn.functional.cross_entropy(scores[:, : len(owners)].T.masked_fill(others, -torch.inf), owners)
    return (of_image + of_text) / 2
