"""How good the two teachers are."""

from pathlib import Path

import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import LabelBinarizer, StandardScaler
from transformers import BartForConditionalGeneration, BartTokenizer, CLIPModel, CLIPProcessor

from microworld.exam.exam import Exam, clip_retrieval, draw_exam, score, text_answers
from microworld.world.language import QUESTION_TYPES
from microworld.world.scenes import GRID
from modeling_vlkd import VLKDForConditionalGeneration, VLKDProcessor
from trainer.evaluation.intervals import proportion

TRAITS = ("shape", "color", "size", "count", "cell")


def measure_bart(folder: Path, scenes: int = 400) -> dict[str, str]:
    """Exact match of text questions about held-out passages, by type."""
    model = BartForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = BartTokenizer.from_pretrained(folder)
    figures = {}
    for kinds in (QUESTION_TYPES, ("knowledge",)):
        exam = draw_exam("validation", scenes, kinds)
        figures |= score(exam, text_answers(model, tokenizer, exam))
    return {f"text QA, {name}": _text(figure) for name, figure in figures.items()}


def measure_clip(clip: Path, bart: Path, scenes: int = 1000) -> dict[str, str]:
    """R@1 of 100 on held-out scenes, and what linear maps read from a group's token of V, as both recipes have it."""
    model = VLKDForConditionalGeneration.from_vision_text_pretrained(str(clip), str(bart), patch_attention="self")
    processor = VLKDProcessor.from_vision_text_pretrained(str(clip), str(bart))
    learn, held_out = draw_exam("train", 6 * scenes, ()), draw_exam("validation", scenes, ())
    for exam in (learn, held_out):
        exam.encode(model, processor)
    whole = CLIPModel.from_pretrained(clip, dtype=torch.float32).eval()
    found = clip_retrieval(whole, CLIPProcessor.from_pretrained(clip), held_out)
    figures = {f"retrieval R@1 of 100, {way}": _text(figure) for way, figure in found.items()}
    for trait in TRAITS:
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
        probe.fit(*group_tokens(learn, trait))
        tokens, truth = group_tokens(held_out, trait)
        figures[f"linear probe, {trait}"] = _text(proportion((probe.predict(tokens) == truth).tolist()))
    groups = sum(len(scene.groups) for scene in held_out.scenes)
    for trait in TRAITS:
        figures[f"linear copy (R²), {trait}"] = f"{linear_r2(learn, held_out, trait):.3f} | · | {groups}"
    return figures


def linear_r2(learn: Exam, held_out: Exam, trait: str) -> float:
    """The share of a trait's variance, one column for each value, that a linear map of a group's token explains.

    The paper's W_d is linear: where a probe only separates the values, it cannot hand them on.
    """
    (tokens, truth), (held_out_tokens, held_out_truth) = (group_tokens(exam, trait) for exam in (learn, held_out))
    columns = LabelBinarizer().fit(truth)
    copy = make_pipeline(StandardScaler(), Ridge()).fit(tokens, columns.transform(truth))
    expected = columns.transform(held_out_truth)
    return r2_score(expected, copy.predict(held_out_tokens), multioutput="variance_weighted")


def group_tokens(exam: Exam, trait: str):
    """The image token of every group, (groups, d_j), and the group's trait."""
    pairs = [
        (exam.features[row, 1 + GRID * group.cell[0] + group.cell[1]], str(getattr(group, trait)))
        for row, scene in enumerate(exam.scenes)
        for group in scene.groups
    ]
    return torch.stack([token for token, _ in pairs]).numpy(), [value for _, value in pairs]


def _text(figure) -> str:
    return f"{figure.value:.3f} | {figure.low:.3f}–{figure.high:.3f} | {figure.n}"
