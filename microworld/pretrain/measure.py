"""How good the two teachers are, on scenes of the validation split and of the unseen artist."""

import random
from pathlib import Path

import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import LabelBinarizer, StandardScaler
from transformers import BartForConditionalGeneration, BartTokenizer, CLIPModel, CLIPProcessor

from microworld.drawings import ARTISTS, HELD_OUT_ARTIST
from microworld.exam import Exam, draw_exam, score_answers, score_retrieval, text_questions
from microworld.pretrain.clip import PATCH, embed_texts
from microworld.world.kinds import KINDS, article
from microworld.world.language import WHERE
from microworld.world.rendering import render
from microworld.world.scenes import BACKGROUNDS, CANVAS, Group, Scene
from modeling_vlkd import VLKDForConditionalGeneration, VLKDProcessor
from modeling_vlkd.processing_vlkd import VQA_PROMPT, first_sentence_of
from trainer.evaluation.generation import complete, encode_images
from trainer.evaluation.intervals import proportion

TRAITS = ("kind", "size", "count", "background")
Figures = dict[str, str]


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
    exams = {split: draw_exam(split, scenes) for split in ("validation", "unseen_artist")}
    exams["train"] = draw_exam("train", 8 * scenes)
    tokens = {split: encode_images(model, processor, _Pictures(exam)) for split, exam in exams.items()}
    figures = {}
    for split, artist in (("validation", "seen artists"), ("unseen_artist", "unseen artist")):
        texts = embed_texts(whole, clip_processor, exams[split].captions)
        images = torch.nn.functional.normalize(tokens[split][:, 0], dim=-1)
        for result in score_retrieval(images, texts, range(scenes)):
            figures[f"{result['metric']}, {result['row']}, {artist}"] = _text(result)
        figures[f"zero-shot kind of one drawing, {artist}"] = _text(zero_shot(whole, clip_processor, split))
    for split, artist in (("validation", "seen artists"), ("unseen_artist", "unseen artist")):
        for trait in TRAITS:
            figures[f"linear probe, {trait}, {artist}"] = _text(_probe(exams, tokens, split, trait))
            r2, groups = linear_r2(exams, tokens, split, trait)
            figures[f"linear R², {trait}, {artist}"] = f"{r2:.3f} | · | {groups}"
    return figures


class _Pictures:
    """The pictures of an exam, drawn when they are asked for."""

    def __init__(self, exam: Exam):
        self.exam = exam

    def __len__(self) -> int:
        return len(self.exam.scenes)

    def __getitem__(self, rows: slice) -> list:
        return [self.exam.picture(row) for row in range(*rows.indices(len(self)))]


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


def _probe(exams: dict[str, Exam], tokens: dict[str, torch.Tensor], split: str, trait: str) -> dict[str, float]:
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))
    probe.fit(*group_tokens(exams["train"], tokens["train"], trait))
    inputs, truth = group_tokens(exams[split], tokens[split], trait)
    return proportion((probe.predict(inputs) == truth).tolist()).as_dict()


def linear_r2(exams: dict[str, Exam], tokens: dict[str, torch.Tensor], split: str, trait: str) -> tuple[float, int]:
    """The share of a trait's variance, one column for each value, that a linear map of a group's token explains.

    The paper's W_d is linear: what a probe can separate, it may still not be able to pass on.
    """
    (inputs, truth), (held_out, held_out_truth) = (
        group_tokens(exams[name], tokens[name], trait) for name in ("train", split)
    )
    columns = LabelBinarizer().fit(truth)
    ridge = make_pipeline(StandardScaler(), Ridge()).fit(inputs, columns.transform(truth))
    expected = columns.transform(held_out_truth)
    return r2_score(expected, ridge.predict(held_out), multioutput="variance_weighted"), len(held_out_truth)


def group_tokens(exam: Exam, tokens: torch.Tensor, trait: str):
    """The token of the patch at the center of each group's first drawing, (groups, d_j), and the group's trait."""
    side = CANVAS // PATCH
    pairs = []
    for row, scene in enumerate(exam.scenes):
        for group in scene.groups:
            x, y = group.members()[0]
            value = scene.background if trait == "background" else str(getattr(group, trait))
            pairs.append((tokens[row, 1 + side * int(y // PATCH) + int(x // PATCH)], value))
    return torch.stack([token for token, _ in pairs]).numpy(), [value for _, value in pairs]


def _text(result: dict[str, float]) -> str:
    return f"{result['value']:.3f} | {result['low']:.3f}–{result['high']:.3f} | {result['n']}"
