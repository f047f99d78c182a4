"""The tasks of `vlkd evaluate`: one YAML file each, which says all that a figure depends on beside the model.

A file holds one task or, under `parts`, several by name. A user's own file is given by its path.
"""

import string
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from modeling_vlkd.processing_vlkd import MASK

FOLDER = Path(__file__).parent
NORMALISATIONS = ("none", "first_sentence")
# What each strategy needs, by kind of task.
STRATEGIES = {
    "vqa": {
        "direct": ("answer",),
        "caption-then-answer": ("caption", "answer_from_caption"),
        "blind": ("answer",),
    },
    "captions": {"direct": ("caption",), "blind": ("caption",)},
    "retrieval": {"direct": ()},
    "text-retention": {"direct": ("answer_from_caption",)},
}
COLUMNS = {  # that every dataset of this kind must have
    "vqa": ("image", "question"),
    "captions": ("image",),
    "retrieval": ("image", "captions"),
    "text-retention": ("text",),
}
PLACES = {"caption": set(), "answer": {"question"}, "answer_from_caption": {"caption", "question"}}


@dataclass(frozen=True)
class Step:
    """One thing the model is made to write.

    Args:
        prompt: with one `<mask>`, and `{question}` or `{caption}` where they go.
        num_beams, length_penalty, max_new_tokens: as in `generate`.
        normalisation: "first_sentence" keeps the first sentence without its mark, "none" all. (What a metric does
            to a text beyond that is the metric's.)
    """

    prompt: str
    num_beams: int = 1
    length_penalty: float = 1.0
    max_new_tokens: int = 24
    normalisation: str = "none"

    def generate_kwargs(self) -> dict[str, Any]:
        beams = {"length_penalty": self.length_penalty} if self.num_beams > 1 else {}
        return {"num_beams": self.num_beams, "max_new_tokens": self.max_new_tokens, **beams}


@dataclass(frozen=True)
class Task:
    """What is asked, of which data, and how it is judged.

    Args:
        name: names the files it writes.
        kind: "vqa", "captions", "retrieval" or "text-retention".
        metric: "vqa", "ok-vqa", "captions", "retrieval", "text-retention", or "module:function", which is called as
            `function(rows, texts)` and returns a list of figures without `condition`.
        dataset: folder, hub name or "module:function".
        split: of the dataset.
        columns: the dataset's column for each of our names; those beyond our own names reach the metric.
        strategies: those that are run unless the command says otherwise, the model's own figure first.
        steps: by name: "caption", "answer", "answer_from_caption".
        dataset_kwargs: further arguments of `load_dataset` or of the function.
        questions: of text retention: a dataset with the columns `caption`, `question` and `answer`, all plain text.
        about: one line.
    """

    name: str
    kind: str
    metric: str
    dataset: str
    split: str
    columns: dict[str, str]
    strategies: tuple[str, ...] = ("direct",)
    steps: dict[str, Step] = field(default_factory=dict)
    dataset_kwargs: dict[str, Any] = field(default_factory=dict)
    questions: str | None = None
    about: str = ""

    def settings(self, strategies: list[str]) -> dict[str, Any]:
        """What the figures of these strategies depend on, for the reader and for metrics.json."""
        used = {step for name in strategies for step in STRATEGIES[self.kind][name]}
        steps = {name: asdict(step) for name, step in self.steps.items() if name in used}
        return {"metric": self.metric, "strategies": list(strategies), "steps": steps}


def task_names() -> list[str]:
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def load_task(name: str) -> list[Task]:
    """The parts of a task, by the task's name or by the path of a file.

    Raises:
        ValueError: there is no such task, or its file is wrong; it names file and key.
    """
    own = name.endswith((".yaml", ".yml"))
    file = Path(name) if own else FOLDER / f"{name}.yaml"
    if not own and name not in task_names():
        known = ", ".join(task_names())
        raise ValueError(f"--task '{name}' is unknown; choose one of {known}, or give the path of a YAML file.")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"--task {name} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"--task {name} holds no `key: value` lines.")
    parts = content.get("parts", {file.stem: content})
    return [_as_task(part, values, str(file)) for part, values in parts.items()]


def _as_task(name: str, values: dict[str, Any], file: str) -> Task:
    known = {field.name for field in fields(Task)} - {"name"}
    _check_keys(values, known, {"kind", "metric", "dataset", "split", "columns"}, f"{file}: task '{name}'")
    kind = values["kind"]
    if kind not in STRATEGIES:
        raise ValueError(f"{file}: kind: '{kind}' is unknown; choose one of {', '.join(STRATEGIES)}.")
    _check_keys(values["columns"], None, set(COLUMNS[kind]), f"{file}: columns")
    steps = {step: _as_step(step, value, file) for step, value in values.get("steps", {}).items()}
    task = Task(name, **{**values, "steps": steps, "strategies": tuple(values.get("strategies", ("direct",)))})
    for strategy in task.strategies:
        check_strategy(task, strategy, file)
    return task


def check_strategy(task: Task, strategy: str, where: str) -> None:
    """Raise a ValueError unless the task knows the strategy and has the steps for it."""
    if strategy not in STRATEGIES[task.kind]:
        known = ", ".join(STRATEGIES[task.kind])
        raise ValueError(f"{where}: a task of kind {task.kind} knows no strategy '{strategy}'; choose of {known}.")
    missing = [step for step in STRATEGIES[task.kind][strategy] if step not in task.steps]
    if missing:
        raise ValueError(f"{where}: strategy '{strategy}' needs the step `{missing[0]}`; add it under `steps`.")


def _as_step(name: str, values: dict[str, Any], file: str) -> Step:
    where = f"{file}: steps: {name}"
    if name not in PLACES:
        raise ValueError(f"{where} is unknown; choose of {', '.join(PLACES)}.")
    _check_keys(values, {field.name for field in fields(Step)}, {"prompt"}, where)
    step = Step(**values)
    places = {place for _, place, _, _ in string.Formatter().parse(step.prompt) if place is not None}
    if places != PLACES[name] or step.prompt.count(MASK) != 1:
        needed = " and ".join([MASK, *(f"{{{place}}}" for place in sorted(PLACES[name]))])
        raise ValueError(f"{where}: prompt: {step.prompt!r} must hold {needed} once, and no other place.")
    if step.normalisation not in NORMALISATIONS:
        raise ValueError(f"{where}: normalisation: '{step.normalisation}'; choose of {', '.join(NORMALISATIONS)}.")
    if step.num_beams < 1 or step.max_new_tokens < 1:
        raise ValueError(f"{where}: num_beams and max_new_tokens must be 1 or more.")
    return step


def _check_keys(values: Any, known: set[str] | None, needed: set[str], where: str) -> None:
    if not isinstance(values, dict):
        raise ValueError(f"{where}: {values!r} must be a mapping of keys to values.")
    if missing := sorted(needed - values.keys()):
        raise ValueError(f"{where} lacks the key `{missing[0]}`.")
    if known is not None and (unknown := sorted(values.keys() - known)):
        raise ValueError(f"{where} has the unknown key `{unknown[0]}`; it may have {', '.join(sorted(known))}.")
