"""Compare a VLKD model's language ability with that of the BART it was made from: denoising loss and text QA."""

from collections.abc import Sequence

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import AutoTokenizer, BartForConditionalGeneration, PreTrainedTokenizerBase

from modeling_vlkd.conversion_vlkd import check_checkpoint, load_part
from trainer.data.infilling import TextInfilling, seeded_rng
from trainer.data.metadata import as_text
from trainer.data.sources import load_split
from trainer.evaluation.datasets import DatasetOverrides, load_columns
from trainer.evaluation.metrics.bootstrap import bootstrap_interval, mean_estimate
from trainer.evaluation.metrics.matching import exact_match, token_f1
from trainer.evaluation.runner import Evaluation, Generator, normalize
from trainer.evaluation.scoring import Result, score_text_qa
from trainer.evaluation.tasks.task import Task
from trainer.models import load_vlkd

MASK_RATIO = 0.3  # as in BART's pretraining
CORRUPTION = 9  # a random stream that training does not use
SEED = 0


def compare_language(
    task: Task,
    overrides: DatasetOverrides,
    model: str,
    reference_model: str,
    device: torch.device,
    dtype: torch.dtype,
    batch_size: int,
) -> Evaluation:
    """The results of the model and of the reference, and their paired difference.

    Raises:
        ValueError: the models have different vocabularies, or the text is invalid.
    """
    models = {
        "model": load_language_model(model, "--model"),
        "reference": load_language_model(reference_model, "--reference_model"),
    }
    tokenizer = models["model"][1]
    if tokenizer.get_vocab() != models["reference"][1].get_vocab():
        raise ValueError(
            f"--model '{model}' and --reference_model '{reference_model}' have different vocabularies, so their "
            "losses cannot be compared; set --reference_model to the BART that the model was made from."
        )
    name, split, texts = load_texts(task, overrides)
    questions = load_questions(task, overrides, split)
    losses, answers = {}, {}
    for condition, (bart, _) in models.items():
        bart = bart.to(device, dtype).eval()
        losses[condition] = denoising_losses(bart, tokenizer, texts, batch_size)
        if questions:
            generator, step = Generator(bart, tokenizer, task, batch_size), "answer_from_caption"
            generated = generator.run_step(step, questions)
            answers[condition] = [normalize(text, task.steps[step]) for text in generated]
    results = loss_results(losses)
    if questions:
        results += answer_results(answers, [question["answer"] for question in questions])
    return Evaluation(name, split, results)


def load_language_model(name: str, option: str) -> tuple[BartForConditionalGeneration, PreTrainedTokenizerBase]:
    """A BART, or the BART in a VLKD model, in float32, and its tokenizer. A ValueError names the `option`."""
    if check_checkpoint(option, name, "bart", "vlkd").model_type == "vlkd":
        model, processor = load_vlkd(name, option)
        return model.to_bart(), processor.tokenizer
    return load_part(BartForConditionalGeneration, option, name, torch.float32), AutoTokenizer.from_pretrained(name)


def load_texts(task: Task, overrides: DatasetOverrides) -> tuple[str, str, list[str]]:
    """The dataset's name, its split and its documents."""
    name, split, dataset, columns = load_columns(task, overrides)
    texts = [as_text(text) for text in dataset[columns["text"]]]
    if not texts:
        raise ValueError(f"{name} ({split}) has no rows.")
    for number, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(
                f"{name} ({split}): row {number}: column '{columns['text']}' is {text!r}; it must be a non-empty "
                "text. Filter such rows out."
            )
    return name, split, texts


def load_questions(task: Task, overrides: DatasetOverrides, split: str) -> list[dict[str, str]]:
    """The task's questions; none with --dataset_name."""
    if overrides.dataset is not None or task.questions is None:
        return []
    dataset = load_split(task.questions, split)
    return list(dataset.select(range(min(overrides.limit or len(dataset), len(dataset)))))


@torch.no_grad()
def denoising_losses(
    model: BartForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """The summed cross-entropy of each text's tokens, given the corrupted text, and the number of tokens.

    The corruption depends only on the text's number, so models with the same vocabulary receive the same input.
    """
    limit = min(tokenizer.model_max_length, model.config.max_position_embeddings)
    clean = tokenizer(list(texts), truncation=True, max_length=limit).input_ids
    infilling = TextInfilling(tokenizer.mask_token_id, MASK_RATIO, full_mask_probability=0.0)
    # Spans of length 0 insert a <mask>, so a corrupted text can be longer than the clean one.
    corrupted = [infilling(ids, seeded_rng(SEED, CORRUPTION, 0, number))[:limit] for number, ids in enumerate(clean)]
    sums, counts = [], []
    for start in tqdm(range(0, len(clean), batch_size), desc="denoising", leave=False):
        rows = slice(start, start + batch_size)
        inputs = tokenizer.pad({"input_ids": corrupted[rows]}, return_tensors="pt").to(model.device)
        targets = tokenizer.pad({"input_ids": clean[rows]}, return_tensors="pt").to(model.device)
        labels = targets["input_ids"].masked_fill(targets["attention_mask"] == 0, -100)
        logits = model(**inputs, labels=labels).logits.float()  # (batch, tokens, vocabulary)
        loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        sums += loss.cpu().double().sum(dim=1).tolist()  # MPS has no float64
        counts += (labels != -100).sum(dim=1).tolist()
    return np.array(sums), np.array(counts)


def loss_results(losses: dict[str, tuple[np.ndarray, np.ndarray]]) -> list[tuple[str, list[Result]]]:
    """Nats per token with bootstrap intervals over documents, and the paired change."""
    (model, counts), (reference, _) = losses["model"], losses["reference"]
    return [
        ("model", [_nats_per_token("nats per token", model, counts)]),
        ("reference", [_nats_per_token("nats per token", reference, counts)]),
        ("model", [_nats_per_token("change", model - reference, counts)]),
    ]


def _nats_per_token(row: str, sums: np.ndarray, counts: np.ndarray) -> Result:
    low, high = bootstrap_interval([sums, counts], lambda sums, counts, axis: sums.sum(axis) / counts.sum(axis), SEED)
    value = float(sums.sum() / counts.sum())
    return {"metric": "denoising loss", "row": row, "value": value, "n": len(sums), "low": low, "high": high}


def answer_results(answers: dict[str, list[str]], references: list[str]) -> list[tuple[str, list[Result]]]:
    """Exact match and token F1, and the paired change of each."""
    found = {condition: score_text_qa(given, references) for condition, given in answers.items()}
    changes = []
    for name, measure in (("exact match", exact_match), ("F1", token_f1)):
        model, reference = (np.array(list(map(measure, answers[c], references))) for c in ("model", "reference"))
        changes.append({"metric": "text QA", "row": f"{name}, change", **mean_estimate(model - reference, seed=SEED)})
    return [*found.items(), ("model", changes)]
