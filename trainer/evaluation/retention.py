"""What is left of a language model: denoising loss and text QA, before and after, on the same text."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoTokenizer, BartForConditionalGeneration, PreTrainedTokenizerBase

from modeling_vlkd.conversion_vlkd import load_part
from trainer.data.infilling import TextInfilling, seeded_rng
from trainer.data.metadata import as_text
from trainer.data.sources import load_split
from trainer.evaluation.datasets import Where
from trainer.evaluation.metrics.text_qa.interval import mean_estimate, resampled
from trainer.evaluation.metrics.text_qa.matching import exact_match, token_f1
from trainer.evaluation.runner import Writer, normalize
from trainer.evaluation.scoring import score_text_qa
from trainer.evaluation.tasks.task import Task
from trainer.models import load_vlkd

MASK_RATIO = 0.3  # BART's own
CORRUPTION = 9  # the random stream: none of training's
SEED = 0


def compare(
    task: Task,
    where: Where,
    before: str,
    after: str,
    device: torch.device,
    dtype: torch.dtype,
    batch_size: int,
) -> tuple[str, str, list[tuple[str, list[dict[str, Any]]]]]:
    """The dataset, its split, and each condition's figures: after, before, and the change between them.

    Raises:
        ValueError: the two do not read the same tokens, or there is no text.
    """
    models = {"after": load_language_model(after, "--after"), "before": load_language_model(before, "--before")}
    tokenizer = models["after"][1]
    if tokenizer.get_vocab() != models["before"][1].get_vocab():
        raise ValueError(
            f"--before '{before}' and --after '{after}' have different vocabularies, so that their losses are of "
            "different tokens: name the BART that the model was made from."
        )
    name, split, texts = load_texts(task, where)
    questions = load_questions(task, where, split)
    losses, answers = {}, {}
    for condition, (model, _) in models.items():
        model = model.to(device, dtype).eval()
        losses[condition] = denoising_losses(model, tokenizer, texts, batch_size)
        if questions:
            writer = Writer(model, tokenizer, task, batch_size)
            step = task.steps["answer_from_caption"]
            answers[condition] = [normalize(text, step) for text in writer.write("answer_from_caption", questions)]
    figures = loss_figures(losses)
    if questions:
        references = [question["answer"] for question in questions]
        figures += answer_figures(answers, references)
    return name, split, figures


def load_language_model(name: str, option: str) -> tuple[BartForConditionalGeneration, PreTrainedTokenizerBase]:
    """A BART or the BART in a VLKD, in float32, and its tokenizer.

    Raises:
        ValueError: it is neither; the message names the `option` that gave it.
    """
    try:
        kind = AutoConfig.from_pretrained(name).model_type
    except Exception as error:  # each library has its own kinds for a broken file
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{option}: '{name}' is no checkpoint that can be read: {reason}") from error
    if kind == "vlkd":
        model, processor = load_vlkd(name, option)
        return model.to_bart(), processor.tokenizer
    if kind != "bart":
        raise ValueError(f"{option}: '{name}' holds a model of type '{kind}'; give a BART or a VLKD.")
    return load_part(BartForConditionalGeneration, option, name, torch.float32), AutoTokenizer.from_pretrained(name)


def load_texts(task: Task, where: Where) -> tuple[str, str, list[str]]:
    """The dataset's name, its split and its documents."""
    name, split = where.dataset or task.dataset, where.split or task.split
    column = (where.columns or {}).get("text") or task.columns["text"]
    options = task.dataset_kwargs if where.dataset is None else {}
    dataset = load_split(name, split, texts=[column], **options)
    if column not in dataset.column_names:
        raise ValueError(
            f"dataset '{name}' has no column '{column}' (text); it has {', '.join(dataset.column_names)}. Say which "
            "it is by --columns '{text: NAME}'."
        )
    texts = [as_text(text) for text in dataset[column][: where.limit or len(dataset)]]
    if not texts:
        raise ValueError(f"{name} ({split}) has no rows: there is nothing to evaluate.")
    for number, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(
                f"{name} ({split}): row {number}: column '{column}' holds {text!r}. Filter such rows out."
            )
    return name, split, texts


def load_questions(task: Task, where: Where, split: str) -> list[dict[str, str]]:
    """The task's own questions; none about text of the user's, who gives --dataset_name."""
    if where.dataset is not None or task.questions is None:
        return []
    dataset = load_split(task.questions, split)
    return list(dataset.select(range(min(where.limit or len(dataset), len(dataset)))))


@torch.no_grad()
def denoising_losses(
    model: BartForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """For each text the summed cross-entropy of its tokens, given the text with spans masked, and their number.

    The corruption depends on the text's place alone: every model of the same vocabulary reads the same.
    """
    limit = min(tokenizer.model_max_length, model.config.max_position_embeddings)
    clean = tokenizer(list(texts), truncation=True, max_length=limit).input_ids
    infilling = TextInfilling(tokenizer.mask_token_id, MASK_RATIO, full_mask_probability=0.0)
    # An insertion's <mask> hides nothing, so that a corrupted text may be longer than the clean one.
    corrupted = [infilling(ids, seeded_rng(SEED, CORRUPTION, 0, number))[:limit] for number, ids in enumerate(clean)]
    sums, counts = [], []
    for start in tqdm(range(0, len(clean), batch_size), desc="denoising", leave=False):
        rows = slice(start, start + batch_size)
        inputs = tokenizer.pad({"input_ids": corrupted[rows]}, return_tensors="pt").to(model.device)
        targets = tokenizer.pad({"input_ids": clean[rows]}, return_tensors="pt").to(model.device)
        labels = targets["input_ids"].masked_fill(targets["attention_mask"] == 0, -100)
        logits = model(**inputs, labels=labels).logits.float()  # (batch, tokens, vocabulary)
        loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        sums += loss.double().sum(dim=1).tolist()
        counts += (labels != -100).sum(dim=1).tolist()
    return np.array(sums), np.array(counts)


def loss_figures(losses: dict[str, tuple[np.ndarray, np.ndarray]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Nats per token, with bootstrap intervals over documents, and the paired change."""

    def per_token(sums, counts, axis):
        return sums.sum(axis) / counts.sum(axis)

    def change(after, before, counts, axis):
        return (after.sum(axis) - before.sum(axis)) / counts.sum(axis)

    (after, counts), (before, _) = losses["after"], losses["before"]
    return [
        ("after", [_figure("denoising loss", "nats per token", per_token, [after, counts])]),
        ("before", [_figure("denoising loss", "nats per token", per_token, [before, counts])]),
        ("after", [_figure("denoising loss", "change", change, [after, before, counts])]),
    ]


def answer_figures(answers: dict[str, list[str]], references: list[str]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Exact match and token F1, with the paired change of each."""
    found = {condition: score_text_qa(given, references) for condition, given in answers.items()}
    metric, changes = found["after"][0]["metric"], []
    for name, measure in (("exact match", exact_match), ("F1", token_f1)):
        after, before = (np.array(list(map(measure, answers[c], references))) for c in ("after", "before"))
        changes.append({"metric": metric, "row": f"{name}, change", **mean_estimate(after - before, seed=SEED)})
    return [*found.items(), ("after", changes)]


def _figure(metric: str, row: str, statistic: Callable, data: list[np.ndarray]) -> dict[str, Any]:
    low, high = resampled(data, statistic, SEED)
    value = float(statistic(*data, axis=-1))
    return {"metric": metric, "row": row, "value": value, "n": len(data[0]), "low": low, "high": high}
