"""R@1, R@5 and R@10 between images and texts as an `evaluate` metric."""

import datasets
import evaluate

# `evaluate` copies only the modules that this file imports, so it imports those of `ranks` too.
from .bootstrap import RESAMPLES
from .ranks import recall_scores


class RetrievalRecall(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=f"Recall at 1, 5 and 10 between images and texts (95% intervals: {RESAMPLES} resamples).",
            citation="Karpathy and Li (2015): Deep Visual-Semantic Alignments, arXiv:1412.2306",
            inputs_description=recall_scores.__doc__,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float32")),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def _compute(self, predictions, references, image_embeds, seed=0):
        """Predictions are text embeddings, and references the row of each text's image in `image_embeds`."""
        return recall_scores(image_embeds, predictions, references, seed)
