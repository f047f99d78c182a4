"""Exact match and token F1 of answers as an `evaluate` metric."""

import datasets
import evaluate

# `evaluate` copies only the modules that this file imports.
from .bootstrap import RESAMPLES
from .matching import text_qa_scores

DESCRIPTION = f"""\
Exact match and token F1 with SQuAD's normalization: lower case, no punctuation, no articles. The
best-matching reference counts. 95% intervals come from {RESAMPLES} bootstrap resamples."""

INPUTS = """
Args:
    predictions: one answer per question.
    references: the correct answers to each question.
    seed: of the bootstrap; 0 by default.
Returns:
    exact_match, f1: {"value", "n", "low", "high"}, from 0 to 1.
"""

CITATION = """\
@inproceedings{rajpurkar2016squad,
  title = {{SQuAD}: 100,000+ Questions for Machine Comprehension of Text},
  author = {Rajpurkar, Pranav and Zhang, Jian and Lopyrev, Konstantin and Liang, Percy},
  booktitle = {EMNLP},
  year = {2016}
}"""


class TextQA(evaluate.Metric):
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
        )

    def _compute(self, predictions, references, seed=0):
        return text_qa_scores(predictions, references, seed)
