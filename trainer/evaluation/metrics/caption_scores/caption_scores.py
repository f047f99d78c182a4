"""The COCO caption metrics as an `evaluate` metric."""

import datasets
import evaluate

# `evaluate` copies only the siblings that this file names.
from .captions import METRICS, caption_scores
from .interval import RESAMPLES
from .ptb_tokenizer import tokenize

__all__ = ["CaptionScores", "tokenize"]

DESCRIPTION = f"""\
{", ".join(METRICS)} of captions as `pycocoevalcap` computes them. Without Java, BLEU, ROUGE-L and CIDEr work through a
tokenizer in Python; METEOR and SPICE are Java programs and are then named with the reason, never replaced.
95% intervals come from {RESAMPLES} bootstrap resamples of the images."""

INPUTS = """
Args:
    predictions: one caption an image.
    references: the reference captions of each image.
    metrics: some of BLEU, METEOR, ROUGE-L, CIDEr, SPICE (every one that can be had).
    tokenizer: "java" or "python" ("java" where there is Java).
    seed: of the bootstrap (0).
Returns:
    scores: {name: {"value", "n", "low", "high"}}; CIDEr can exceed 1, the others go from 0 to 1.
    not_computed: {name: why}.
    tokenizer: which one was used.
"""

CITATION = """\
@article{chen2015coco,
  title = {Microsoft {COCO} Captions: Data Collection and Evaluation Server},
  author = {Chen, Xinlei and Fang, Hao and Lin, Tsung-Yi and Vedantam, Ramakrishna and Gupta, Saurabh and
            Doll{\\'a}r, Piotr and Zitnick, C. Lawrence},
  journal = {arXiv:1504.00325},
  year = {2015}
}"""


class CaptionScores(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.Sequence(datasets.Value("string")),
                }
            ),
            reference_urls=["https://github.com/salaniz/pycocoevalcap"],
        )

    def _compute(self, predictions, references, metrics=None, tokenizer=None, seed=0):
        return caption_scores(predictions, references, metrics, tokenizer, seed)
