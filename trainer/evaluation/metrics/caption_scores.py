"""The COCO caption metrics as an `evaluate` metric."""

import datasets
import evaluate

# `evaluate` copies only the modules that this file imports; `coco` imports the tokenizer.
from .bootstrap import RESAMPLES
from .coco import METRICS, caption_scores
from .ptb_tokenizer import tokenize

__all__ = ["CaptionScores", "tokenize"]

DESCRIPTION = f"""\
{", ".join(METRICS)} of captions, computed by `pycocoevalcap`. METEOR, SPICE and the official tokenizer are Java
programs. Without Java, the other metrics use a tokenizer in Python. 95% intervals come from {RESAMPLES} bootstrap
resamples of the images."""

INPUTS = """
Args:
    predictions: one caption per image.
    references: the reference captions of each image.
    metrics: some of BLEU, METEOR, ROUGE-L, CIDEr, SPICE; by default all that are available.
    tokenizer: "java" or "python"; by default "java" if Java is installed.
    seed: of the bootstrap; 0 by default.
Returns:
    scores: {name: {"value", "n", "low", "high"}}; CIDEr can exceed 1, the others are from 0 to 1.
    not_computed: {name: reason}.
    tokenizer: the one used.
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
