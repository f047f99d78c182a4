"""The official VQA accuracy as an `evaluate` metric."""

import datasets
import evaluate

# `evaluate` copies only the modules that this file imports.
from .answers import ANNOTATORS, vqa_scores
from .bootstrap import RESAMPLES

DESCRIPTION = f"""\
The accuracy of VQA (v1, v2), OK-VQA and datasets in their format: min(1, annotators who gave the answer / 3), averaged
over leaving out each of the {ANNOTATORS} annotators. Texts are normalized as in the official evaluation. 95% intervals
come from {RESAMPLES} bootstrap resamples."""

INPUTS = """
Args:
    predictions: one answer per question.
    references: the ten annotators' answers to each question.
    answer_types, question_types: one per question; adds the accuracy of each type.
    image_ids: one per question; the bootstrap then resamples images.
    seed: of the bootstrap; 0 by default.
Returns:
    accuracy: {"value", "n", "low", "high"}, from 0 to 1.
    answer_types, question_types: the same for each type.
"""

CITATION = """\
@inproceedings{antol2015vqa,
  title = {{VQA}: Visual Question Answering},
  author = {Antol, Stanislaw and Agrawal, Aishwarya and Lu, Jiasen and Mitchell, Margaret and Batra, Dhruv and
            Zitnick, C. Lawrence and Parikh, Devi},
  booktitle = {ICCV},
  year = {2015}
}"""


class VQAAccuracy(evaluate.Metric):
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
            reference_urls=["https://visualqa.org/evaluation.html", "https://github.com/GT-Vision-Lab/VQA"],
        )

    def _compute(self, predictions, references, answer_types=None, question_types=None, image_ids=None, seed=0):
        return vqa_scores(predictions, references, answer_types, question_types, image_ids, seed)
