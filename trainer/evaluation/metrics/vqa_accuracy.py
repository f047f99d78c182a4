"""The official VQA accuracy as an `evaluate` metric."""

import evaluate

# `evaluate` copies only the modules that this file imports, so it imports those of `answers` too.
from .answers import vqa_scores
from .bootstrap import RESAMPLES, TEXT_FEATURES


class VQAAccuracy(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=f"The official accuracy of VQA and OK-VQA (95% intervals: {RESAMPLES} resamples).",
            citation="Antol et al. (2015): VQA, arXiv:1505.00468",
            inputs_description=vqa_scores.__doc__,
            features=TEXT_FEATURES,
        )

    def _compute(self, predictions, references, answer_types=None, question_types=None, image_ids=None, seed=0):
        return vqa_scores(predictions, references, answer_types, question_types, image_ids, seed)
