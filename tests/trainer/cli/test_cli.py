"""The `vlkd` command itself: the YAML file's values, errors, tracebacks."""

import io
import sys
from pathlib import Path

import pytest
import yaml

from trainer import cli
from trainer.arguments import DataArguments, ModelArguments, VLKDTrainingArguments
from trainer.cli import main
from trainer.cli.parser import CommandParser, flags_of_config

BASE = "clip: c\nbart: b\ndataset_name: d\noutput_dir: out\nuse_cpu: true\n"


def parse(tmp_path: Path, text: str) -> tuple[ModelArguments, DataArguments, VLKDTrainingArguments]:
    (tmp_path / "train.yaml").write_text(BASE + text)
    flags = flags_of_config(str(tmp_path / "train.yaml"))
    kinds = (ModelArguments, DataArguments, VLKDTrainingArguments)
    return CommandParser(kinds).parse_args_into_dataclasses(flags)[:3]


@pytest.mark.parametrize(
    ("text", "part", "name", "value"),
    [
        ("save_strategy: no", 2, "save_strategy", "no"),
        ("save_strategy: 'no'", 2, "save_strategy", "no"),
        ("cache_image_features: none", 1, "cache_image_features", "none"),
        ("bf16: on\n", 2, "bf16", True),
        ("bf16: yes\n", 2, "bf16", True),
        ("streaming: No\n", 1, "streaming", False),
        ("streaming: off\n", 1, "streaming", False),
        ("output_dir: 2026-11-26", 2, "output_dir", "2026-11-26"),
        ("output_dir: 2026-13-45", 2, "output_dir", "2026-13-45"),
        ("run_name: 1:30", 2, "run_name", "1:30"),
        ("run_name: 007", 2, "run_name", "007"),
        ("clip: 1984", 2, "clip", "1984"),
        ("resume_from_checkpoint: no", 2, "resume_from_checkpoint", None),
        ("resume_from_checkpoint: yes", 2, "resume_from_checkpoint", True),
        ("report_to: off", 2, "report_to", []),
        ("lr_scheduler_kwargs: {min_lr: 1e-6}", 2, "lr_scheduler_kwargs", {"min_lr": 1e-6}),
        ("dataset_kwargs: {x: 1e-6}", 1, "dataset_kwargs", {"x": 1e-6}),
        ("bart: true", 0, "bart", "true"),
        ("learning_rate: 1e-5", 2, "learning_rate", 1e-5),
        ("learning_rate: 3.0e-05", 2, "learning_rate", 3e-5),
        ("max_steps: 100_000", 2, "max_steps", 100_000),
        ("seed: 010", 2, "seed", 10),
        ("dataset_test_split: null", 1, "dataset_test_split", None),
        ("dataset_test_split: ~", 1, "dataset_test_split", None),
        ("dataset_test_split:", 1, "dataset_test_split", None),
        ("dataset_test_split: 'null'", 1, "dataset_test_split", "null"),
        ("dataset_name: [no, 2026-11-26, x]", 1, "dataset_name", ["no", "2026-11-26", "x"]),
        ("dataset_probabilities: [1, 1e-1]\ndataset_name: [a, b]", 1, "dataset_probabilities", [1.0, 0.1]),
        (
            "dataset_kwargs: {rows: 8, deep: {flag: no, name: 'no'}}",
            1,
            "dataset_kwargs",
            {"rows": 8, "deep": {"flag": False, "name": "no"}},
        ),
        ("dataset_kwargs:\n  since: 2026-11-26", 1, "dataset_kwargs", {"since": "2026-11-26"}),
        ("lr_scheduler_kwargs: {num_cycles: 2}", 2, "lr_scheduler_kwargs", {"num_cycles": 2}),
    ],
)
def test_values_are_read_by_their_option(tmp_path, text, part, name, value):
    found = getattr(parse(tmp_path, text)[part], name)
    assert found == value and (value is None or isinstance(found, type(value)))


@pytest.mark.parametrize("text", ["a: [1", "- a", "", "a: b: c", "--- {a: 1}\n--- {b: 2}\n"])
def test_files_that_are_no_mapping(tmp_path, text):
    (tmp_path / "train.yaml").write_text(text)
    with pytest.raises(ValueError, match="train.yaml (cannot be read|holds no `key: value` lines)"):
        flags_of_config(str(tmp_path / "train.yaml"))


def test_a_recipe_is_read_as_it_was_written(tmp_path):
    values = {"clip": "1984", "bart": "no", "dataset_name": ["off", "2026-11-26"], "learning_rate": 3e-5, "bf16": True}
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    expected = [
        "--clip=1984",
        "--bart=no",
        "--dataset_name",
        "off",
        "2026-11-26",
        "--learning_rate=3.0e-05",
        "--bf16=true",
    ]
    assert flags_of_config(str(tmp_path / "train.yaml")) == expected


@pytest.mark.parametrize("value", ["{a: [", "rows", "[1]"])
def test_mappings_of_the_command_line(value):
    with pytest.raises(ValueError, match="dataset_kwargs is '.*must be a mapping"):
        DataArguments(dataset_name="d", dataset_kwargs=value)


# ------------------------------------------------------------------------------------------------------------ errors


@pytest.fixture
def failing(monkeypatch):
    """`vlkd report x` raises what it is given."""

    def fail(error: BaseException) -> None:
        def run(args):
            raise error

        monkeypatch.setattr(cli.report, "run", run)

    return fail


@pytest.mark.parametrize("switch", ["first", "last", "environment", "none"])
def test_debug_shows_the_traceback(failing, capsys, monkeypatch, switch):
    failing(ValueError("deep inside"))
    monkeypatch.setenv("VLKD_DEBUG", "1" if switch == "environment" else "0")
    argv = {"first": ["--debug", "report", "x"], "last": ["report", "x", "--debug"]}.get(switch, ["report", "x"])
    assert main(argv) == 2
    errors = capsys.readouterr().err.splitlines()
    if switch == "none":
        assert errors == ["vlkd: error: deep inside (--debug shows the traceback.)"]
    else:
        assert errors[0] == "Traceback (most recent call last):" and errors[-1] == "vlkd: error: deep inside"


def test_our_own_errors_need_no_traceback(capsys):
    assert main(["report", "nowhere.json"]) == 2
    assert capsys.readouterr().err.strip().endswith("No such file or directory: 'nowhere.json'")


def test_bugs_keep_their_traceback(failing):
    failing(TypeError("a bug"))
    with pytest.raises(TypeError, match="a bug"):
        main(["report", "x"])


def test_an_interrupt_and_a_closed_pipe(failing, capsys, monkeypatch, tmp_path):
    failing(KeyboardInterrupt())
    assert main(["report", "x"]) == 130 and capsys.readouterr().err == "vlkd: interrupted\n"
    failing(BrokenPipeError())
    with (tmp_path / "out").open("w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert main(["report", "x"]) == 141


def test_help_on_a_console_without_greek(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="cp1252"))
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert b"\\u03bb" in sys.stdout.buffer.getvalue()


def test_the_first_line_of_the_help(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        main(["--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert "image captions, visual question answering, text-image embeddings." in out and "--debug" in out
