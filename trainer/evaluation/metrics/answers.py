"""The official VQA accuracy: answer normalization and agreement with ten annotators."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from .bootstrap import mean_estimate

ANNOTATORS = 10
ENOUGH = 3  # an answer that this many other annotators gave scores 1

# The order matters: the marks are removed one after the other.
MARKS = ';/[]"{}()=+\\_-><@`,?!'
ARTICLES = {"a", "an", "the"}
NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6"}
NUMBERS |= {"seven": "7", "eight": "8", "nine": "9", "ten": "10"}

# A contraction written without one of its apostrophes gets it back. The official table, oddities included.
CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()
WITH_APOSTROPHE = {
    word[:place] + word[place + 1 :]: word for word in CONTRACTIONS for place, mark in enumerate(word) if mark == "'"
}
WITH_APOSTROPHE["somebody'd"] = "somebodyd"

NUMBER_WITH_COMMA = re.compile(r"\d,\d")
PERIOD = re.compile(r"\.(?!\d)")
PERIODS_REMOVED = 32  # the official code passes re.UNICODE (32) where `re.sub` takes a count


def without_punctuation(text: str) -> str:
    """Replace marks by spaces, or by nothing if the mark is next to a space or the text has a number like 1,000."""
    cleaned = text
    for mark in MARKS:
        next_to_space = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if next_to_space or NUMBER_WITH_COMMA.search(text) else " ")
    return PERIOD.sub("", cleaned, count=PERIODS_REMOVED)


@lru_cache(maxsize=1 << 16)  # a few answers make up most of a dataset
def normalize(text: str) -> str:
    """Remove punctuation and articles, lower the case, write number words as digits and restore apostrophes."""
    words = [NUMBERS.get(word, word) for word in without_punctuation(text).lower().split()]
    return " ".join(WITH_APOSTROPHE.get(word, word) for word in words if word not in ARTICLES)


def strip(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def accuracy(prediction: str, answers: Sequence[str]) -> float:
    """The agreement of an answer with ten annotators: min(1, others who gave it / 3), averaged over leaving out each.

    If all ten annotators wrote exactly the same text, neither side is normalized: "Yes." then differs from "yes". The
    authors of the official code intended this for text read off an image.

    Raises:
        ValueError: there are not ten answers.
    """
    if len(answers) != ANNOTATORS:
        raise ValueError(f"{len(answers)} answers, but the VQA accuracy is defined over {ANNOTATORS}.")
    prediction, answers = strip(prediction), [strip(answer) for answer in answers]
    if len(set(answers)) > 1:
        prediction, answers = normalize(prediction), [normalize(answer) for answer in answers]
    agree = answers.count(prediction)
    left_out_agrees, left_out_differs = min(1, (agree - 1) / ENOUGH), min(1, agree / ENOUGH)
    return (agree * left_out_agrees + (ANNOTATORS - agree) * left_out_differs) / ANNOTATORS


def vqa_scores(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    answer_types: Sequence[str] | None = None,
    question_types: Sequence[str] | None = None,
    image_ids: Sequence | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """The mean accuracy, overall and by type.

    Args:
        predictions: one answer per question.
        references: the ten annotators' answers to each question.
        answer_types, question_types: one per question, None for a question without a type.
        image_ids: one per question; if given, the bootstrap resamples images instead of questions.
        seed: of the bootstrap.

    Returns:
        {"accuracy": {"value", "n", "low", "high"}, "answer_types": {type: the same}, "question_types": {type: ...}}.

    Raises:
        ValueError: no questions, arguments of different lengths, or a question without exactly ten answers.
    """
    if len(predictions) == 0:
        raise ValueError("There are no predictions to score.")
    for given in (references, answer_types, question_types, image_ids):
        if given is not None and len(given) != len(predictions):
            raise ValueError(f"{len(predictions)} predictions, but {len(given)} references, types or image_ids.")
    scores = np.array([accuracy(text, answers) for text, answers in zip(predictions, references, strict=True)])
    groups = np.arange(len(scores)) if image_ids is None else np.asarray(image_ids)

    def by_type(types: Sequence[str] | None) -> dict[str, dict]:
        of = np.asarray(types if types is not None else [], dtype=object)
        return {name: mean_estimate(scores[of == name], groups[of == name], seed) for name in sorted(set(of) - {None})}

    return {
        "accuracy": mean_estimate(scores, groups, seed),
        "answer_types": by_type(answer_types),
        "question_types": by_type(question_types),
    }
