"""Exact match and token F1 of answers, normalized as for SQuAD."""

import re
import string
from collections import Counter
from collections.abc import Sequence

from .interval import mean_estimate

PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Lower case, no ASCII punctuation, no articles, single spaces."""
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(PUNCTUATION)).split())


def exact_match(prediction: str, reference: str) -> float:
    return float(normalize(prediction) == normalize(reference))


def token_f1(prediction: str, reference: str) -> float:
    """The harmonic mean of the shares of common words; where one has no word left, whether both have none."""
    said, meant = normalize(prediction).split(), normalize(reference).split()
    if not said or not meant:
        return float(said == meant)
    common = (Counter(said) & Counter(meant)).total()
    return 2 * common / (len(said) + len(meant))


def text_qa_scores(
    predictions: Sequence[str], references: Sequence[str | Sequence[str]], seed: int = 0
) -> dict[str, dict[str, float]]:
    """Mean exact match and token F1, each against the reference that fits best.

    Returns:
        {"exact_match": {"value", "n", "low", "high"}, "f1": the same}.

    Raises:
        ValueError: no prediction, unequal numbers, or a prediction without a reference.
    """
    if len(predictions) == 0 or len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions and {len(references)} references: give one each.")
    references = [[texts] if isinstance(texts, str) else list(texts) for texts in references]
    if [] in references:
        raise ValueError(f"references[{references.index([])}] is empty: give at least one right answer.")
    pairs = list(zip(predictions, references, strict=True))
    return {
        name: mean_estimate([max(measure(said, text) for text in texts) for said, texts in pairs], seed=seed)
        for name, measure in (("exact_match", exact_match), ("f1", token_f1))
    }
