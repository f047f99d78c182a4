"""The `vlkd` command itself: config files, help, errors and tracebacks, and what it imports."""

import io
import os
import platform
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml

from trainer.arguments import DataArguments, ModelArguments, VLKDTrainingArguments
from trainer.cli import COMMANDS, main, report
from trainer.cli.parser import COMMON, CommandParser, find_config, flags_of_config
from trainer.evaluation.metrics_file import write_metrics
from trainer.extras import OPTIONAL

ROOT = Path(__file__).parents[3]

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
    with pytest.raises(ValueError, match="train.yaml (cannot be read|has no `key: value` lines)"):
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

        monkeypatch.setattr(report, "run", run)

    return fail


@pytest.mark.parametrize("is_set", [True, False])
def test_a_variable_shows_the_traceback(failing, capsys, monkeypatch, is_set):
    failing(ValueError("deep inside"))
    monkeypatch.setenv("VLKD_TRACEBACK", str(int(is_set)))
    assert main(["report", "x"]) == 2
    errors = capsys.readouterr().err.splitlines()
    if is_set:
        assert errors[0] == "Traceback (most recent call last):" and errors[-1] == "vlkd: error: deep inside"
    else:
        assert errors == ["vlkd: error: deep inside (VLKD_TRACEBACK=1 shows the traceback.)"]


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


def test_a_reader_that_goes_away(tmp_path):
    """As `vlkd report … | head -1`: no traceback, not even as Python exits."""
    figures = [{"metric": "VQA", "row": "all", "condition": "direct", "value": 0.5, "n": 4, "low": 0.2, "high": 0.8}]
    write_metrics(tmp_path / "metrics.json", figures, command="vlkd", dataset="d", split="test")
    command = [sys.executable, "-m", "trainer.cli", "report", str(tmp_path / "metrics.json")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 141


def test_help_on_a_console_without_greek(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="cp1252"))
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert b"\\u03bb" in sys.stdout.buffer.getvalue()


# ---------------------------------------------------------------------------------------------------------------- help


def help_of(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as exit_:
        main(list(argv))
    assert exit_.value.code == 0
    return capsys.readouterr().out


def test_commands_are_listed(capsys):
    assert main([]) == 2
    listed = capsys.readouterr().out
    assert help_of(capsys, "--help") == listed
    assert all(f"  {name} " in listed for name in COMMANDS) and "VLKD_TRACEBACK" in listed
    assert all(help_of(capsys, name, "--help").startswith(f"usage: vlkd {name}") for name in COMMANDS)


def test_an_unknown_command(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["tran"])
    assert exit_.value.code == 2 and "'tran'" in capsys.readouterr().err


def test_help_shows_what_matters_and_help_all_the_rest(capsys):
    short, long = help_of(capsys, "train", "--help"), help_of(capsys, "train", "--help_all")
    own = {field.name for kind in (ModelArguments, DataArguments) for field in fields(kind)} | {"itdd_weight", "clip"}
    assert all(f"--{name}" in short for name in {*own, *COMMON, "config"})
    assert "--torch_compile" not in short and "--torch_compile" in long
    assert len(short) < len(long) / 2
    assert "default: None" not in " ".join(long.split()) and "--learning-rate" not in long and "--no_" not in long


def test_env_and_version(capsys):
    assert main(["env"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("- ") for line in lines)
    assert {f"- Python: {platform.python_version()}", f"- torch: {torch.__version__}"} <= set(lines)
    assert help_of(capsys, "--version") == lines[0].removeprefix("- ").replace(":", "") + "\n"


# ------------------------------------------------------------------------------------------------------------- recipes


def test_a_config_is_a_file_or_a_recipe(tmp_path, monkeypatch):
    recipe = ROOT / "hub_configs" / "vlkd-vit-base-patch16-bart-base" / "train.yaml"
    monkeypatch.chdir(tmp_path)
    assert find_config("vlkd-vit-base-patch16-bart-base") == str(recipe)
    (tmp_path / "vlkd-vit-base-patch16-bart-base").mkdir()  # such as an output_dir
    assert find_config("vlkd-vit-base-patch16-bart-base") == str(recipe)
    (tmp_path / "microworld").touch()
    assert find_config("microworld") == "microworld"
    with pytest.raises(ValueError, match="--config vlkd-huge does not exist.*vlkd-vit-large-patch14-bart-large"):
        find_config("vlkd-huge")


# ------------------------------------------------------------------------------------------------------------- imports


def python(code: str, *argv: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code, *argv], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("argv", [[], ["--help"], ["--version"], ["import"]])
def test_help_and_import_load_no_heavy_library(argv):
    ran = python(
        f"import sys, vlkd\nfrom trainer.cli import main\n"
        f"try: {argv} == ['import'] or main({argv})\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'yaml', 'trainer.cli.train'} & sys.modules.keys()))"
    )
    assert ran.stdout.endswith("[]\n"), ran.stderr


BLOCK = f"import sys; sys.modules |= dict.fromkeys({sorted(OPTIONAL)})\n"  # importing one is a ModuleNotFoundError


@pytest.mark.parametrize("command", ["train", "score", "embed", "search"])
def test_a_missing_extra_is_named(command):
    ran = python(f"{BLOCK}from trainer.cli import main; sys.exit(main(sys.argv[1:]))", command)
    extra = COMMANDS[command].extra
    message = rf"vlkd: error: vlkd {command} needs \w+, which is not installed.*pip install \"vlkd\[{extra}\]\"\n"
    assert ran.returncode == 2 and re.fullmatch(message, ran.stderr), ran.stderr


def test_an_adapter_needs_peft(images, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    images[0].save(tmp_path / "a.png")
    (tmp_path / "adapter_config.json").write_text("{}")
    assert main(["caption", str(tmp_path / "a.png"), "--model", str(tmp_path)]) == 2
    assert capsys.readouterr().err.endswith(
        "needs peft, which is not installed. Install the extra 'train': pip install \"vlkd[train]\"\n"
    )


def test_a_positional_argument_is_not_proposed(capsys):
    assert main(["ask", "a.png", "--question", "what?", "--model", "m"]) == 2
    assert "Did you mean question" not in capsys.readouterr().err


def test_another_missing_module_is_no_missing_extra(failing):
    failing(ModuleNotFoundError("No module named 'mine'", name="mine"))
    with pytest.raises(ModuleNotFoundError, match="mine"):
        main(["report", "x"])
