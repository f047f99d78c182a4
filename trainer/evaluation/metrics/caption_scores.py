"""The COCO caption metrics as an `evaluate` metric."""

import evaluate

# `evaluate` copies only the modules that this file imports, so it imports those of `coco` too.
from .bootstrap import RESAMPLES, TEXT_FEATURES
from .coco import caption_scores
from .ptb_tokenizer import tokenize

__all__ = ["CaptionScores", "tokenize"]


class CaptionScores(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=f"BLEU, METEOR, ROUGE-L, CIDEr and SPICE of captions (95% intervals: {RESAMPLES} resamples).",
            citation="Chen et al. (2015): Microsoft COCO Captions, arXiv:1504.00325",
            inputs_description=caption_scores.__doc__,
            features=TEXT_FEATURES,
        )

    def _compute(self, predictions, references, metrics=None, tokenizer=None, seed=0):
        return caption_scores(predictions, references, metrics, tokenizer, seed)
