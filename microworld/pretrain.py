"""`python -m microworld.pretrain [clip|bart|measure]`: makes the two teachers anew, measures them, writes both down.

The teachers set the ceiling of all that VLKD can reach here, so they are measured first, on scenes of the validation
split: text question answering by type, retrieval, and what a linear probe reads from each image token.
"""

import argparse
import time
from pathlib import Path

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import BartForConditionalGeneration, BartTokenizer, CLIPModel, CLIPProcessor

from microworld.language import QUESTION_TYPES
from microworld.pretrain_bart import pretrain_bart
from microworld.pretrain_clip import pretrain_clip
from microworld.scenes import GRID
from microworld.task import Exam, clip_retrieval, draw_exam, score, text_answers
from modeling_vlkd import VLKDForConditionalGeneration, VLKDProcessor
from trainer.evaluation.metrics import proportion

TEACHERS = Path(__file__).with_name("teachers")


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
    """R@1 of 100 on held-out scenes, and how often a linear probe reads a group's trait from its token of V."""
    model = VLKDForConditionalGeneration.from_vision_text_pretrained(str(clip), str(bart))
    processor = VLKDProcessor.from_vision_text_pretrained(str(clip), str(bart))
    learn, held_out = draw_exam("train", 6 * scenes, ()), draw_exam("validation", scenes, ())
    for exam in (learn, held_out):
        exam.encode(model, processor)
    whole = CLIPModel.from_pretrained(clip, dtype=torch.float32).eval()
    found = clip_retrieval(whole, CLIPProcessor.from_pretrained(clip), held_out)
    figures = {f"retrieval R@1 of 100, {way}": _text(figure) for way, figure in found.items()}
    for trait in ("shape", "color", "size", "count", "cell"):
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
        probe.fit(*group_tokens(learn, trait))
        tokens, truth = group_tokens(held_out, trait)
        figures[f"linear probe, {trait}"] = _text(proportion((probe.predict(tokens) == truth).tolist()))
    return figures


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


def report(seconds: dict[str, float]) -> str:
    """What stands in `teachers/README.md`."""
    figures = measure_bart(TEACHERS / "bart") | measure_clip(TEACHERS / "clip", TEACHERS / "bart")
    lines = [
        "# The two teachers",
        "",
        "Printed by `python -m microworld.pretrain measure` on the validation split.",
        "",
    ]
    for name in ("clip", "bart"):
        kind = {"clip": CLIPModel, "bart": BartForConditionalGeneration}[name]
        parameters = sum(p.numel() for p in kind.from_pretrained(TEACHERS / name).parameters())
        size = (TEACHERS / name / "model.safetensors").stat().st_size
        cost = f", pretrained in {seconds[name] / 60:.0f} minutes on one CPU core" if name in seconds else ""
        lines.append(f"- `{name}`: {parameters:,} parameters, {size / 1e6:.1f} MB in fp16{cost}")
    lines += ["", "| figure | value | 95% interval | n |", "| --- | ---: | ---: | ---: |"]
    return "\n".join([*lines, *(f"| {name} | {text} |" for name, text in figures.items())]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=("all", "clip", "bart", "measure"), default="all")
    what = parser.parse_args().what
    torch.set_num_threads(1)  # models this small gain nothing from a second thread: run `clip` and `bart` side by side
    seconds = {}
    for name, pretrain in (("clip", pretrain_clip), ("bart", pretrain_bart)):
        if what in ("all", name):
            start = time.time()
            pretrain(TEACHERS / name)
            seconds[name] = time.time() - start
    if what in ("all", "measure"):
        text = report(seconds)
        print(text)
        (TEACHERS / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
