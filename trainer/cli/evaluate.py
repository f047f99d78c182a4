"""`vlkd evaluate`: run a task with a model, and print and write the results."""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from trainer.cli.devices import add_device_options, read_device_options
from trainer.evaluation.datasets import DatasetOverrides
from trainer.evaluation.metrics_file import MetricTable, shell_command, terminal_table, write_metrics
from trainer.evaluation.retention import compare_language
from trainer.evaluation.runner import Evaluation, evaluate
from trainer.evaluation.tasks.task import STRATEGIES, Task, load_task, task_names
from trainer.models import weights_digest

# The kinds of task that use an option, for options that not every task uses.
ONLY_FOR = {
    "reference_model": {"text-retention"},
    "strategy": {"vqa"},
    "questions": {"vqa"},
    "annotations": {"vqa", "captions", "retrieval"},
    "images": {"vqa", "captions", "retrieval"},
    "clip": {"retrieval"},
    "backend": {"vqa", "captions", "retrieval"},
    "predictions_only": {"vqa", "captions"},
}
NO_EFFECT = ("command", "run", "output_dir", "batch_size", "device")  # options that do not change results
ONE_DATASET = ("dataset_name", "columns", "questions", "annotations", "images")  # not for tasks with several parts


def add_command(commands: Any) -> None:
    parser = commands.add_parser("evaluate")
    parser.add_argument("--task", required=True, help=f"{', '.join(task_names())}, or the path of a YAML file")
    parser.add_argument("--model", required=True, metavar="DIR", help="folder or Hub name of a VLKD checkpoint")
    parser.add_argument("--dataset_name", help="a folder, a name on the Hub or module:function, instead of the task's")
    parser.add_argument("--split", help="split to evaluate on, instead of the task's")
    parser.add_argument("--columns", metavar="'{image: photo}'", help="the dataset's names of the task's columns")
    parser.add_argument("--questions", metavar="FILE", help="VQA's official questions, instead of a dataset")
    parser.add_argument(
        "--annotations", metavar="FILE", help="VQA's answers, or captions of COCO, nocaps or Karpathy (dataset_*.json)"
    )
    parser.add_argument("--images", metavar="FOLDER", help="folder of the images, if files or dataset have only names")
    parser.add_argument("--limit", type=int, metavar="N", help="use only the first N rows")
    parser.add_argument(
        "--strategy", nargs="+", choices=STRATEGIES["vqa"], help="how to answer questions; default: the task's"
    )
    parser.add_argument("--output_dir", metavar="DIR", help="default: evaluation/TASK; the same command resumes there")
    parser.add_argument(
        "--predictions_only", action="store_true", default=None, help="write the predictions without scoring them"
    )
    parser.add_argument("--batch_size", type=int, default=64, help="images, and prompts, per batch")
    parser.add_argument("--clip", metavar="NAME", help="retrieval: the model's CLIP, whose text tower is the control")
    parser.add_argument(
        "--reference_model", metavar="NAME", help="text-retention: the BART that the model was made from"
    )
    add_device_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the task's parts, write the predictions and metrics.json, and print the results."""
    tasks = load_task(args.task)
    check_options(args, tasks)
    if args.strategy:
        tasks = [replace(t, strategies=tuple(dict.fromkeys(args.strategy))) if t.kind == "vqa" else t for t in tasks]
    for task in tasks:
        task.check_strategies(args.task)
    folder = Path(args.output_dir or Path("evaluation", Path(args.task).stem))
    retention = tasks[0].kind == "text-retention"
    if retention and args.dtype == "auto":
        args.dtype = "float32"  # bfloat16 would round away the small changes that this task measures
    device, dtype = read_device_options(args)
    args.dtype = str(dtype).removeprefix("torch.")  # for the command in metrics.json
    if device.type == "cpu":
        torch.set_flush_denormal(True)  # denormal numbers slow small models down
    overrides = DatasetOverrides(
        args.dataset_name,
        args.split,
        args.limit,
        as_columns(args.columns),
        args.questions,
        args.annotations,
        args.images,
    )
    start = time.time()
    if retention:
        options = (args.model, args.reference_model, device, dtype, args.batch_size)
        evaluation = compare_language(tasks[0], overrides, *options)
    else:
        evaluation = evaluate(tasks, overrides, args, folder, device, dtype)
    settings = {task.name: task.settings() for task in tasks}
    arithmetic = args.dtype if args.backend in (None, "torch") else args.backend
    print_settings(evaluation, args.limit, f"{device.type}, {arithmetic}", settings)
    if args.predictions_only:
        print(f"Wrote the predictions to {folder}, without scores (--predictions_only).")
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    table = MetricTable()
    for condition, results in evaluation.results:
        table.extend(condition, results)
    metrics = write_metrics(
        folder / "metrics.json",
        table.as_list(),
        command=shell_command(["vlkd", "evaluate"], args, NO_EFFECT),
        dataset=evaluation.dataset,
        split=evaluation.split,
        task=Path(args.task).stem,
        model=args.model,
        weights=weights_digest(args.model),
        limit=args.limit,
        device=device.type,
        dtype=arithmetic,
        settings=settings,
        remarks=evaluation.remarks,
        seconds={"evaluate": round(time.time() - start, 1)},
    )
    print(terminal_table(metrics["figures"]))
    print(*evaluation.remarks, f"Wrote {folder / 'metrics.json'}", sep="\n")
    return 0


def check_options(args: argparse.Namespace, tasks: list[Task]) -> None:
    """Raise a ValueError for an invalid option, or one that the task does not use."""
    kinds = {task.kind for task in tasks}
    for name, value in vars(args).items():
        if value is None:
            continue
        if not kinds & ONLY_FOR.get(name, kinds) or (len(tasks) > 1 and name in ONE_DATASET):
            raise ValueError(f"task '{args.task}' does not use --{name}; omit it.")
        if name in ("batch_size", "limit") and value < 1:
            raise ValueError(f"--{name} {value} must be 1 or more.")
    if "text-retention" in kinds and args.reference_model is None:
        raise ValueError(
            f"task '{args.task}' requires --reference_model: the BART that the model was made from, such as "
            "facebook/bart-base."
        )


def as_columns(text: str | None) -> dict[str, str | None] | None:
    """Read `text` as a YAML mapping; raise a ValueError if it is not one."""
    if text is None:
        return None
    try:
        columns = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"--columns {text!r} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(columns, dict):
        raise ValueError(f"--columns {text!r} must be a mapping such as '{{image: photo}}'.")
    return columns


def print_settings(evaluation: Evaluation, limit: int | None, computed: str, settings: dict[str, Any]) -> None:
    """Print what the results depend on, except the model."""
    rows = f", the first {limit} rows only (--limit {limit})" if limit else ""
    print(f"{evaluation.dataset}, {evaluation.split}{rows}")
    print(f"Computed on {computed}")
    for name, values in settings.items():
        print(f"{name}: metric {values['metric']}, {', '.join(values['strategies'])}")
        for step, options in values["steps"].items():
            print(f"  {step}: " + ", ".join(f"{key} {value!r}" for key, value in options.items()))
