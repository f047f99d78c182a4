"""How the official VQA evaluation reads answers, and what it counts as agreement."""

import re
from collections.abc import Sequence
from functools import lru_cache

ANNOTATORS = 10
ENOUGH = 3  # an answer that this many other people gave is fully right

# The order matters: each mark is removed from what those before it left.
MARKS = ';/[]"{}()=+\\_-><@`,?!'
ARTICLES = {"a", "an", "the"}
NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6"}
NUMBERS |= {"seven": "7", "eight": "8", "nine": "9", "ten": "10"}

# What is written without one of its apostrophes gets it back; the table is the evaluation's own, with its oddities.
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
PERIODS_REMOVED = 32  # the evaluation passes re.UNICODE, which is 32, where `re.sub` takes a count


def without_punctuation(text: str) -> str:
    """Marks become spaces, or nothing where one stands beside a space or a number is written 1,000."""
    cleaned = text
    for mark in MARKS:
        beside_space = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if beside_space or NUMBER_WITH_COMMA.search(text) else " ")
    return PERIOD.sub("", cleaned, count=PERIODS_REMOVED)


@lru_cache(maxsize=1 << 16)  # few answers make up most of a dataset
def normalize(text: str) -> str:
    """`text` without punctuation, in lower case, number words as digits, no articles, apostrophes put back."""
    words = [NUMBERS.get(word, word) for word in without_punctuation(text).lower().split()]
    return " ".join(WITH_APOSTROPHE.get(word, word) for word in words if word not in ARTICLES)


def strip(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def accuracy(prediction: str, answers: Sequence[str]) -> float:
    """The agreement of one answer with ten people's: min(1, others who said it / 3), each person left out in turn.

    Where all ten wrote the very same, nothing is normalized, neither theirs nor the prediction: "Yes." is then not
    "yes". The evaluation's authors meant this for text read off an image.

    Raises:
        ValueError: there are not ten answers.
    """
    if len(answers) != ANNOTATORS:
        raise ValueError(f"{len(answers)} answers where the VQA accuracy is defined over {ANNOTATORS}.")
    prediction, answers = strip(prediction), [strip(answer) for answer in answers]
    if len(set(answers)) > 1:
        prediction, answers = normalize(prediction), [normalize(answer) for answer in answers]
    agree = answers.count(prediction)
    left_out_agrees, left_out_differs = min(1, (agree - 1) / ENOUGH), min(1, agree / ENOUGH)
    return (agree * left_out_agrees + (ANNOTATORS - agree) * left_out_differs) / ANNOTATORS
