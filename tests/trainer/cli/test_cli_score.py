"""`vlkd score` as a user runs it."""

import json
import shutil

import pytest

from trainer.cli import main
from trainer.evaluation.metrics_file import check_metrics


def write(path, data) -> str:
    path.write_text(json.dumps(data))
    return str(path)


@pytest.fixture
def vqa_files(tmp_path) -> list[str]:
    people = [{"answer": answer, "answer_id": i} for i, answer in enumerate(["yes"] * 8 + ["no"] * 2)]
    asked = [{"question_id": number, "image_id": number, "question": "is it?"} for number in (1, 2)]
    entries = [{**one, "answers": people, "answer_type": "yes/no", "question_type": "is the"} for one in asked]
    said = [{"question_id": 1, "answer": "yes"}, {"question_id": 2, "answer": "no"}]
    return [
        *("--questions", write(tmp_path / "questions.json", {"questions": asked})),
        *("--annotations", write(tmp_path / "annotations.json", {"annotations": entries})),
        *("--results", write(tmp_path / "mine.json", said)),
    ]


@pytest.fixture
def caption_files(tmp_path) -> list[str]:
    texts = {1: ["a dog runs", "one dog"], 2: ["two cats sleep"]}
    entries = [{"image_id": image, "caption": text} for image, found in texts.items() for text in found]
    said = [{"image_id": 1, "caption": "a dog runs"}, {"image_id": 2, "caption": "two cats"}]
    return [
        *("--references", write(tmp_path / "captions.json", {"annotations": entries})),
        *("--results", write(tmp_path / "mine.json", said)),
    ]


def test_vqa_prints_a_table(vqa_files, capsys):
    assert main(["score", "vqa", *vqa_files]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["mine", "95%", "interval", "n"]
    assert lines[1].split() == ["VQA", "accuracy:", "all", "0.800", "0.600–1.000", "2"]
    assert len(lines) == 4


def test_json_is_one_object_and_a_metrics_json(vqa_files, capsys):
    assert main(["score", "vqa", *vqa_files, "--json"]) == 0
    out = capsys.readouterr().out
    report = json.loads(out)
    assert out.count("\n") == 1
    check_metrics(report, "stdout")
    assert report["figures"][0] == {
        "metric": "VQA accuracy",
        "row": "all",
        "condition": "mine",
        "n": 2,
        "value": 0.8,
        "low": 0.6,
        "high": 1.0,
    }
    assert (report["style"], report["dataset"]) == ("vqa", "annotations.json")
    # The command in the report gives the report.
    assert main(report["command"].split()[1:] + ["--json"]) == 0
    assert json.loads(capsys.readouterr().out) == report


def test_ok_vqa_has_its_own_metric(vqa_files, capsys):
    assert main(["score", "vqa", *vqa_files, "--style", "ok-vqa", "--json"]) == 0
    rows = [(figure["metric"], figure["row"]) for figure in json.loads(capsys.readouterr().out)["figures"]]
    assert rows == [("OK-VQA accuracy", "all"), ("OK-VQA accuracy", "question type: is the")]


def captions_as_json(options: list[str], capfd) -> dict:
    """What the command prints, past Python's sys.stdout too, read as one JSON object."""
    assert main(["score", "captions", *options, "--json"]) == 0
    return json.loads(capfd.readouterr().out)


def test_captions_without_java_print_only_json(caption_files, capfd, monkeypatch):
    monkeypatch.setenv("PATH", "")
    report = captions_as_json(caption_files, capfd)
    assert report["tokenizer"] == "PTB (Python)"
    assert set(report["not_computed"]) == {"METEOR", "SPICE"}
    found = {figure["row"]: figure["value"] for figure in report["figures"]}
    # Five of five words; the captions have five words, the references nearest in length six.
    assert found["BLEU-1"] == pytest.approx(2.718281828 ** (1 - 6 / 5), abs=1e-6)


@pytest.mark.skipif(shutil.which("java") is None, reason="starts a Java program")
def test_captions_with_java_print_only_json(caption_files, capfd):
    report = captions_as_json([*caption_files, "--metrics", "BLEU", "ROUGE-L", "CIDEr"], capfd)
    assert (report["tokenizer"], report["not_computed"]) == ("PTB (Java)", {})
    assert [figure["row"] for figure in report["figures"]][-2:] == ["ROUGE-L", "CIDEr"]


def test_captions_table_names_tokenizer_and_what_is_missing(caption_files, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert main(["score", "captions", *caption_files]) == 0
    out = capsys.readouterr().out
    assert "captions: CIDEr" in out
    assert "METEOR is not computed: it is a Java program; install Java" in out
    assert out.endswith("Tokenizer: PTB (Python).\n")
    assert main(["score", "captions", *caption_files, "--metrics", "SPICE"]) == 2
    assert capsys.readouterr().err.startswith("vlkd: error: SPICE cannot be computed: it is a Java program")


def test_an_error_is_one_line_that_names_the_file(vqa_files, tmp_path, capsys):
    (tmp_path / "mine.json").write_text('[{"question_id": 1, "answer": "yes"}]')
    assert main(["score", "vqa", *vqa_files]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "mine.json has no question_id 2 (1 of the 2 in" in captured.err
