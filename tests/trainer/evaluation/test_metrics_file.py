"""metrics.json, tables, page and pictures, from figures made by hand."""

import argparse
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
import transformers
from matplotlib.figure import Figure
from PIL import Image

from microworld.demo.__main__ import command_of
from microworld.demo.gallery import draw_cards, draw_gallery, write_page
from microworld.exam.exam import Exam, draw_exam
from trainer.cli import main
from trainer.evaluation import metrics_file as report
from trainer.evaluation.intervals import Proportion
from trainer.evaluation.metrics_file import MetricTable, load_metrics, markdown_table, terminal_table, write_metrics
from trainer.evaluation.plots import plot_training
from trainer.hub.model_card import eval_results, evaluation_section

ROOT = Path(__file__).parents[3]
RED = (0xCF, 0x22, 0x2E)


@pytest.fixture
def figures() -> MetricTable:
    figures = MetricTable()
    figures.add("VQA", "VLKD", {"all": Proportion(0.75, 400, 0.705, 0.79), "color": Proportion(1.0, 8, 0.6756, 1.0)})
    figures.add("VQA", "blind", {"all": Proportion(0.25, 400, 0.21, 0.295)})
    figures.add("VQA", "majority", {"all": Proportion(0.5, 400, 0.451, 0.549), "count": Proportion(0.0, 9, 0.0, 0.3)})
    return figures


MARKDOWN = """\
|  | VLKD | 95% interval | n | blind | majority |
| --- | ---: | ---: | ---: | ---: | ---: |
| VQA: all | 0.750 | 0.705–0.790 | 400 | 0.250 | 0.500 |
| VQA: color | 1.000 | 0.676–1.000 | 8 | · | · |
| VQA: count | · | · | 9 | · | 0.000 |
"""


def test_markdown_table(figures):
    assert markdown_table(figures.as_list()) == MARKDOWN


def test_terminal_table(figures):
    lines = terminal_table(figures.as_list()).splitlines()
    assert lines[1] == "VQA: all    0.750   0.705–0.790  400  0.250     0.500"
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


def test_figures_of_a_scorer(figures):
    """What has no Wilson interval comes as dicts."""
    cider = {"metric": "captions", "row": "CIDEr", "value": 0.584217, "n": 5000, "low": 0.571, "high": 0.59688}
    figures.extend("VLKD", [cider])
    record = {**cider, "condition": "VLKD", "value": 0.5842, "high": 0.5969}
    assert figures.as_list()[-1] == record
    assert markdown_table(figures.as_list()).endswith("| captions: CIDEr | 0.584 | 0.571–0.597 | 5000 | · | · |\n")


# ------------------------------------------------------------------------------------------------------- metrics.json


@pytest.fixture
def metrics(figures, tmp_path, monkeypatch) -> dict:
    monkeypatch.setattr(report, "checkout_commit", lambda: "v0.1-3-g1234567")
    options = {"command": "make demo", "dataset": "microworld", "split": "test", "recipe": "paper"}
    seconds = {"train": 224.4, "evaluate": 40.0}
    return write_metrics(tmp_path / "metrics.json", figures.as_list(), **options, seconds=seconds)


def test_written_metrics(metrics, figures, tmp_path):
    assert load_metrics(tmp_path / "metrics.json") == metrics
    assert (metrics["schema"], metrics["command"], metrics["commit"]) == (1, "make demo", "v0.1-3-g1234567")
    assert metrics["versions"] == {"torch": torch.__version__, "transformers": transformers.__version__}
    assert metrics["machine"] == {"cores": os.cpu_count(), "threads": torch.get_num_threads()}
    assert metrics["figures"] == figures.as_list() and metrics["recipe"] == "paper"
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, r"metrics.json' has schema 2, not 1"),
        ({"schema": None}, r"has schema None, not 1"),
        ({"command": None}, r"has command None, which must be a text; measure again"),
        ({"split": ""}, r"has split '', which must be a text"),
        ({"commit": 3}, r"has no commit that is a text or null"),
        ({"figures": []}, r"holds no list of `figures`"),
        ({"figures": ["all"]}, r"figures\[0\] of '.*' is 'all', no object"),
        ({"row": ...}, r"figures\[0\] of '.*' has no row; measure again, or mend the file"),
        ({"n": ..., "low": ...}, r"figures\[0\] of '.*' has no n, low;"),
        ({"row": 3}, r"figures\[0\] of '.*' has row 3, no text"),
        ({"value": "1"}, r"figures\[0\] of '.*' has value '1', no number"),
        ({"value": float("nan")}, r"has value nan, no number"),
        ({"high": True}, r"has high True, no number"),
        ({"n": 0}, r"has n 0, no count of what was scored"),
        ({"n": 2.5}, r"has n 2.5, no count of what was scored"),
        ({"low": 0.9, "high": 0.8}, r"has low 0.9 above high 0.8"),
        ({"condition": "blind"}, r"figures\[1\] of '.*' is a second VQA / all / blind; keep one"),
    ],
)
def test_metrics_that_break_the_schema(metrics, tmp_path, change, message):
    changed = metrics if change.keys() <= metrics.keys() else metrics["figures"][0]
    changed |= change
    for key in [key for key, value in changed.items() if value is ...]:
        del changed[key]
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(ValueError, match=message):
        load_metrics(tmp_path / "metrics.json")


def test_metrics_that_break_the_schema_are_not_written(figures, tmp_path):
    with pytest.raises(ValueError, match="has command '', which must be a text"):
        write_metrics(tmp_path / "metrics.json", figures.as_list(), command="", dataset="microworld", split="test")
    assert not list(tmp_path.iterdir())


def test_example_of_the_page():
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    example = json.loads(page.split("```json\n")[1].split("```")[0])
    report.check_metrics(example, "the page's")
    broken = {**example, "schema": 0}
    with pytest.raises(ValueError, match="has schema 0"):
        report.check_metrics(broken, "the page's")


def git(folder, *argv: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    run = subprocess.run(["git", "-C", str(folder), *identity, *argv], check=True, capture_output=True, text=True)
    return run.stdout.strip()


def test_commit_is_told_honestly(tmp_path, monkeypatch):
    module = tmp_path / "project" / "report.py"
    module.parent.mkdir()
    module.write_text("")
    monkeypatch.setattr(report, "__file__", str(module))
    assert report.checkout_commit() is None  # in no checkout
    git(tmp_path, "init")
    (tmp_path / "other.txt").write_text("one")
    git(tmp_path, "add", "other.txt")
    git(tmp_path, "commit", "-m", "one")
    assert report.checkout_commit() is None  # in another project's, as an installed package may be
    git(tmp_path, "add", "project")
    git(tmp_path, "commit", "-m", "two")
    commit = git(tmp_path, "rev-parse", "--short", "HEAD")
    assert report.checkout_commit() == commit
    (tmp_path / "other.txt").write_text("two")
    assert report.checkout_commit() == f"{commit}-dirty"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert report.checkout_commit() is None  # without git


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


# -------------------------------------------------------------------------------------------------------- vlkd report

BENEATH = "By `make demo` on commit `v0.1-3-g1234567`; 224 s to train and 40 s to evaluate; "


def test_report_is_printed(metrics, tmp_path, capsys):
    assert main(["report", str(tmp_path / "metrics.json")]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{MARKDOWN}\n{BENEATH}") and f"torch {torch.__version__}" in printed


DOCUMENT = """# MetricTable

<!-- figures: paper -->
| old |
<!-- /figures -->
between
<!-- figures: plus -->
<!-- /figures -->
end
"""


def test_report_into_a_document(metrics, tmp_path, capsys):
    document = tmp_path / "page.md"
    document.write_text(DOCUMENT)
    document.chmod(0o640)
    for _ in range(2):  # a second time changes nothing
        assert main(["report", str(tmp_path / "metrics.json"), "--into", str(document)]) == 0
        text = document.read_text()
        assert text.startswith(f"# MetricTable\n\n<!-- figures: paper -->\n\n{MARKDOWN}\n{BENEATH}")
        assert text.endswith(f"\n\n<!-- /figures -->{DOCUMENT.partition('<!-- /figures -->')[2]}")
        assert "old" not in text and text.count("<!-- /figures -->") == 2
    assert main(["report", str(tmp_path / "metrics.json"), "--into", str(document), "--name", "plus"]) == 0
    assert document.read_text().count(MARKDOWN) == 2
    assert document.stat().st_mode & 0o777 == 0o640 and len(list(tmp_path.iterdir())) == 2


def test_line_ends_are_kept(metrics, tmp_path):
    document = tmp_path / "page.md"
    document.write_bytes(DOCUMENT.replace("\n", "\r\n").encode())
    assert main(["report", str(tmp_path / "metrics.json"), "--into", str(document)]) == 0
    assert b"VQA: all" in document.read_bytes() and not re.search(rb"(?<!\r)\n", document.read_bytes())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", "has 0 lines '<!-- figures: paper -->'; write it once, and '<!-- /figures -->' below"),
        (DOCUMENT * 2, "has 2 lines '<!-- figures: paper -->'"),
        ("a <!-- figures: paper --> in a line\n<!-- /figures -->", "has 0 lines"),
        (DOCUMENT.replace("<!-- /figures -->", "", 1), "has no '<!-- /figures -->' after '<!-- figures: paper -->'"),
        ("<!-- figures: paper -->\n", "has no '<!-- /figures -->' after"),
    ],
)
def test_document_without_marks(metrics, tmp_path, capsys, text, message):
    document = tmp_path / "page.md"
    document.write_text(text)
    assert main(["report", str(tmp_path / "metrics.json"), "--into", str(document)]) == 2
    assert message in capsys.readouterr().err and document.read_text() == text


def test_no_document(metrics, tmp_path, capsys):
    assert main(["report", str(tmp_path / "metrics.json"), "--into", str(tmp_path / "none.md")]) == 2
    assert "none.md cannot be read" in capsys.readouterr().err


def test_card(metrics):
    section = evaluation_section(metrics)
    about = "From `metrics.json` (dataset `microworld` split `test` recipe `paper`):"
    assert section.startswith(f"{about}\n\n{MARKDOWN}\n{BENEATH}")
    metrics |= {"commit": None, "limit": 100}
    beneath = "By `make demo` on code outside a git checkout; the first 100 rows only; 224 s to train"
    assert beneath in evaluation_section(metrics)
    found = [(r.task_type, r.metric_type, r.metric_name, r.metric_value) for r in eval_results(metrics)]
    vqa = ("visual-question-answering", "accuracy")
    assert found == [(*vqa, "VQA: all", 0.75), (*vqa, "VQA: color", 1.0)]
    metrics["figures"][0] |= {"metric": "captions", "row": "CIDEr"}
    metrics["figures"][3] |= {"metric": "retrieval", "row": "R@10: text to image"}
    assert [(r.task_type, r.metric_type) for r in eval_results(metrics)] == [
        ("image-to-text", "cider"),
        ("feature-extraction", "recall"),
    ]


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
