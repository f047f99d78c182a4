"""The demo's command line, page and pictures."""

import argparse
import json
import re

import pytest
from matplotlib.figure import Figure
from PIL import Image

from microworld.demo.__main__ import command_of
from microworld.demo.gallery import draw_cards, draw_gallery, write_page
from microworld.demo.plots import plot_training
from microworld.exam.exam import Exam, draw_exam

RED = (0xCF, 0x22, 0x2E)
MARKDOWN = """\
|  | VLKD | 95% interval | n | blind |
| --- | ---: | ---: | ---: | ---: |
| VQA: all | 0.750 | 0.705–0.790 | 400 | 0.250 |
"""


@pytest.mark.parametrize(
    ("options", "overrides", "command"),
    [
        ({}, [], "make demo"),
        ({"recipe": "plus"}, [], "make demo RECIPE=plus"),
        (
            {"recipe": "plus", "split": "validation"},
            ["--max_steps", "60"],
            "python -m microworld.demo --recipe plus --split validation --max_steps 60",
        ),
    ],
)
def test_command_of_the_demo(options, overrides, command):
    parser = argparse.ArgumentParser()
    parser.set_defaults(recipe="paper", teachers="microworld/teachers", exam_scenes=500, split="test")
    args = parser.parse_args([], argparse.Namespace(**options, output_dir="elsewhere"))
    assert command_of(args, parser, overrides) == command


@pytest.fixture(scope="module")
def exam() -> Exam:
    return draw_exam("test", 30, ("color", "count"))


@pytest.fixture(scope="module")
def said(exam) -> tuple[list[str], list[str]]:
    """Answers and captions: right ones, but that every second scene's answers and every third caption are wrong."""
    answers = ["<b>$x$" if row % 2 else q.answer for row, q in exam.questions]
    captions = ["" if row % 3 == 0 else text for row, text in enumerate(exam.captions)]
    return answers, captions


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """MetricTable, as they are saved."""
    saved, save = [], Figure.savefig

    def savefig(self, *args, **kwargs):
        saved.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return saved


def test_cards_leave_no_failure_out(exam, said):
    cards = draw_cards(exam, *said, number=30)
    assert len(cards) == 30 and sum(card.caption_right for card in cards) == 20
    assert sum(answer == q.answer for card in cards for q, answer in card.answered) == 30
    assert all(len(card.answered) == 2 for card in cards)
    for card in cards:
        row = next(row for row, image in enumerate(exam.images) if image is card.image)
        assert card.caption == said[1][row] and [q for q, _ in card.answered] == [
            q for at, q in exam.questions if at == row
        ]
    fewer = draw_cards(exam, *said, number=6)
    assert len(fewer) == 6 and len({id(card.image) for card in fewer}) == 6
    assert [c.caption for c in draw_cards(exam, *said, 6)] == [c.caption for c in fewer]


def test_page(exam, said, tmp_path):
    write_page(exam, *said, MARKDOWN, tmp_path / "index.html", number=30)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert page.count("<article>") == page.count("data:image/png;base64,") == 30
    assert len(re.findall('<p><b class="wrong">✗ \\(nothing\\)</b></p>', page)) == 10
    assert len(re.findall('<p><b class="right">✓ ', page)) == 20
    wrong = [q for row, q in exam.questions if row % 2]
    assert page.count('<b class="wrong">✗ &lt;b&gt;$x$</b> <small>(right: ') == len(wrong) == 30
    assert f"<small>(right: {wrong[0].answer})</small>" in page
    assert "<td>VQA: all</td><td>0.750</td><td>0.705–0.790</td>" in page
    assert "<th></th><th>VLKD</th>" in page and 'src="training.png"' in page
    assert "{" not in page.split("</style>")[1]


def test_gallery_tells_right_from_wrong(exam, said, tmp_path, drawn):
    draw_gallery(exam, *said, tmp_path / "gallery.png", columns=5, lines=6)
    texts = [[(text.get_text(), text.get_color()) for text in axis.texts] for axis in drawn[0].axes]
    assert len(texts) == 30 and all(len(card) == 3 for card in texts)
    captions, questions, verdicts = zip(*texts, strict=True)
    assert sum(color == "#1a7f37" for _, color in captions) == 20 and captions.count(("(nothing)", "#cf222e")) == 10
    assert {color for _, color in questions} == {"black"}
    for (text, color), (question, _) in zip(verdicts, questions, strict=True):
        assert color == ("#cf222e" if "<b>$x$" in text else "#1a7f37")
        assert (" (right: " in " ".join(text.split())) == ("<b>$x$" in text) and question.endswith("?")
    with Image.open(tmp_path / "gallery.png") as picture:
        assert picture.size == (1260, 2151)  # 5 × 2.8 by 0.5 + 6 × 3.9 inches, of 90 pixels


def test_text_of_the_gallery_stays_in_the_picture(exam, said, tmp_path, drawn):
    """However long a caption is, nothing is written over the line below."""
    draw_gallery(exam, said[0], ["very long " * 60] * 30, tmp_path / "gallery.png", columns=2, lines=2)
    upper, lower = drawn[0].axes[0], drawn[0].axes[2]
    assert upper.texts[-1].get_window_extent().y0 > lower.get_window_extent().y1
    assert lower.texts[-1].get_window_extent().y0 > 0


def count(path, color: tuple[int, int, int]) -> int:
    """Pixels of exactly this colour."""
    image = Image.open(path).convert("RGB")
    return dict((c, n) for n, c in image.getcolors(maxcolors=1 << 24)).get(color, 0)


def test_training_is_drawn_by_term(tmp_path):
    history = [{"step": step, "ttdm": 1 / step, "icti": 2 / step, "loss": 3.0} for step in (1, 2, 3)]
    history += [{"step": 3, "eval_icti": 1.0}]
    state = tmp_path / "trainer_state.json"
    state.write_text(json.dumps({"log_history": history}))
    plot_training(state, tmp_path / "two.png")
    two = Image.open(tmp_path / "two.png")
    assert two.size == (840, 340)  # a panel for each of the two terms
    assert count(tmp_path / "two.png", RED) > 5  # the evaluation's dot
    state.write_text(json.dumps({"log_history": history[:3]}))
    plot_training(state, tmp_path / "no_evaluation.png")
    assert count(tmp_path / "no_evaluation.png", RED) == 0
    state.write_text(json.dumps({"log_history": [{"step": 1, "loss": 3.0}]}))
    with pytest.raises(ValueError, match="holds no loss term: set logging_steps"):
        plot_training(state, tmp_path / "none.png")
