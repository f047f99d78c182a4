"""Exact match and token F1 of answers as an `evaluate` metric."""

import evaluate

# `evaluate` copies only the modules that this file imports, so it imports those of `matching` too.
from .bootstrap import RESAMPLES, TEXT_FEATURES
from .matching import text_qa_scores


class TextQA(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=f"Exact match and token F1 of answers (95% intervals: {RESAMPLES} resamples).",
            citation="Rajpurkar et al. (2016): SQuAD, arXiv:1606.05250",
            inputs_description=text_qa_scores.__doc__,
            features=TEXT_FEATURES,
        )

    def _compute(self, predictions, references, seed=0):
        return text_qa_scores(predictions, references, seed)
