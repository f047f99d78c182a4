"""metrics.json and its tables, from results made by hand."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
import transformers

from trainer.cli import main
from trainer.evaluation import metrics_file as report
from trainer.evaluation.intervals import Proportion
from trainer.evaluation.metrics_file import MetricTable, load_metrics, markdown_table, terminal_table, write_metrics
from trainer.hub.model_card import eval_results, evaluation_section

ROOT = Path(__file__).parents[3]


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
        ({"schema": 2}, r"metrics.json' .* `schema` 1"),
        ({"command": ...}, "`command` is missing or empty"),
        ({"split": ""}, "`split` is missing or empty"),
        ({"figures": 3}, "a list of `figures`"),
        ({"figures": []}, "`figures` is missing or empty"),
        ({"figures": ["all"]}, r"figures\[0\] needs .*, but is 'all'"),
        ({"row": ...}, r"figures\[0\] needs the texts metric, row"),
        ({"row": 3}, r"figures\[0\] needs .*'row': 3"),
        ({"value": "1"}, r"figures\[0\] needs .*'value': '1'"),
        ({"value": float("nan")}, "'value': nan"),
        ({"n": ...}, r"figures\[0\] needs .* the numbers value, n"),
        ({"high": True}, "'high': True"),
        ({"condition": "blind"}, r"figures\[1\] is a second VQA / all / blind"),
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
    with pytest.raises(ValueError, match="`command` is missing or empty"):
        write_metrics(tmp_path / "metrics.json", figures.as_list(), command="", dataset="microworld", split="test")
    assert not list(tmp_path.iterdir())


def test_example_of_the_page():
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    example = json.loads(page.split("```json\n")[1].split("```")[0])
    report.check_metrics(example, "the page's")


def git(folder, *argv: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    run = subprocess.run(["git", "-C", str(folder), *identity, *argv], check=True, capture_output=True, text=True)
    return run.stdout.strip()


def test_checkout_commit(tmp_path, monkeypatch):
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


# -------------------------------------------------------------------------------------------------------- vlkd report

BENEATH = "Measured with `make demo` on commit `v0.1-3-g1234567`; 224 s to train and 40 s to evaluate; "


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
    beneath = "Measured with `make demo` on code outside a git checkout; the first 100 rows only; 224 s to train"
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
