"""R@1, R@5 and R@10 between images and texts as an `evaluate` metric."""

import datasets
import evaluate

# `evaluate` copies only the modules that this file imports.
from .bootstrap import RESAMPLES
from .ranks import recall_scores

DESCRIPTION = f"""\
Image-text retrieval: the share of texts whose image, and of images one of whose texts, is among the nearest 1, 5 and
10 by cosine similarity. An image may have several texts. Ties count against the match. 95% intervals come from
{RESAMPLES} bootstrap resamples of the images, each with its texts."""

INPUTS = """
Args:
    predictions: text embeddings (texts, dim).
    references: for each text, the row of its image in `image_embeds`.
    image_embeds: image embeddings (images, dim).
    seed: of the bootstrap; 0 by default.
Returns:
    image_to_text, text_to_image: {"R@1": {"value", "n", "low", "high"}, "R@5": ..., "R@10": ...}, from 0 to 1.
"""

CITATION = """\
@inproceedings{karpathy2015deep,
  title = {Deep Visual-Semantic Alignments for Generating Image Descriptions},
  author = {Karpathy, Andrej and Fei-Fei, Li},
  booktitle = {CVPR},
  year = {2015}
}"""


class RetrievalRecall(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float32")),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def _compute(self, predictions, references, image_embeds, seed=0):
        return recall_scores(image_embeds, predictions, references, seed)
