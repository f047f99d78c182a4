"""The demo's tables, page and pictures, from figures made by hand."""

import json
import re

import pytest
from matplotlib.figure import Figure
from PIL import Image

from microworld.gallery import draw_cards, draw_gallery, write_page
from microworld.report import Figures, markdown_table, terminal_table
from microworld.task import Exam, draw_exam
from trainer.evaluation.metrics import Proportion
from trainer.evaluation.plots import plot_training

RED = (0xCF, 0x22, 0x2E)


@pytest.fixture
def figures() -> Figures:
    figures = Figures()
    figures.add("VQA", "VLKD", {"all": Proportion(0.75, 400, 0.705, 0.79), "color": Proportion(1.0, 8, 0.6756, 1.0)})
    figures.add("VQA", "blind", {"all": Proportion(0.25, 400, 0.21, 0.295)})
    figures.add("VQA", "majority", {"all": Proportion(0.5, 400, 0.451, 0.549), "count": Proportion(0.0, 9, 0.0, 0.3)})
    return figures


MARKDOWN = """\
|  | VLKD | 95% interval | n | blind | majority |
| --- | ---: | ---: | ---: | ---: | ---: |
| VQA: all | 0.750 | 0.70–0.79 | 400 | 0.250 | 0.500 |
| VQA: color | 1.000 | 0.68–1.00 | 8 | · | · |
| VQA: count | · | · | 9 | · | 0.000 |
"""


def test_markdown_table(figures):
    assert markdown_table(figures) == MARKDOWN


def test_terminal_table(figures):
    lines = terminal_table(figures).splitlines()
    assert lines[1] == "VQA: all    0.750     0.70–0.79  400  0.250     0.500"
    assert lines[3] == "VQA: count      ·             ·    9      ·     0.000"
    assert len({len(line) for line in lines}) == 1 and lines[0].split() == "VLKD 95% interval n blind majority".split()


def test_records(figures):
    records = figures.as_list()
    assert len(records) == 5
    assert records[1] == {
        "metric": "VQA",
        "row": "all",
        "condition": "blind",
        "value": 0.25,
        "n": 400,
        "low": 0.21,
        "high": 0.295,
    }


# ------------------------------------------------------------------------------------------------- page and pictures


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
    """Figures, as they are saved."""
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
    assert "<td>VQA: all</td><td>0.750</td><td>0.70–0.79</td>" in page
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
