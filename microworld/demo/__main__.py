"""`make demo`: train VLKD on the microworld by `vlkd train`, examine it on the test split, show what came out."""

import argparse
import shlex
import sys
import time
from pathlib import Path

import torch
from transformers import BartForConditionalGeneration, CLIPModel, CLIPProcessor

from microworld.demo.gallery import draw_gallery, write_page
from microworld.demo.plots import plot_training
from microworld.exam.exam import (
    Exam,
    answers,
    clip_retrieval,
    draw_exam,
    generated_captions,
    majority_answers,
    retrieval,
    score,
    shuffled,
    text_answers,
    true_captions,
)
from modeling_vlkd import VLKDConfig, VLKDForConditionalGeneration, VLKDProcessor
from trainer.arguments import CONFIG_OPTIONS
from trainer.cli import main as vlkd
from trainer.evaluation.metrics_file import MetricTable, markdown_table, terminal_table, write_metrics
from trainer.hub.repository import weights_digest

RECIPES = {"paper": "train.yaml", "plus": "train_plus.yaml"}
TEACHERS = Path("microworld/teachers")


def train(recipe: str, folder: Path, overrides: list[str]) -> float:
    """Run `vlkd train` as a user would, with further options of his; returns the seconds it took.

    Raises:
        SystemExit: with the command's exit code, where it fails.
    """
    config = f"hub_configs/microworld/{RECIPES[recipe]}"
    command = ["train", "--config", config, "--output_dir", str(folder), *overrides]
    print(shlex.join(["vlkd", *command]), flush=True)
    start = time.time()
    if code := vlkd(command):
        sys.exit(code)
    return time.time() - start


def before_training(config: VLKDConfig, teachers: Path) -> VLKDForConditionalGeneration:
    """The teachers joined by the maps of `config`, as they are before any training."""
    return VLKDForConditionalGeneration.from_vision_text_pretrained(
        str(teachers / "clip"),
        str(teachers / "bart"),
        projector_init="pinv" if config.image_token_expansion == 1 else "random",
        seed=0,
        **{name: getattr(config, name) for name in CONFIG_OPTIONS},
    )


@torch.no_grad()
def examine(
    folder: Path, teachers: Path, num_scenes: int, split: str
) -> tuple[MetricTable, Exam, list[str], list[str]]:
    """Every figure of the table, and what the model answered and wrote on the exam."""
    model = _load(VLKDForConditionalGeneration, folder)
    processor = VLKDProcessor.from_pretrained(folder)
    tokenizer = processor.tokenizer
    before = before_training(model.config, teachers)
    exam, knowledge = draw_exam(split, num_scenes), draw_exam(split, num_scenes, ("knowledge",), seed=1)
    unseen = draw_exam("unseen", num_scenes)
    for drawn in (exam, knowledge, unseen):
        drawn.encode(model, processor)

    figures = MetricTable()
    given = answers(model, tokenizer, exam)
    for drawn, reference, given_vlkd in (
        (exam, draw_exam("validation", num_scenes), given),
        (knowledge, draw_exam("validation", num_scenes, ("knowledge",), seed=1), answers(model, tokenizer, knowledge)),
    ):
        figures.add("VQA", "VLKD", score(drawn, given_vlkd))
        figures.add("VQA", "before VLKD", score(drawn, answers(before, tokenizer, drawn)))
        figures.add("VQA", "blind", score(drawn, answers(model, tokenizer, drawn, blind=True)))
        figures.add("VQA", "shuffled", score(drawn, answers(model, tokenizer, drawn, shuffled(drawn))))
        figures.add("VQA", "majority", score(drawn, majority_answers(drawn, reference)))
    figures.add("VQA", "VLKD", {"unseen pairs": score(unseen, answers(model, tokenizer, unseen))["all"]})
    blind_unseen = score(unseen, answers(model, tokenizer, unseen, blind=True))["all"]
    figures.add("VQA", "blind", {"unseen pairs": blind_unseen})

    written = generated_captions(model, tokenizer, exam)
    figures.add("captions", "VLKD", {"all objects, nothing false": true_captions(exam, written)})
    untrained = true_captions(exam, generated_captions(before, tokenizer, exam))
    figures.add("captions", "before VLKD", {"all objects, nothing false": untrained})

    figures.add("retrieval R@1 of 100", "VLKD", retrieval(model, tokenizer, exam))
    figures.add("retrieval R@1 of 100", "before VLKD", retrieval(before, tokenizer, exam))
    clip = _load(CLIPModel, teachers / "clip")
    clip_processor = CLIPProcessor.from_pretrained(teachers / "clip")
    figures.add("retrieval R@1 of 100", "CLIP's own text tower", clip_retrieval(clip, clip_processor, exam))

    bart = _load(BartForConditionalGeneration, teachers / "bart")
    figures.add("text QA", "VLKD", {"all": score(exam, text_answers(model, tokenizer, exam))["all"]})
    figures.add("text QA", "before VLKD", {"all": score(exam, text_answers(bart, tokenizer, exam))["all"]})
    return figures, exam, given, written


def _load(kind, folder: Path):
    return kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def command_of(args: argparse.Namespace, parser: argparse.ArgumentParser, overrides: list[str]) -> str:
    """The command that makes these figures again; where they are written does not matter."""
    own = ("teachers", "exam_scenes", "split")
    options = [name for name in own if getattr(args, name) != parser.get_default(name)]
    if not (options or overrides):
        return "make demo" if args.recipe == parser.get_default("recipe") else f"make demo RECIPE={args.recipe}"
    words = [word for name in ("recipe", *options) for word in (f"--{name}", str(getattr(args, name)))]
    return shlex.join(["python", "-m", "microworld.demo", *words, *overrides])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="Any other --key value goes to `vlkd train`.", allow_abbrev=False
    )
    parser.add_argument(
        "--recipe", choices=RECIPES, default="paper", help="the paper's (train.yaml) or ours (train_plus.yaml)"
    )
    parser.add_argument("--teachers", type=Path, default=TEACHERS, help="a folder that holds clip/ and bart/")
    parser.add_argument("--output_dir", type=Path, default=Path("demo_output"))
    parser.add_argument("--exam_scenes", type=int, default=500, help="scenes in each exam; at least 100")
    parser.add_argument(
        "--split", choices=("validation", "test"), default="test", help="recipes are chosen on validation"
    )
    args, overrides = parser.parse_known_args()
    torch.set_flush_denormal(True)  # tiny weights become subnormal numbers, which slow the CPU down manyfold

    folder = args.output_dir
    if args.teachers != TEACHERS:
        overrides = ["--clip", str(args.teachers / "clip"), "--bart", str(args.teachers / "bart"), *overrides]
    train_seconds = train(args.recipe, folder / "model", overrides)
    start = time.time()
    figures, exam, given, written = examine(folder / "model", args.teachers, args.exam_scenes, args.split)
    metrics = write_metrics(
        folder / "metrics.json",
        figures.as_list(),
        command=command_of(args, parser, overrides),
        dataset="microworld",
        split=args.split,
        recipe=args.recipe,
        weights=weights_digest(folder / "model"),
        seconds={"train": round(train_seconds, 1), "evaluate": round(time.time() - start, 1)},
    )
    plot_training(folder / "model" / "trainer_state.json", folder / "training.png")
    draw_gallery(exam, given, written, folder / "gallery.png")
    write_page(exam, given, written, markdown_table(metrics["figures"]), folder / "index.html")
    print(terminal_table(metrics["figures"]))
    print(
        f"{args.recipe} recipe, {args.split} split: {train_seconds:.0f} s training, {time.time() - start:.0f} s exam."
    )
    print(f"Look at index.html, gallery.png and training.png in {folder}; the model is in {folder / 'model'}.")


if __name__ == "__main__":
    main()
