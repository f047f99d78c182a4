"""How good the two teachers are, on scenes of the validation split and of the unseen artist."""

import math
import random
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import LabelBinarizer, StandardScaler
from transformers import BartForConditionalGeneration, BartTokenizer, CLIPModel, CLIPProcessor

from microworld.drawings import ARTISTS, HELD_OUT_ARTIST
from microworld.exam import Exam, sample_exam, score_answers, score_retrieval, text_questions
from microworld.pretrain.clip import embed_texts
from microworld.world.kinds import KINDS, WHERE, article
from microworld.world.rendering import render
from microworld.world.scenes import BACKGROUNDS, CANVAS, Group, Scene
from modeling_vlkd import VLKDForConditionalGeneration, VLKDProcessor
from modeling_vlkd.processing_vlkd import VQA_PROMPT, first_sentence_of
from trainer.evaluation.generation import complete, encode_images
from trainer.evaluation.intervals import proportion

TRAITS = ("kind", "size", "count", "background")
Figures = dict[str, str]
Tokens = tuple[np.ndarray, list[str]]  # one token of each group, (groups, d_j), and the trait of each group


def measure_bart(folder: Path, scenes: int = 400) -> Figures:
    """The share of text questions about held-out passages that are answered right, by type."""
    model = BartForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = BartTokenizer.from_pretrained(folder)
    figures = {}
    for knowledge in (False, True):
        asked = text_questions("validation", scenes, knowledge=knowledge)
        prompts = [f"{row['caption']}. {VQA_PROMPT.format(question=row['question'])}" for row in asked]
        texts = complete(model, tokenizer, prompts, max_new_tokens=16, desc="text QA")
        results = score_answers(list(asked), [first_sentence_of(text) for text in texts])
        figures |= {f"text QA, {result['row']}": _text(result) for result in results}
    return figures


@torch.no_grad()
def measure_clip(clip: Path, bart: Path, scenes: int = 500) -> Figures:
    """Retrieval and zero-shot classification by CLIP itself, and what linear maps read from its tokens."""
    whole = CLIPModel.from_pretrained(clip, dtype=torch.float32).eval()
    clip_processor = CLIPProcessor.from_pretrained(clip)
    model = VLKDForConditionalGeneration.from_vision_text_pretrained(str(clip), str(bart))
    processor = VLKDProcessor.from_vision_text_pretrained(str(clip), str(bart))
    exams = {split: sample_exam(split, scenes) for split in ("validation", "unseen_artist")}
    exams["train"] = sample_exam("train", 8 * scenes)
    figures, tokens = {}, {}
    for split, exam in exams.items():
        tokens[split] = encode_images(model, processor, [exam.picture(row) for row in range(len(exam.scenes))])
    for split, artist in (("validation", "seen artists"), ("unseen_artist", "unseen artist")):
        texts = embed_texts(whole, clip_processor, exams[split].captions)
        images = torch.nn.functional.normalize(tokens[split][:, 0], dim=-1)
        for result in score_retrieval(images, texts, range(scenes)):
            figures[f"{result['metric']}, {result['row']}, {artist}"] = _text(result)
        figures[f"zero-shot kind of one drawing, {artist}"] = _text(zero_shot(whole, clip_processor, split))
    for split, artist in (("validation", "seen artists"), ("unseen_artist", "unseen artist")):
        for trait in TRAITS:
            accuracy, r2 = read_linearly(*(group_tokens(exams[s], tokens[s], trait) for s in ("train", split)))
            figures[f"linear probe, {trait}, {artist}"] = _text(accuracy)
            figures[f"linear R², {trait}, {artist}"] = _text(r2)
    return figures


@torch.no_grad()
def zero_shot(model: CLIPModel, processor: CLIPProcessor, split: str, drawings: int = 10) -> dict[str, float]:
    """How often "a large KIND WHERE" of the right kind is the nearest text to a picture of one large drawing."""
    rng = random.Random(f"zero-shot {split}")
    artists = (HELD_OUT_ARTIST,) if split == "unseen_artist" else ARTISTS
    right = []
    for background in BACKGROUNDS:
        texts = embed_texts(model, processor, [f"{article(f'large {kind}')} {WHERE[background]}" for kind in KINDS])
        images = []
        for number in range(drawings * len(KINDS) // len(BACKGROUNDS)):
            size, x, y = "large", *(CANVAS / 2 + rng.uniform(-30, 30) for _ in "xy")
            group = Group(KINDS[number % len(KINDS)], rng.choice(artists), size, 1, False, x, y)
            images.append(render(Scene((group,), background), rng))
        pixels = processor.image_processor(images, return_tensors="pt").pixel_values
        embeds = model.get_image_features(pixels).pooler_output
        nearest = (embeds @ texts.T).argmax(dim=1)
        right += [KINDS[found] == KINDS[number % len(KINDS)] for number, found in enumerate(nearest.tolist())]
    return proportion(right).as_dict()


def read_linearly(train: Tokens, held_out: Tokens) -> tuple[dict[str, float], dict[str, float]]:
    """How well linear maps that are fitted to `train` read a trait from the tokens of `held_out`.

    The paper's W_d is linear: what a probe can separate, it may still not be able to pass on.

    Returns:
        The accuracy of a probe, and R² (over one column for each value) with a bootstrap interval.
    """
    (inputs, truth), (others, expected) = train, held_out
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200)).fit(inputs, truth)
    columns = LabelBinarizer().fit(truth)
    ridge = make_pipeline(StandardScaler(), Ridge()).fit(inputs, columns.transform(truth))
    values, n = columns.transform(expected), len(expected)
    guesses = ridge.predict(others).reshape(values.shape), values.mean(axis=0)
    residual, total = (((values - guess) ** 2).sum(axis=1) for guess in guesses)
    draws = np.random.default_rng(0).integers(n, size=(1000, n))
    low, high = np.quantile(1 - residual[draws].sum(axis=1) / total[draws].sum(axis=1), (0.025, 0.975))
    r2 = {"value": 1 - residual.sum() / total.sum(), "low": low, "high": high, "n": n}
    return proportion((probe.predict(others) == expected).tolist()).as_dict(), r2


def group_tokens(exam: Exam, tokens: torch.Tensor, trait: str) -> Tokens:
    """The token of the patch at the center of each group's first drawing, and the group's trait."""
    side = math.isqrt(tokens.shape[1])  # patches in a row
    patch = CANVAS / side
    pairs = []
    for row, scene in enumerate(exam.scenes):
        for group in scene.groups:
            x, y = group.members()[0]
            value = scene.background if trait == "background" else str(getattr(group, trait))
            pairs.append((tokens[row, 1 + side * int(y // patch) + int(x // patch)], value))
    return torch.stack([token for token, _ in pairs]).numpy(), [value for _, value in pairs]


def _text(result: dict[str, float]) -> str:
    return f"{result['value']:.3f} | {result['low']:.3f}–{result['high']:.3f} | {result['n']}"
