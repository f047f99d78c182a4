"""Each metric as a Space of `evaluate`, put together by the commands of metrics/README.md."""

import runpy
import shutil
from pathlib import Path

import evaluate
import evaluate.utils
import numpy as np
import pytest

from trainer.evaluation import metrics

FOLDER = Path(metrics.__path__[0])
PEOPLE = ["2"] * 9 + ["3"]
CALLS = {
    "vqa_accuracy": ({"predictions": ["two"], "references": [PEOPLE]}, ("accuracy", 1.0)),
    "caption_scores": (
        {"predictions": ["a dog"], "references": [["a dog"]], "metrics": ["ROUGE-L"], "tokenizer": "python"},
        ("scores", "ROUGE-L", 1.0),
    ),
    "retrieval_recall": (
        {"predictions": np.eye(3)[[0, 1, 1, 2]], "references": [0, 1, 2, 2], "image_embeds": np.eye(3)},
        ("text_to_image", "R@1", 0.75),
    ),
    "text_qa": ({"predictions": ["the red one"], "references": [["red", "a red one"]]}, ("exact_match", 1.0)),
}


@pytest.mark.parametrize("name", CALLS)
def test_space(name, tmp_path, monkeypatch):
    space = tmp_path / name
    shutil.copytree(FOLDER, space, ignore=shutil.ignore_patterns("*.md", "__pycache__"))
    readme = shutil.copy(FOLDER / f"{name}.md", space / "README.md")
    assert (
        Path(readme).read_text(encoding="utf-8").startswith("---\ntitle: ") and (space / "requirements.txt").is_file()
    )
    launched = []
    monkeypatch.setattr(evaluate.utils, "launch_gradio_widget", launched.append)
    monkeypatch.setenv("SPACE_ID", str(space))  # on the Hub it is user/name
    runpy.run_path(str(space / "app.py"))
    arguments, (*keys, value) = CALLS[name]
    found = launched[0].compute(**arguments)
    for key in keys:
        found = found[key]
    assert found["value"] == value


def test_the_metrics_import_nothing_of_the_package():
    for file in FOLDER.glob("*.py"):
        assert "from trainer" not in file.read_text(encoding="utf-8"), file


@pytest.mark.parametrize("name", CALLS)
def test_a_metric_loads_from_its_file(name):
    assert evaluate.load(str(FOLDER / f"{name}.py")).features
