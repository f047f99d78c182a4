"""One row of the study with one seed: `vlkd train`, the exam on both splits, metrics.json.

    python -m microworld.study.run without-icti 2

It runs in a process of its own, so that a seed's draws depend on nothing that ran before.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoTokenizer, BartConfig, BartForConditionalGeneration, PreTrainedModel, set_seed

from microworld.exam.exam import Exam, answers, draw_exam, first_hits, generated_captions, kinds_of, text_answers
from microworld.study.rows import BY_NAME, RANDOM_BART, RECIPES, Row
from microworld.study.settings import POOL, SPLITS, add_arguments, options_of, settings_of
from microworld.world.caption_reader import caption_is_true
from microworld.world.language import QUESTION_TYPES
from modeling_vlkd import VLKDForConditionalGeneration, VLKDProcessor
from trainer.cli import main as vlkd
from trainer.evaluation.intervals import proportion
from trainer.evaluation.metrics_file import write_metrics

Hits = dict[tuple[str, str], list[tuple[int, bool]]]  # (metric, row of the table) -> (scene, right) of each trial


def run(row: Row, seed: int, steps: int, scenes: int, output: Path) -> None:
    """Train, examine, write `output/<row>/<seed>/metrics.json`, and delete the weights.

    Raises:
        RuntimeError: `vlkd train` failed; it has said why.
    """
    torch.set_flush_denormal(True)  # tiny weights become subnormal numbers, which slow the CPU down manyfold
    settings = settings_of(row, seed, steps, scenes)
    folder = output / row.name / str(seed)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model_folder = folder / "model"
    command = train_command(row, seed, steps, folder, output / "cache")
    print("vlkd", *command, flush=True)
    if code := vlkd(command):
        raise RuntimeError(f"vlkd train ended with {code}")
    trained = json.loads((model_folder / "all_results.json").read_text(encoding="utf-8"))
    hits = {split: examine(model_folder, split, scenes) for split in SPLITS}
    shutil.rmtree(model_folder)
    shutil.rmtree(folder / "bart", ignore_errors=True)
    write_metrics(
        folder / "metrics.json",
        figures(hits["test"], row.name),
        command=f"python -m microworld.study --rows {row.name} --steps {steps} --scenes {scenes}",
        dataset="microworld",
        split="test",
        row=row.name,
        seed=seed,
        settings=settings,
        train_seconds=trained["train_runtime"],
        samples_per_second=trained["train_samples_per_second"],
        validation_figures=figures(hits["validation"], row.name),
        by_scene={split: by_scene(found, scenes) for split, found in hits.items()},
    )


def train_command(row: Row, seed: int, steps: int, folder: Path, cache: Path) -> list[str]:
    """The arguments of `vlkd`. A random BART is made where the row wants one."""
    options = options_of(row, seed, steps)
    recipe = yaml.safe_load(Path(RECIPES[row.base]).read_text(encoding="utf-8"))
    changed = {name: value for name, value in options.items() if recipe.get(name) != value or name not in recipe}
    if changed.get("bart") == RANDOM_BART:
        changed["bart"] = str(folder / "bart")
        save_random_bart(recipe["bart"], changed["bart"], seed)
    changed |= {"output_dir": str(folder / "model"), "cache_dir": str(cache), "disable_tqdm": True}
    flags = [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in changed.items()]
    return ["train", "--config", RECIPES[row.base], *flags]


def save_random_bart(bart: str, folder: str, seed: int) -> None:
    """The config and tokenizer of `bart` with weights at random."""
    set_seed(seed)
    BartForConditionalGeneration(BartConfig.from_pretrained(bart)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(bart).save_pretrained(folder)


@torch.no_grad()
def examine(folder: Path, split: str, scenes: int) -> Hits:
    """Every trial of one split: VQA with and without the image, captions, retrieval, text QA."""
    model = VLKDForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    processor = VLKDProcessor.from_pretrained(folder)
    tokenizer = processor.tokenizer
    exam, knowledge = draw_exam(split, scenes), draw_exam(split, scenes, ("knowledge",), seed=1)
    for drawn in (exam, knowledge):
        drawn.encode(model, processor)
    hits: Hits = {}
    _add_answers(hits, "VQA", exam, answers(model, tokenizer, exam), QUESTION_TYPES)
    _add_answers(hits, "VQA", knowledge, answers(model, tokenizer, knowledge), ("knowledge",))
    _add_answers(hits, "blind VQA", exam, answers(model, tokenizer, exam, blind=True), QUESTION_TYPES)
    written = generated_captions(model, tokenizer, exam)
    hits["captions", "right"] = [
        (number, caption_is_true(text, scene))
        for number, (text, scene) in enumerate(zip(written, exam.scenes, strict=True))
    ]
    for row, found in _retrieval(model, tokenizer, exam).items():
        hits["retrieval R@1", row] = list(enumerate(found))
    _add_answers(hits, "text QA", exam, text_answers(model, tokenizer, exam), QUESTION_TYPES)
    return hits


def _add_answers(hits: Hits, metric: str, exam: Exam, given: list[str], kinds: tuple[str, ...]) -> None:
    for (scene, asked), answer in zip(exam.questions, given, strict=True):
        for name in kinds_of(exam.scenes[scene], asked):
            hits.setdefault((metric, name), []).append((scene, answer == asked.answer))


def _retrieval(model: PreTrainedModel, tokenizer, exam: Exam) -> dict[str, list[bool]]:
    texts = model.get_text_features(**tokenizer(exam.captions, padding=True, return_tensors="pt")).pooler_output
    return first_hits(exam.features[:, 0], texts, POOL)


def figures(hits: Hits, condition: str) -> list[dict[str, Any]]:
    """One figure a row of the table: the share of right trials of this one run, with its Wilson interval."""
    return [
        {"metric": metric, "row": row, "condition": condition, **proportion([right for _, right in found]).as_dict()}
        for (metric, row), found in hits.items()
    ]


def by_scene(hits: Hits, scenes: int) -> dict[str, dict[str, list[int]]]:
    """For each row of the table how often a scene was asked, and how often rightly answered: what intervals need."""
    counted = {}
    for (metric, row), found in hits.items():
        asked, right = [0] * scenes, [0] * scenes
        for scene, is_right in found:
            asked[scene] += 1
            right[scene] += is_right
        counted[f"{metric}: {row}"] = {"asked": asked, "right": right}
    return counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", choices=BY_NAME)
    parser.add_argument("seed", type=int)
    add_arguments(parser)
    args = parser.parse_args()
    try:
        run(BY_NAME[args.row], args.seed, args.steps, args.scenes, args.output_dir)
    except (ValueError, RuntimeError) as error:
        sys.exit(f"study_run: {args.row}, seed {args.seed}: {error}")


if __name__ == "__main__":
    main()
