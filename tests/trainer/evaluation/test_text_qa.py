"""Exact match and token F1 worked out by hand."""

import pytest

from trainer.evaluation import scoring
from trainer.evaluation.metrics.matching import exact_match, normalize, token_f1


def test_normalization():
    assert normalize(" The  RED-ish, a theme (an old one).") == "redish theme old one"


@pytest.mark.parametrize(
    "said, meant, f1",
    [
        ("the small owl", "small owl", 1),
        ("small owl", "small fox", 1 / 2),
        ("a very small small owl", "small", 2 / 5),
        ("large", "small", 0),
        ("the", "an", 1),
        ("the", "small", 0),
    ],
)
def test_token_f1_by_hand(said, meant, f1):
    assert token_f1(said, meant) == pytest.approx(f1)
    assert exact_match(said, meant) == (f1 == 1)


def test_the_best_of_several_answers_counts():
    figures = scoring.score_text_qa(["small owl", "two", "x"], ["small fox", ["three", "Two!"], ["y"]])
    assert [(f["metric"], f["row"], f["n"]) for f in figures] == [
        ("text QA", "exact match", 3),
        ("text QA", "token F1", 3),
    ]
    assert [f["value"] for f in figures] == pytest.approx([1 / 3, 1 / 2])
    assert figures[0]["low"] == 0 and figures[0]["high"] == 1


@pytest.mark.parametrize(
    "said, meant, message",
    [([], [], "0 predictions"), (["a"], [], "1 predictions and 0"), (["a"], [[]], r"references\[0\] is empty")],
)
def test_what_does_not_fit_is_named(said, meant, message):
    with pytest.raises(ValueError, match=message):
        scoring.score_text_qa(said, meant)
