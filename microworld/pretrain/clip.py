"""Pretrains the small CLIP contrastively on rendered scenes and their captions, with hard negative captions."""

import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    get_cosine_schedule_with_warmup,
)

from microworld.pretrain.common import build_optimizer, save
from microworld.world.language import be, caption, noun
from microworld.world.rendering import CELL, IMAGE_SIZE, render
from microworld.world.scenes import BACKGROUNDS, COLORS, COUNTS, SHAPES, SIZES, Scene, sample_cells, scenes
from trainer.precision import is_bf16_fast

_TRAITS = {"shape": SHAPES, "color": COLORS, "size": SIZES, "count": COUNTS}
# Where one group stands alone, what the class token makes of it is what a patch's own token must hold.
SINGLE_SHARE = 0.5
# Such an image's caption says in half of the cases where the group stands.
PLACED_SHARE = 0.5
_PLACES = {(1, 0): "left", (1, 2): "right", (0, 1): "top", (2, 1): "bottom"}
# Black becomes 0, so that on their black cards the shapes alone make the patch embedding.
_MEAN, _STD = (0.0, 0.0, 0.0), (0.25, 0.25, 0.25)


def build_processor(captions: int = 10_000) -> CLIPProcessor:
    """CLIP's own image processor at the microworld's size, and a tokenizer learnt on captions."""
    rng, stream = random.Random("clip tokenizer"), scenes("train", seed=-1)
    texts = [describe(next(stream), rng, placed=rng.random() < PLACED_SHARE) for _ in range(captions)]
    tokenizer = CLIPTokenizer().train_new_from_iterator(texts, vocab_size=700, show_progress=False)
    tokenizer.model_max_length = 48
    image_processor = CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=_MEAN,
        image_std=_STD,
    )
    return CLIPProcessor(image_processor=image_processor, tokenizer=tokenizer)


def build_model(tokenizer: CLIPTokenizer) -> CLIPModel:
    """A CLIP of 3.0M parameters whose patches are the cells of the grid.

    Its MLP is wide: a colour is no linear function of pixels, and the paper's map to BART is linear.
    """
    text = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4}
    vision = {"hidden_size": 256, "intermediate_size": 1536, "num_hidden_layers": 1, "num_attention_heads": 8}
    config = CLIPConfig(
        text_config=text
        | {
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 48,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config=vision | {"image_size": IMAGE_SIZE, "patch_size": CELL},
        projection_dim=256,
    )
    model = CLIPModel._from_config(config, attn_implementation="eager")
    # The patch embedding grows to a deviation of 15: CLIP's start of 0.02 would drown in it, and with it every place.
    torch.nn.init.normal_(model.vision_model.embeddings.position_embedding.weight, std=4.0)
    # A square matrix drawn at random is nearly singular: what V holds, no linear map could then learn to read.
    torch.nn.init.orthogonal_(model.visual_projection.weight)
    return model


def describe(scene: Scene, rng: random.Random, placed: bool, full: bool | None = None) -> str:
    """A caption; if `placed`, one that says where a group stands that is alone."""
    text = caption(scene, rng, full)
    if placed and len(scene.groups) == 1:
        (group,) = scene.groups
        text += f". the {noun(group)} {be(group)} at the {_PLACES[group.cell]}"
    return text


def hard_negatives(scene: Scene, rng: random.Random, placed: bool) -> list[Scene]:
    """Four scenes that differ in one thing: a shape; a colour; a size or number; places, two groups' traits, or any.

    Among a hundred random captions these seldom decide which is right: only against such must the image tell them.
    """
    if len(scene.groups) == 2 and rng.random() < 0.7:
        fourth = rng.choice((_move, _swap))(scene, rng)
    elif placed and len(scene.groups) == 1:
        fourth = _move(scene, rng)
    else:
        fourth = _change(scene, rng.choice(("shape", "color", "size", "count", "background")), rng)
    return [*(_change(scene, name, rng) for name in ("shape", "color", rng.choice(("size", "count")))), fourth]


def _move(scene: Scene, rng: random.Random) -> Scene:
    """A group that is alone stands in another place, two groups stand in another relation."""
    while True:
        cells = sample_cells(rng)[: len(scene.groups)]
        moved = replace(scene, groups=tuple(replace(g, cell=c) for g, c in zip(scene.groups, cells, strict=True)))
        if _place(moved) != _place(scene):
            return moved


def _place(scene: Scene) -> tuple[int, int] | str:
    return scene.groups[0].cell if len(scene.groups) == 1 else scene.relation(*scene.groups)


def _swap(scene: Scene, rng: random.Random) -> Scene:
    """Two groups exchange one trait in which they differ."""
    a, b = scene.groups
    name = rng.choice([n for n in ("shape", "color", "size", "count") if getattr(a, n) != getattr(b, n)])
    swapped = (replace(a, **{name: getattr(b, name)}), replace(b, **{name: getattr(a, name)}))
    return replace(scene, groups=swapped)


def _change(scene: Scene, name: str, rng: random.Random) -> Scene:
    """One trait of one group, or the background, becomes another; shapes and colours stay different between groups."""
    if name == "background":
        return replace(scene, background=rng.choice([b for b in BACKGROUNDS if b != scene.background]))
    groups = list(scene.groups)
    i = rng.randrange(len(groups))
    taken = {getattr(g, name) for g in groups} if name in ("shape", "color") else {getattr(groups[i], name)}
    groups[i] = replace(groups[i], **{name: rng.choice([c for c in _TRAITS[name] if c not in taken])})
    return replace(scene, groups=tuple(groups))


def pixels(images: list) -> torch.Tensor:
    """(B, 3, H, W), as the image processor gives them: the microworld's images need no resizing."""
    raw = torch.stack([torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8) for image in images])
    raw = raw.view(-1, IMAGE_SIZE, IMAGE_SIZE, 3).permute(0, 3, 1, 2).float() / 255
    return (raw - torch.tensor(_MEAN).view(3, 1, 1)) / torch.tensor(_STD).view(3, 1, 1)


def batches(tokenizer: CLIPTokenizer, batch_size: int, seed: int) -> Iterator[dict[str, torch.Tensor]]:
    """Endless batches: B images and 5 B captions, B right ones and then the images' hard negatives."""
    rng = random.Random(f"clip {seed}")
    singles = (scene for scene in scenes("train", seed + 1) if len(scene.groups) == 1)
    pairs = (scene for scene in scenes("train", seed) if len(scene.groups) == 2)
    while True:
        drawn = [next(singles if rng.random() < SINGLE_SHARE else pairs) for _ in range(batch_size)]
        texts, negatives = [], []
        for scene in drawn:
            placed = rng.random() < PLACED_SHARE
            texts.append(describe(scene, rng, placed))
            negatives += [describe(n, rng, placed, full=True) for n in hard_negatives(scene, rng, placed)]
        texts += negatives
        encoded = tokenizer(texts, padding=True, return_tensors="pt")
        yield {"pixel_values": pixels([render(scene, rng) for scene in drawn]), **encoded}


def pretrain_clip(
    folder: Path,
    steps: int = 2000,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    seed: int = 0,
    captions: int = 10_000,
) -> None:
    """Pretrain and write the checkpoint (fp16 safetensors) and its processor to `folder`.

    `captions` is the number of captions that the tokenizer is learned on.
    """
    torch.manual_seed(seed)
    torch.set_flush_denormal(True)
    processor = build_processor(captions)
    model = build_model(processor.tokenizer)
    optimizer = build_optimizer(model, learning_rate)
    schedule = get_cosine_schedule_with_warmup(optimizer, 200, steps)
    model.train()
    start = time.time()
    target = torch.arange(batch_size)
    progress = tqdm(batches(processor.tokenizer, batch_size, seed), total=steps, desc="clip")
    for step, batch in enumerate(progress, 1):
        with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16_fast("cpu")):
            scores = model(**batch).logits_per_image.float()  # (B, 5 B)
        loss_image = torch.nn.functional.cross_entropy(scores, target)
        loss_text = torch.nn.functional.cross_entropy(scores[:, :batch_size].T, target)
        loss = (loss_image + loss_text) / 2
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        model.logit_scale.data.clamp_(max=4.6052)  # 100, as in CLIP
        if step % 100 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
        if step % 500 == 0 or step == steps:
            correct = (scores.argmax(1) == target).float().mean().item()
            print(
                f"clip step {step} loss {loss.item():.4f} top-1 {correct:.3f} {time.time() - start:.0f} s", flush=True
            )
            save(model, processor, folder)
        if step == steps:
            break
