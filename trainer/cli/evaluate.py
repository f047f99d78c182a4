"""`vlkd evaluate`: a model, a task, and the figures that come out, with all that they depend on."""

import argparse
import shlex
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from trainer.cli.devices import add_device_options, read_device_options
from trainer.evaluation.datasets import Where
from trainer.evaluation.metrics_file import MetricTable, terminal_table, write_metrics
from trainer.evaluation.retention import compare
from trainer.evaluation.runner import evaluate, strategies_of
from trainer.evaluation.tasks.task import STRATEGIES, Task, check_strategy, load_task, task_names
from trainer.hub.repository import weights_digest


def add_command(commands: Any) -> None:
    parser = commands.add_parser("evaluate", help="run a task and print its figures")
    parser.add_argument("--task", required=True, help=f"{', '.join(task_names())}, or a YAML file of your own")
    parser.add_argument("--model", metavar="DIR", help="folder or Hub name of a VLKD checkpoint")
    parser.add_argument("--dataset_name", help="in place of the task's: folder, hub name or module:function")
    parser.add_argument("--split", help="in place of the task's")
    parser.add_argument("--columns", metavar="'{image: photo}'", help="the dataset's names for the task's columns")
    parser.add_argument("--questions", metavar="FILE", help="VQA's official questions, in place of a dataset")
    parser.add_argument(
        "--annotations", metavar="FILE", help="VQA's answers; or captions: COCO's, nocaps', Karpathy's dataset_*.json"
    )
    parser.add_argument("--images", metavar="FOLDER", help="where the images that the files name lie")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N rows only")
    parser.add_argument(
        "--strategy",
        nargs="+",
        choices=STRATEGIES["vqa"],
        help="how questions are answered; all the task names if unset",
    )
    parser.add_argument("--output_dir", metavar="DIR", help="evaluation/TASK if unset; run again to go on from there")
    parser.add_argument("--predictions_only", action="store_true", help="write the predictions and score nothing")
    parser.add_argument("--batch_size", type=int, default=64, help="images and prompts at once")
    parser.add_argument("--clip", metavar="NAME", help="of retrieval: the CLIP the model was made from, as a control")
    parser.add_argument("--before", metavar="BART", help="of text-retention: the BART it was made from")
    parser.add_argument("--after", metavar="DIR", help="of text-retention: the VLKD (or BART) it has become")
    add_device_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the task's parts, write predictions and metrics.json, print the figures."""
    tasks = load_task(args.task)
    check_options(args, tasks)
    where = Where(
        args.dataset_name,
        args.split,
        args.limit,
        as_columns(args.columns),
        args.questions,
        args.annotations,
        args.images,
    )
    folder = Path(args.output_dir or Path("evaluation", Path(args.task).stem))
    if tasks[0].kind == "text-retention" and args.dtype == "auto":
        args.dtype = "float32"  # rounded to bfloat16, weights lose small changes, which are what this task measures
    device, dtype = read_device_options(args)
    args.dtype = str(dtype).removeprefix("torch.")  # the figures depend on it, so the command that is printed has it
    if device.type == "cpu":
        torch.set_flush_denormal(True)  # denormal numbers slow small models down manyfold
    start, figures, remarks = time.time(), MetricTable(), []
    if tasks[0].kind == "text-retention":
        dataset, split, found = compare(tasks[0], where, args.before, args.after, device, dtype, args.batch_size)
        for condition, measured in found:
            figures.extend(condition, measured)
    else:
        dataset, split = evaluate(tasks, where, folder, args, device, dtype, figures, remarks)
    settings = {task.name: task.settings(strategies_of(task, args.strategy)) for task in tasks}
    print_settings(dataset, split, args.limit, f"{device.type}, {args.dtype}", settings)
    if args.predictions_only:
        print(f"No score: the predictions in {folder} stand alone (--predictions_only).")
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    metrics = write_metrics(
        folder / "metrics.json",
        figures.as_list(),
        command=command_of(args),
        dataset=dataset,
        split=split,
        task=Path(args.task).stem,
        model=args.model or args.after,
        weights=weights_digest(args.model or args.after),
        limit=args.limit,
        device=device.type,
        dtype=args.dtype,
        settings=settings,
        remarks=remarks,
        seconds={"evaluate": round(time.time() - start, 1)},
    )
    print(terminal_table(metrics["figures"]))
    print(*remarks, f"in {folder}", sep="\n")
    return 0


def check_options(args: argparse.Namespace, tasks: list[Task]) -> None:
    """Raise a ValueError for options that are missing, or that this task has no use for."""
    kinds = {task.kind for task in tasks}
    if "text-retention" in kinds:
        needed, idle = ("before", "after"), ("model", "strategy", "questions", "annotations", "images", "clip")
    else:
        needed, idle = ("model",), ("before", "after")
        idle += () if "vqa" in kinds else ("strategy", "questions")
        idle += () if "retrieval" in kinds else ("clip",)
    if len(tasks) > 1:
        idle += ("dataset_name", "columns", "questions", "annotations", "images")
    for name in needed:
        if getattr(args, name) is None:
            raise ValueError(f"--{name} is missing: task '{args.task}' needs it.")
    for name in idle:
        if getattr(args, name) is not None:
            raise ValueError(f"--{name} is of no use to task '{args.task}'; leave it out.")
    if args.predictions_only and not kinds <= {"vqa", "captions"}:
        raise ValueError(f"--predictions_only: task '{args.task}' has no predictions to be scored elsewhere.")
    for name in ("batch_size", "limit"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} {value} must be 1 or more.")
    for task in tasks:
        for strategy in strategies_of(task, args.strategy):
            check_strategy(task, strategy, args.task)


def as_columns(text: str | None) -> dict[str, str | None] | None:
    """Raises a ValueError unless `text` is a YAML mapping."""
    try:
        columns = None if text is None else yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"--columns {text!r} cannot be read: {' '.join(str(error).split())}") from error
    if text is not None and not isinstance(columns, dict):
        raise ValueError(f"--columns {text!r} must be a mapping such as '{{image: photo}}'.")
    return columns


def command_of(args: argparse.Namespace) -> str:
    """The command that makes these figures again; where they are written, and how many at once, does not matter."""
    words = ["vlkd", "evaluate"]
    for name, value in vars(args).items():
        if name not in ("command", "run", "output_dir", "batch_size", "device") and value not in (None, False):
            values = [] if value is True else value if isinstance(value, list) else [str(value)]
            words += [f"--{name}", *values]
    return shlex.join(words)


def print_settings(dataset: str, split: str, limit: int | None, computed: str, settings: dict[str, Any]) -> None:
    """All that the figures depend on beside the model, above them."""
    print(f"{dataset}, {split}" + (f", the first {limit} rows only (--limit {limit})" if limit else ""))
    print(f"Computed on {computed}")
    for name, values in settings.items():
        print(f"{name}: metric {values['metric']}, {', '.join(values['strategies'])}")
        for step, options in values["steps"].items():
            print(f"  {step}: " + ", ".join(f"{key} {value!r}" for key, value in options.items()))
