"""The task files of `vlkd evaluate`, which fix everything that a result depends on except the model.

A file holds one task or, under `parts`, several by name. A user's own file is given by its path.
"""

import string
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from modeling_vlkd.processing_vlkd import MASK

FOLDER = Path(__file__).parent
NORMALIZATIONS = ("none", "first_sentence")
# The steps of each strategy, by kind of task.
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
COLUMNS = {  # required in every dataset of this kind
    "vqa": ("image", "question"),
    "captions": ("image",),
    "retrieval": ("image", "captions"),
    "text-retention": ("text",),
}
PLACEHOLDERS = {"caption": set(), "answer": {"question"}, "answer_from_caption": {"caption", "question"}}


@dataclass(frozen=True)
class Step:
    """One text that the model generates.

    Args:
        prompt: with one `<mask>`, and the placeholders `{question}` and `{caption}` of the step.
        num_beams, length_penalty, max_new_tokens: as in `generate`.
        normalization: "first_sentence" keeps the first sentence without its final mark, "none" the whole text. The
            metric may normalize further.
    """

    prompt: str
    num_beams: int = 1
    length_penalty: float = 1.0
    max_new_tokens: int = 24
    normalization: str = "none"

    def generate_kwargs(self) -> dict[str, Any]:
        beams = {"length_penalty": self.length_penalty} if self.num_beams > 1 else {}
        return {"num_beams": self.num_beams, "max_new_tokens": self.max_new_tokens, **beams}


@dataclass(frozen=True)
class Task:
    """The data, prompts and metric of an evaluation.

    Args:
        name: used in file names.
        kind: "vqa", "captions", "retrieval" or "text-retention".
        metric: "vqa", "ok-vqa", "captions", "retrieval", "text-retention", or "module:function", which is called as
            `function(rows, texts)`, for retrieval as `function(image_embeds, text_embeds, image_of_text)`, and returns
            a list of {"metric", "row", "value", "n", "low", "high"}.
        dataset: a folder, a name on the Hub, or "module:function".
        split: of the dataset.
        columns: the dataset's column for each of our names; the metric also receives other columns.
        strategies: run by default, the model's own result first.
        steps: by name: "caption", "answer", "answer_from_caption".
        dataset_kwargs: further arguments of `load_dataset` or of the function.
        questions: for text retention, a dataset with the text columns `caption`, `question` and `answer`.
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

    def settings(self) -> dict[str, Any]:
        """The settings that the results depend on."""
        used = {step for name in self.strategies for step in STRATEGIES[self.kind][name]}
        steps = {name: asdict(step) for name, step in self.steps.items() if name in used}
        return {"metric": self.metric, "strategies": list(self.strategies), "steps": steps}

    def check_strategies(self, source: str) -> None:
        """Raise a ValueError that names `source` for an unknown strategy, or one whose steps are missing."""
        for strategy in self.strategies:
            if strategy not in (known := STRATEGIES[self.kind]):
                raise ValueError(f"{source}: unknown strategy '{strategy}'; choose from {', '.join(known)}.")
            if missing := [step for step in known[strategy] if step not in self.steps]:
                raise ValueError(f"{source}: strategy '{strategy}' requires the step `{missing[0]}` under `steps`.")


def task_names() -> list[str]:
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def load_task(name: str) -> list[Task]:
    """The parts of a task, by the task's name or by the path of a file.

    Raises:
        ValueError: the task does not exist, or its file is invalid; the message names file and key.
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
        raise ValueError(f"--task {name} must hold `key: value` lines.")
    parts = content.get("parts", {file.stem: content})
    if not (isinstance(parts, dict) and parts and all(isinstance(part, dict) for part in parts.values())):
        raise ValueError(f"{file}: parts must hold one task or more, each as `name: {{key: value}}`.")
    return [_as_task(part, values, str(file)) for part, values in parts.items()]


def _as_task(name: str, values: dict[str, Any], file: str) -> Task:
    known = {field.name for field in fields(Task)} - {"name"}
    _check_keys(values, known, {"kind", "metric", "dataset", "split", "columns"}, f"{file}: task '{name}'")
    kind = values["kind"]
    if kind not in STRATEGIES:
        raise ValueError(f"{file}: kind: '{kind}' is unknown; choose from {', '.join(STRATEGIES)}.")
    _check_keys(values["columns"], None, set(COLUMNS[kind]), f"{file}: columns")
    steps = {step: _as_step(step, value, file) for step, value in values.get("steps", {}).items()}
    task = Task(name, **{**values, "steps": steps, "strategies": tuple(values.get("strategies", ("direct",)))})
    task.check_strategies(file)
    return task


def _as_step(name: str, values: dict[str, Any], file: str) -> Step:
    where = f"{file}: steps: {name}"
    if name not in PLACEHOLDERS:
        raise ValueError(f"{where} is unknown; choose from {', '.join(PLACEHOLDERS)}.")
    _check_keys(values, {field.name for field in fields(Step)}, {"prompt"}, where)
    step = Step(**values)
    found = {placeholder for _, placeholder, _, _ in string.Formatter().parse(step.prompt) if placeholder is not None}
    if found != PLACEHOLDERS[name] or step.prompt.count(MASK) != 1:
        needed = " and ".join([MASK, *(f"{{{placeholder}}}" for placeholder in sorted(PLACEHOLDERS[name]))])
        raise ValueError(f"{where}: prompt: {step.prompt!r} must have {needed} once, and no other placeholder.")
    if step.normalization not in NORMALIZATIONS:
        known = ", ".join(NORMALIZATIONS)
        raise ValueError(f"{where}: normalization: '{step.normalization}' is unknown; choose from {known}.")
    if step.num_beams < 1 or step.max_new_tokens < 1:
        raise ValueError(f"{where}: num_beams and max_new_tokens must be 1 or more.")
    return step


def _check_keys(values: Any, known: set[str] | None, needed: set[str], where: str) -> None:
    if not isinstance(values, dict):
        raise ValueError(f"{where}: {values!r} must be a mapping of keys to values.")
    if missing := sorted(needed - values.keys()):
        raise ValueError(f"{where} lacks the key `{missing[0]}`.")
    if known is not None and (unknown := sorted(values.keys() - known)):
        raise ValueError(f"{where} has the unknown key `{unknown[0]}`; the keys are {', '.join(sorted(known))}.")
