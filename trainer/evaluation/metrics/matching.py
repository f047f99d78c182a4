"""Exact match and token F1 of answers, normalized as in SQuAD."""

import re
import string
from collections import Counter
from collections.abc import Sequence

from .bootstrap import mean_estimate

PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Lower case, no ASCII punctuation, no articles, single spaces."""
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(PUNCTUATION)).split())


def exact_match(prediction: str, reference: str) -> float:
    return float(normalize(prediction) == normalize(reference))


def token_f1(prediction: str, reference: str) -> float:
    """The harmonic mean of token precision and recall. If one text has no tokens, 1 if neither has any, else 0."""
    predicted, expected = normalize(prediction).split(), normalize(reference).split()
    if not predicted or not expected:
        return float(predicted == expected)
    common = (Counter(predicted) & Counter(expected)).total()
    return 2 * common / (len(predicted) + len(expected))


def text_qa_scores(
    predictions: Sequence[str], references: Sequence[str | Sequence[str]], seed: int = 0
) -> dict[str, dict[str, float]]:
    """Mean exact match and token F1, each against the best-matching reference.

    Returns:
        {"exact_match": {"value", "n", "low", "high"}, "f1": the same}.

    Raises:
        ValueError: no predictions, different numbers of predictions and references, or an empty list of references.
    """
    if len(predictions) == 0 or len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions and {len(references)} references; give as many of both.")
    references = [[texts] if isinstance(texts, str) else list(texts) for texts in references]
    if [] in references:
        raise ValueError(f"references[{references.index([])}] is empty: give at least one correct answer.")
    pairs = list(zip(predictions, references, strict=True))
    return {
        name: mean_estimate([max(measure(text, truth) for truth in texts) for text, texts in pairs], seed=seed)
        for name, measure in (("exact_match", exact_match), ("f1", token_f1))
    }
