"""Run the tasks with images: generate texts or embeddings, and score them.

Generated texts are appended to one log per strategy, whose name has a hash of everything that the texts depend on: an
interrupted run resumes, and a changed one starts over. An image is encoded once for all its questions and strategies.
"""

import argparse
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from modeling_vlkd.processing_vlkd import first_sentence_of
from trainer.evaluation.datasets import IDS, DatasetOverrides, Examples, load_examples
from trainer.evaluation.formats import Row, write_results
from trainer.evaluation.generation import CHUNK_BATCHES, complete
from trainer.evaluation.scoring import Result, metric_function, score_retrieval, score_task
from trainer.evaluation.tasks.task import STRATEGIES, Step, Task
from trainer.image_loader import load_images
from trainer.inference.backends import load_for_inference
from trainer.models import load_teacher, teacher_embeds

CLIP_TEXT = "CLIP's own text tower"


@dataclass
class Evaluation:
    """The results of each condition (a strategy or a control), with remarks on how they were computed."""

    dataset: str
    split: str
    results: list[tuple[str, list[Result]]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def evaluate(
    tasks: list[Task],
    overrides: DatasetOverrides,
    args: argparse.Namespace,
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
) -> Evaluation:
    """Run the parts of a task file, and write the predictions into `folder`. `args` are those of `vlkd evaluate`."""
    data = [load_examples(task, overrides, not args.predictions_only) for task in tasks]
    model, processor = load_for_inference(args.model, "--model", device, dtype, args.backend)
    evaluation = Evaluation(Path(args.task).stem if len(tasks) > 1 else data[0].dataset, data[0].split)
    for task, examples in zip(tasks, data, strict=True):
        if task.kind == "retrieval":
            results, remarks = retrieve(model, processor, task, examples, args.clip, args.batch_size)
            evaluation.results += results
            evaluation.remarks += remarks
            continue
        texts = generate_all(model, processor, task, examples, folder, args.batch_size)
        for strategy in task.strategies:
            write_results(folder / f"{task.name}.{strategy}.json", task.kind, examples.rows, texts[strategy])
            if not args.predictions_only:
                results, remarks = score_task(task, examples.rows, texts[strategy])
                evaluation.results.append((strategy, results))
                evaluation.remarks += remarks
    evaluation.remarks = list(dict.fromkeys(evaluation.remarks))
    return evaluation


# ---------------------------------------------------------------------------------------------------------- generation
def generate_all(
    model: PreTrainedModel, processor: Any, task: Task, examples: Examples, folder: Path, batch_size: int = 64
) -> dict[str, list[str]]:
    """The normalized text of each row, by strategy. `folder` holds the logs and is created if needed."""
    id_key = IDS[task.kind]
    folder.mkdir(parents=True, exist_ok=True)
    generator = Generator(model, processor.tokenizer, task, batch_size)
    logs = {
        name: GenerationLog(folder / f"{task.name}.{name}.{run_key(model, task, examples, name)}.jsonl")
        for name in task.strategies
    }
    done = sum(log.has(row, id_key) for log in logs.values() for row in examples.rows)
    chunks = [
        {name: [n for n in numbers if not log.has(examples.rows[n], id_key)] for name, log in logs.items()}
        for numbers in _chunks(examples.rows, CHUNK_BATCHES * batch_size)
    ]
    shown = [number for missing in chunks for number in _with_images(missing)]
    encoded = encode_rows(model, processor, examples, shown, batch_size)
    with tqdm(total=len(examples.rows) * len(logs), initial=done, desc=task.name, unit="text") as progress:
        for missing in chunks:
            shown = {examples.rows[number]["image_id"] for number in _with_images(missing)}
            features = dict(islice(encoded, len(shown)))
            for name, row_numbers in missing.items():
                rows = [examples.rows[number] for number in row_numbers]
                generated = generator.generate(name, rows, features) if rows else []
                heads = [{"id": row[id_key], "question": row.get("question")} for row in rows]
                logs[name].append([head | record for head, record in zip(heads, generated, strict=True)])
                progress.update(len(rows))
    last = {name: task.steps[STRATEGIES[task.kind][name][-1]] for name in logs}
    return {
        name: [normalize(log.records[row[id_key]]["text"], last[name]) for row in examples.rows]
        for name, log in logs.items()
    }


class GenerationLog:
    """The texts of one strategy so far, in a file of JSON lines {"id", "question", "text"}, some with "caption".

    An incomplete last line, which an interrupted run leaves, is removed from the file.
    """

    def __init__(self, path: Path):
        self.path = path
        self.records: dict[Any, dict[str, Any]] = {}
        if path.is_file():
            content = path.read_bytes()
            complete_lines = content[: content.rfind(b"\n") + 1]
            if complete_lines != content:
                path.write_bytes(complete_lines)
            try:
                records = [json.loads(line) for line in complete_lines.split(b"\n")[:-1]]
                self.records = {record["id"]: record for record in records}
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{path} has a line that `vlkd evaluate` did not write. Delete the file.") from error

    def has(self, row: Row, id_key: str) -> bool:
        return self.records.get(row[id_key], {}).get("question", ...) == row.get("question")

    def append(self, records: list[dict[str, Any]]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        self.records |= {record["id"]: record for record in records}


def run_key(model: PreTrainedModel, task: Task, examples: Examples, strategy: str) -> str:
    """A hash of everything that a text depends on except its row."""
    digest = hashlib.blake2b(digest_size=6)
    steps = {name: asdict(task.steps[name]) for name in STRATEGIES[task.kind][strategy]}
    config = {key: value for key, value in model.config.to_dict().items() if key != "_name_or_path"}
    data = (examples.dataset, examples.split, task.dataset_kwargs)
    settings = (strategy, steps, data, config, model.device.type, str(model.dtype))
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    digest.update(str(getattr(model, "digest", "")).encode())  # of an exported model, which has no state_dict
    return digest.hexdigest()


def _chunks(rows: Sequence[Row], images: int) -> Iterator[list[int]]:
    """Row numbers in chunks: all rows of the first `images` images, of the next, and so on."""
    by_image: dict[Any, list[int]] = {}
    for number, row in enumerate(rows):
        by_image.setdefault(row["image_id"], []).append(number)
    groups = list(by_image.values())
    for start in range(0, len(groups), images):
        yield [number for group in groups[start : start + images] for number in group]


def _with_images(missing: dict[str, list[int]]) -> list[int]:
    """The numbers of the rows of a chunk whose image a strategy needs."""
    return sorted({number for name, rows in missing.items() if name != "blind" for number in rows})


@torch.no_grad()
def encode_rows(
    model: PreTrainedModel, processor: Any, examples: Examples, numbers: Sequence[int], batch_size: int
) -> Iterator[tuple[Any, torch.Tensor]]:
    """Yield the id and V, (N, d_j), of each image of the given rows, in their order; images are read ahead.

    Raises:
        ValueError: an image cannot be read.
    """
    first: dict[Any, int] = {}
    for number in numbers:
        first.setdefault(examples.rows[number]["image_id"], number)
    ids = list(first)
    for batch in load_images(examples.image, list(first.values()), processor, batch_size):
        if batch.errors:
            raise ValueError(next(iter(batch.errors.values())).message)
        features = model.get_image_features(batch.pixel_values.to(model.device, model.dtype)).last_hidden_state
        yield from zip([ids[number] for number in batch.numbers], features, strict=True)


@dataclass(frozen=True)
class Generator:
    """Generates the texts of a task's steps and strategies with one model."""

    model: PreTrainedModel
    tokenizer: Any
    task: Task
    batch_size: int

    def generate(self, strategy: str, rows: list[Row], features: dict[Any, torch.Tensor]) -> list[dict[str, Any]]:
        """For each row {"text"}, and with the strategy "caption-then-answer" {"text", "caption"}.

        `features` is V of each image, by image id.
        """
        shown = None if strategy == "blind" else [features[row["image_id"]] for row in rows]
        if self.task.kind == "captions":
            return [{"text": text} for text in self.run_step("caption", [{} for _ in rows], shown)]
        if strategy != "caption-then-answer":
            return [{"text": text} for text in self.run_step("answer", rows, shown)]
        images = list(dict.fromkeys(row["image_id"] for row in rows))
        captions = self.run_step("caption", [{} for _ in images], [features[image] for image in images])
        captions = [normalize(caption, self.task.steps["caption"]) for caption in captions]
        caption_of = dict(zip(images, captions, strict=True))
        rows = [{**row, "caption": caption_of[row["image_id"]]} for row in rows]
        answers = self.run_step("answer_from_caption", rows)
        return [{"text": text, "caption": row["caption"]} for text, row in zip(answers, rows, strict=True)]

    def run_step(self, name: str, rows: list[Row], features: list[torch.Tensor] | None = None) -> list[str]:
        """The texts of one step. Without images, equal prompts are generated once."""
        step = self.task.steps[name]
        prompts = [fill_prompt(step, row) for row in rows]
        distinct = prompts if features is not None else list(dict.fromkeys(prompts))
        shown = None if features is None else torch.stack(features)
        options = step.generate_kwargs()
        texts = complete(self.model, self.tokenizer, distinct, shown, self.batch_size, desc=name, **options)
        if features is not None:
            return texts
        text_of = dict(zip(distinct, texts, strict=True))
        return [text_of[prompt] for prompt in prompts]


def fill_prompt(step: Step, row: Row) -> str:
    """The step's prompt with the row's question and caption, the latter without its final period."""
    caption = " ".join(row.get("caption", "").split()).rstrip(". ")
    return step.prompt.format(question=row.get("question", "").strip(), caption=caption)


def normalize(text: str, step: Step) -> str:
    """The text, or its first sentence if the step requires it, on one line."""
    text = first_sentence_of(text) if step.normalization == "first_sentence" else text
    return " ".join(text.split())


# ----------------------------------------------------------------------------------------------------------- retrieval
def retrieve(
    model: PreTrainedModel, processor: Any, task: Task, examples: Examples, clip: str | None, batch_size: int
) -> tuple[list[tuple[str, list[Result]]], list[str]]:
    """Results with BART's text embedding and, as a control, with CLIP's own text tower; and remarks.

    If `clip` is None, CLIP is loaded from the name in the model's config, and left out if that fails.
    """
    image_embeds, text_embeds, image_of_text = embed_all(model, processor, examples, batch_size)
    score = metric_function(task) or score_retrieval
    results = [("direct", score(image_embeds, text_embeds, image_of_text))]
    name = clip or next(iter(model.config.base_models or ()), None)
    if name is None:
        return results, []
    try:
        clip_embeds = clip_text_embeds(name, model, examples, batch_size)
    except ValueError as error:
        if clip:
            raise
        return results, [f"{CLIP_TEXT} is left out: {error}"]
    return [*results, (CLIP_TEXT, score(image_embeds, clip_embeds, image_of_text))], []


@torch.no_grad()
def embed_all(
    model: PreTrainedModel, processor: Any, examples: Examples, batch_size: int = 64
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Unit vectors of all images (n, d_j) and all captions (m, d_j), and the image's row of each caption."""
    encoded = encode_rows(model, processor, examples, range(len(examples.rows)), batch_size)
    encoded = tqdm(encoded, total=len(examples.rows), desc="images", unit="image")
    images = [features[0].cpu().clone() for _, features in encoded]  # the class token, without the others
    image_embeds = torch.nn.functional.normalize(torch.stack(images).float(), dim=-1)
    text_embeds = _embed_captions(
        examples,
        processor.tokenizer,
        batch_size,
        model.device,
        lambda inputs: model.get_text_features(**inputs).pooler_output,
    )
    image_of_text = [number for number, row in enumerate(examples.rows) for _ in row["captions"]]
    return image_embeds, text_embeds, image_of_text


def clip_text_embeds(clip: str, model: PreTrainedModel, examples: Examples, batch_size: int = 64) -> torch.Tensor:
    """Unit vectors of the captions (m, d_j) from CLIP's text tower."""
    teacher, tokenizer = load_teacher(clip, model)
    teacher = teacher.to(model.device)
    return _embed_captions(
        examples, tokenizer, batch_size, model.device, lambda inputs: teacher_embeds(teacher, **inputs)
    )


@torch.no_grad()
def _embed_captions(
    examples: Examples, tokenizer: Any, batch_size: int, device: torch.device, embed: Callable
) -> torch.Tensor:
    captions = [caption for row in examples.rows for caption in row["captions"]]
    embeds = []
    for start in tqdm(range(0, len(captions), batch_size), desc="captions", unit="batch"):
        batch = captions[start : start + batch_size]
        inputs = tokenizer(batch, padding=True, truncation=True, return_tensors="pt").to(device)
        embeds.append(embed(inputs).cpu().float())
    return torch.cat(embeds)
