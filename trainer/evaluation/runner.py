"""What a model writes for every row of a task, by one strategy or several, kept on disk as it comes.

The images are taken in chunks, each encoded once for all its questions and strategies. A chunk's texts are appended to
one file a strategy, named by a key of all they depend on; a run that was stopped reads them and goes on.
"""

import argparse
import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from modeling_vlkd.processing_vlkd import first_sentence_of
from trainer.evaluation.datasets import IDS, Examples, Where, load_examples
from trainer.evaluation.formats import Row, write_results
from trainer.evaluation.generation import complete, encode_images
from trainer.evaluation.metrics_file import MetricTable
from trainer.evaluation.scoring import judge, score_retrieval
from trainer.evaluation.tasks.task import STRATEGIES, Step, Task
from trainer.models import (
    load_teacher,
    load_vlkd,
    teacher_embeds,
)

READERS = 8  # images are read, and fetched, by so many threads
BATCHES = 4  # of images in a chunk: many questions at once fill the batches of equal prompts
CLIP_TEXT = "CLIP's own text tower"


@dataclass
class Log:
    """The texts of one strategy so far: a JSON line a row, `{"id", "question", "text"}`, perhaps `caption`."""

    path: Path
    texts: dict[Any, dict[str, Any]] = field(default_factory=dict)

    def read(self) -> None:
        """Take in what an earlier run wrote, without a line that it was stopped in."""
        if not self.path.is_file():
            return
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            self.path.write_bytes(whole)
        for line in whole.split(b"\n")[:-1]:
            record = json.loads(line)
            self.texts[record["id"]] = record

    def has(self, row: Row, id_key: str) -> bool:
        return self.texts.get(row[id_key], {}).get("question", ...) == row.get("question")

    def append(self, records: list[dict[str, Any]]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        self.texts |= {record["id"]: record for record in records}


def answer_all(
    model: PreTrainedModel,
    processor: Any,
    task: Task,
    examples: Examples,
    strategies: Sequence[str],
    folder: Path,
    batch_size: int = 64,
) -> dict[str, list[str]]:
    """The normalised text of every row, by strategy.

    Args:
        folder: where the texts are kept, made if need be; what lies there under the same key is not made again.
        batch_size: images encoded, and prompts answered, at once.
    """
    id_key = IDS[task.kind]
    folder.mkdir(parents=True, exist_ok=True)
    writer = Writer(model, processor.tokenizer, task, batch_size)
    logs = {}
    for name in strategies:
        logs[name] = Log(folder / f"{task.name}.{name}.{run_key(model, task, examples, name)}.jsonl")
        logs[name].read()
    done = sum(log.has(row, id_key) for log in logs.values() for row in examples.rows)
    total = len(examples.rows) * len(logs)
    with tqdm(total=total, initial=done, desc=task.name, unit="text") as progress:
        for numbers in _chunks(examples.rows, BATCHES * batch_size):
            todo = {
                name: [number for number in numbers if not log.has(examples.rows[number], id_key)]
                for name, log in logs.items()
            }
            seen = sorted({number for name, rows in todo.items() if name != "blind" for number in rows})
            features = encode_once(model, processor, examples, seen, batch_size)
            for name, rows in todo.items():
                if rows:
                    asked = [examples.rows[number] for number in rows]
                    records = writer.records(name, asked, features)
                    logs[name].append(
                        [
                            {"id": row[id_key], "question": row.get("question"), **record}
                            for row, record in zip(asked, records, strict=True)
                        ]
                    )
                    progress.update(len(rows))
    last = {name: task.steps[STRATEGIES[task.kind][name][-1]] for name in logs}
    return {
        name: [normalize(log.texts[row[id_key]]["text"], last[name]) for row in examples.rows]
        for name, log in logs.items()
    }


def encode_once(
    model: PreTrainedModel, processor: Any, examples: Examples, numbers: Sequence[int], batch_size: int
) -> dict[Any, torch.Tensor]:
    """V, (N, d_j), of every image that the given rows are about, by its id."""
    first = {}
    for number in numbers:
        first.setdefault(examples.rows[number]["image_id"], number)
    if not first:
        return {}
    with ThreadPoolExecutor(READERS) as pool:
        images = list(pool.map(examples.image, first.values()))
    return dict(zip(first, encode_images(model, processor, images, batch_size), strict=True))


@torch.no_grad()
def embed_all(
    model: PreTrainedModel, processor: Any, examples: Examples, batch_size: int = 64
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Unit vectors of all images (n, d_j) and all captions (m, d_j), and the image's row of each caption."""
    images = []
    numbers = list(range(len(examples.rows)))
    for start in tqdm(range(0, len(numbers), batch_size), desc="images", unit="batch"):
        features = encode_once(model, processor, examples, numbers[start : start + batch_size], batch_size)
        images += [image_features[0].cpu() for image_features in features.values()]  # the class token is CLIP's own
    captions, image_of_text = texts_of(examples)
    texts = []
    for start in tqdm(range(0, len(captions), batch_size), desc="captions", unit="batch"):
        inputs = processor.tokenizer(
            captions[start : start + batch_size], padding=True, truncation=True, return_tensors="pt"
        )
        texts.append(model.get_text_features(**inputs.to(model.device)).pooler_output.cpu())
    image_embeds = torch.nn.functional.normalize(torch.stack(images).float(), dim=-1)
    return image_embeds, torch.cat(texts).float(), image_of_text


@torch.no_grad()
def clip_text_embeds(clip: str, model: PreTrainedModel, examples: Examples, batch_size: int = 64) -> torch.Tensor:
    """The captions' unit vectors (m, d_j) by CLIP's own text tower.

    Raises:
        ValueError: there is no such CLIP, or it is not the model's.
    """
    teacher, tokenizer = load_teacher(clip, model)
    teacher, captions = teacher.to(model.device), texts_of(examples)[0]
    embeds = []
    for start in tqdm(range(0, len(captions), batch_size), desc="captions, by CLIP", unit="batch"):
        batch = tokenizer(captions[start : start + batch_size], padding=True, truncation=True, return_tensors="pt")
        batch = batch.to(model.device)
        embeds.append(teacher_embeds(teacher, batch["input_ids"], batch["attention_mask"]).cpu())
    return torch.cat(embeds)


def texts_of(examples: Examples) -> tuple[list[str], list[int]]:
    """All captions, and the row each belongs to."""
    pairs = [(caption, number) for number, row in enumerate(examples.rows) for caption in row["captions"]]
    return [caption for caption, _ in pairs], [number for _, number in pairs]


@dataclass(frozen=True)
class Writer:
    """A model that writes the steps of a task."""

    model: PreTrainedModel
    tokenizer: Any
    task: Task
    batch_size: int

    def records(self, strategy: str, rows: list[Row], features: dict[Any, torch.Tensor]) -> list[dict[str, Any]]:
        """What `strategy` gives for each row: `text`, and the caption it was read from."""
        shown = None if strategy == "blind" else [features[row["image_id"]] for row in rows]
        if self.task.kind == "captions":
            return [{"text": text} for text in self.write("caption", [{} for _ in rows], shown)]
        if strategy != "caption-then-answer":
            return [{"text": text} for text in self.write("answer", rows, shown)]
        images = list(dict.fromkeys(row["image_id"] for row in rows))
        captions = self.write("caption", [{} for _ in images], [features[image] for image in images])
        caption_of = {
            image: normalize(caption, self.task.steps["caption"])
            for image, caption in zip(images, captions, strict=True)
        }
        fills = [{**row, "caption": caption_of[row["image_id"]]} for row in rows]
        answers = self.write("answer_from_caption", fills)
        return [{"text": text, "caption": fill["caption"]} for text, fill in zip(answers, fills, strict=True)]

    def write(self, name: str, fills: list[dict[str, Any]], features: list[torch.Tensor] | None = None) -> list[str]:
        """One step's text for each filled-in prompt; without images, equal prompts are answered once."""
        step = self.task.steps[name]
        prompts = [fill_prompt(step, fill) for fill in fills]
        asked = prompts if features is not None else list(dict.fromkeys(prompts))
        shown = None if features is None else torch.stack(features)
        options = step.generate_kwargs()
        texts = complete(self.model, self.tokenizer, asked, shown, self.batch_size, desc=name, **options)
        if features is not None:
            return texts
        text_of = dict(zip(asked, texts, strict=True))
        return [text_of[prompt] for prompt in prompts]


def fill_prompt(step: Step, fill: dict[str, Any]) -> str:
    """The step's prompt with question and caption in their places; a caption's own full stop is left out."""
    caption = " ".join(fill.get("caption", "").split()).rstrip(". ")
    return step.prompt.format(question=fill.get("question", "").strip(), caption=caption)


def normalize(text: str, step: Step) -> str:
    """On one line and, where the step says so, up to the end of the first sentence."""
    text = first_sentence_of(text) if step.normalisation == "first_sentence" else text
    return " ".join(text.split())


def run_key(model: PreTrainedModel, task: Task, examples: Examples, strategy: str) -> str:
    """Names all that a text depends on beside its row: weights, decoding, prompts, dataset, split, device, dtype."""
    digest = hashlib.blake2b(digest_size=6)
    steps = {name: asdict(task.steps[name]) for name in STRATEGIES[task.kind][strategy]}
    config = {key: value for key, value in model.config.to_dict().items() if key != "_name_or_path"}
    settings = (strategy, steps, examples.dataset, examples.split, config, model.device.type, str(model.dtype))
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _chunks(rows: Sequence[Row], images: int) -> Iterator[list[int]]:
    """Row numbers, image by image, so many images at a time."""
    by_image: dict[Any, list[int]] = {}
    for number, row in enumerate(rows):
        by_image.setdefault(row["image_id"], []).append(number)
    groups = list(by_image.values())
    for start in range(0, len(groups), images):
        yield [number for group in groups[start : start + images] for number in group]


def evaluate(
    tasks: list[Task],
    where: Where,
    folder: Path,
    args: argparse.Namespace,
    device: torch.device,
    dtype: torch.dtype,
    figures: MetricTable,
    remarks: list[str],
) -> tuple[str, str]:
    """Run tasks that show images: adds to figures and remarks, and returns the names of dataset and split."""
    data = [load_examples(task, where, not args.predictions_only) for task in tasks]
    model, processor = load_vlkd(args.model, "--model", device, dtype)
    model.eval()
    folder.mkdir(parents=True, exist_ok=True)
    for task, examples in zip(tasks, data, strict=True):
        if task.kind == "retrieval":
            retrieve(examples, model, processor, args, figures, remarks)
        else:
            answer(task, examples, model, processor, folder, args, figures, remarks)
    return Path(args.task).stem if len(tasks) > 1 else data[0].dataset, data[0].split


def answer(
    task: Task,
    examples: Examples,
    model: PreTrainedModel,
    processor: Any,
    folder: Path,
    args: argparse.Namespace,
    figures: MetricTable,
    remarks: list[str],
) -> None:
    """Write each strategy's predictions in the official form, and score them unless told otherwise."""
    strategies = strategies_of(task, args.strategy)
    texts = answer_all(model, processor, task, examples, strategies, folder, args.batch_size)
    for strategy in strategies:
        results = write_results(folder / f"{task.name}.{strategy}.json", task.kind, examples.rows, texts[strategy])
        if not args.predictions_only:
            found, said = judge(task, examples.rows, texts[strategy], results)
            figures.extend(strategy, found)
            remarks += [remark for remark in said if remark not in remarks]


def retrieve(
    examples: Examples,
    model: PreTrainedModel,
    processor: Any,
    args: argparse.Namespace,
    figures: MetricTable,
    remarks: list[str],
) -> None:
    """Retrieval by BART's text embedding and, as a control, by the text tower of the CLIP that the images' is."""
    image_embeds, text_embeds, image_of_text = embed_all(model, processor, examples, args.batch_size)
    figures.extend("direct", score_retrieval(image_embeds, text_embeds, image_of_text))
    named = args.clip or next(iter(model.config.base_models or ()), None)
    try:
        clip_embeds = None if named is None else clip_text_embeds(named, model, examples, args.batch_size)
    except ValueError as error:
        if args.clip:
            raise
        clip_embeds = None
        remarks.append(f"{CLIP_TEXT} is left out: {error}")
    if clip_embeds is not None:
        figures.extend(CLIP_TEXT, score_retrieval(image_embeds, clip_embeds, image_of_text))


def strategies_of(task: Task, asked: list[str] | None) -> list[str]:
    """The command's for questions, the task's own otherwise."""
    return list(dict.fromkeys(asked)) if asked and task.kind == "vqa" else list(task.strategies)
