"""`make demo`: train VLKD on the microworld with `vlkd train`, evaluate it with `vlkd evaluate`, show the results."""

import argparse
import io
import shlex
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import yaml

from microworld import RECIPE, TEACHERS
from microworld.demo.gallery import draw_gallery
from microworld.demo.page import write_page
from microworld.demo.results import merge, sample_cards
from microworld.exam import PARTS, POOL, TEXT_QUESTIONS, sample_exam, write_task
from modeling_vlkd import VLKDForConditionalGeneration, VLKDProcessor
from trainer.arguments import CONFIG_OPTIONS
from trainer.cli import main as vlkd
from trainer.evaluation.metrics_file import load_metrics, terminal_table, write_metrics
from trainer.models import weights_digest


def run(*words: object) -> None:
    """Run `vlkd` in this process. The tables of `vlkd evaluate` are not printed.

    Raises:
        SystemExit: with the command's exit code, if it fails.
    """
    command = [str(word) for word in words]
    print(shlex.join(["vlkd", *command]), flush=True)
    with redirect_stdout(io.StringIO() if command[0] == "evaluate" else sys.stdout):
        code = vlkd(command)
    if code:
        sys.exit(code)


def save_untrained(model: Path, folder: Path) -> None:
    """Write the model that the training of `model` started from."""
    recipe = yaml.safe_load((model / "train.yaml").read_text(encoding="utf-8"))
    options = {name: recipe[name] for name in ("seed", "projector_init", *CONFIG_OPTIONS)}
    untrained = VLKDForConditionalGeneration.from_vision_text_pretrained(recipe["clip"], recipe["bart"], **options)
    untrained.save_pretrained(folder)
    VLKDProcessor.from_pretrained(model).save_pretrained(folder)


def evaluate(folder: Path, teachers: Path, split: str, scenes: int) -> dict[str, list[dict[str, Any]]]:
    """Evaluate `folder`/model and `folder`/before; the predictions go to `folder`/evaluation.

    Returns:
        The figures of the run on `split`, under its name, and of "before", "unseen_artist", "unseen_pairs" and "text".
    """
    clip, out = ["--clip", teachers / "clip"], folder / "evaluation"
    out.mkdir(exist_ok=True)
    runs = {
        split: (split, "model", [*PARTS, "microworld-shuffled"], clip),
        "before": (split, "before", PARTS, [*clip, "--strategy", "direct"]),
        "unseen_artist": ("unseen_artist", "model", PARTS, clip),
        "unseen_pairs": ("unseen_pairs", "model", PARTS[:1], []),
        "text": (split, "model", None, ["--reference_model", teachers / "bart", "--limit", TEXT_QUESTIONS * scenes]),
    }
    for name, (of, model, kept, options) in runs.items():
        task = write_task(out / f"{name}.yaml", kept, "microworld" if kept else "text-retention", size=scenes)
        common = ["--split", of, "--device", "cpu", "--dtype", "float32", "--output_dir", out / name]
        run("evaluate", "--task", task, "--model", folder / model, *options, *common)
    return {name: load_metrics(out / name / "metrics.json")["figures"] for name in runs}


def show(folder: Path, metrics: dict[str, Any], scenes: int) -> None:
    """Draw the contact sheet and write the page."""
    split, out = metrics["split"], folder / "evaluation"
    answers, captions = "microworld-vqa.direct.json", "microworld-captions.direct.json"
    unseen, knowledge = "unseen_artist", sample_exam(split, scenes, seed=1, knowledge=True)
    cards = {
        "knowledge": sample_cards(knowledge, 4, out / split / "microworld-knowledge.direct.json"),
        "scenes": sample_cards(sample_exam(split, scenes), 12, out / split / answers, out / split / captions),
        unseen: sample_cards(sample_exam(unseen, scenes), 8, out / unseen / answers, out / unseen / captions),
    }
    draw_gallery(cards["scenes"], folder / "gallery.png")
    write_page(metrics, cards, folder)


def main() -> None:
    epilog = "Any other --key value goes to `vlkd train`."
    parser = argparse.ArgumentParser(description=__doc__, epilog=epilog, allow_abbrev=False)
    parser.add_argument("--teachers", type=Path, default=TEACHERS, help="a folder with clip/ and bart/")
    parser.add_argument("--output_dir", type=Path, default=Path("demo_output"))
    parser.add_argument("--exam_scenes", type=int, default=500, help=f"scenes of each exam, {POOL} or more")
    parser.add_argument("--split", choices=("validation", "test"), default="test", help="validation to choose recipes")
    args, overrides = parser.parse_known_args()
    if args.exam_scenes < POOL:
        parser.error(f"--exam_scenes is {args.exam_scenes}; it must be {POOL} or more")
    folder, split, start = args.output_dir, args.split, time.time()
    teachers = ["--clip", args.teachers / "clip", "--bart", args.teachers / "bart"]
    run("train", "--config", RECIPE, *teachers, "--output_dir", folder / "model", *overrides)
    trained = time.time()
    save_untrained(folder / "model", folder / "before")
    figures = merge(evaluate(folder, args.teachers, split, args.exam_scenes))
    seconds = {"train": round(trained - start, 1), "evaluate": round(time.time() - trained, 1)}
    command = shlex.join(["python", "-m", "microworld.demo", *sys.argv[1:]]) if sys.argv[1:] else "make demo"
    settings = {"command": command, "dataset": "microworld", "split": split}
    settings |= {"recipe": "microworld", "weights": weights_digest(folder / "model"), "seconds": seconds}
    metrics = write_metrics(folder / "metrics.json", figures, **settings)
    show(folder, metrics, args.exam_scenes)
    print(terminal_table(figures))
    print(f"{split} split: {seconds['train']:.0f} s training, {seconds['evaluate']:.0f} s evaluation.")
    print(f"Open {folder / 'index.html'}; the model is in {folder / 'model'}.")


if __name__ == "__main__":
    main()
