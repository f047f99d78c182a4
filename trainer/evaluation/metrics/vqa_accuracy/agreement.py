"""The VQA accuracy of many answers: over all, by answer type and by question type."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .answers import accuracy
from .interval import mean_estimate


def vqa_scores(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    answer_types: Sequence[str] | None = None,
    question_types: Sequence[str] | None = None,
    image_ids: Sequence | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """The mean accuracy, and that of each type where types are given.

    Args:
        predictions: one answer a question.
        references: the ten answers that people gave to each question.
        answer_types, question_types: of each question.
        image_ids: of each question; the bootstrap then resamples images, not questions.
        seed: of the bootstrap.

    Returns:
        {"accuracy": {"value", "n", "low", "high"}, "answer_types": {type: the same}, "question_types": {type: …}}.

    Raises:
        ValueError: no question, lists of unequal length, or a question without exactly ten answers.
    """
    if len(predictions) == 0:
        raise ValueError("no answer to score.")
    for given in (references, answer_types, question_types, image_ids):
        if given is not None and len(given) != len(predictions):
            raise ValueError(f"{len(predictions)} predictions but {len(given)} of what belongs to them.")
    scores = np.array([accuracy(text, answers) for text, answers in zip(predictions, references, strict=True)])
    groups = np.arange(len(scores)) if image_ids is None else np.asarray(image_ids)

    def by_type(types: Sequence[str] | None) -> dict[str, dict]:
        of = np.asarray(types if types is not None else [], dtype=object)
        return {kind: mean_estimate(scores[of == kind], groups[of == kind], seed) for kind in sorted(set(of))}

    return {
        "accuracy": mean_estimate(scores, groups, seed),
        "answer_types": by_type(answer_types),
        "question_types": by_type(question_types),
    }
