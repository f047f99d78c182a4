"""The study: its rows, its runs and how they resume, its estimates and its report."""

import argparse
import json
import signal
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from filelock import FileLock
from PIL import Image
from transformers import BartForConditionalGeneration

from microworld import RECIPE, TEACHERS
from microworld.exam import PARTS
from microworld.study import rows as rows_module
from microworld.study import run as run_module
from microworld.study.__main__ import main, parse
from microworld.study.report import MEASURES, estimate, estimates
from microworld.study.rows import BASE, QUESTIONS, ROWS, finished, options_of, run_folder
from microworld.study.run import as_text, call, run_jobs, save_random_bart
from trainer.cli.parser import CommandParser
from trainer.cli.train import ARGUMENTS, read_arguments
from trainer.evaluation.tasks.task import load_task


@pytest.fixture
def args(tmp_path) -> argparse.Namespace:
    """Options of a study in a new folder, whose teachers have empty weights."""
    for name in ("clip", "bart"):
        (tmp_path / "teachers" / name).mkdir(parents=True)
        (tmp_path / "teachers" / name / "model.safetensors").touch()
    folders = {"output_dir": "out", "docs": "docs", "teachers": "teachers"}
    return parse([word for name, folder in folders.items() for word in (f"--{name}", str(tmp_path / folder))])


def hash_of(row: str, seed: int, args: argparse.Namespace) -> str:
    return run_folder(row, seed, args).name.partition("-")[2]


def words(args: argparse.Namespace, *more: str) -> list[str]:
    """The command line that `args` was parsed from, and more options."""
    return [*more, *(f"--{name}={getattr(args, name)}" for name in ("output_dir", "docs", "teachers"))]


# ---------------------------------------------------------------------------------------------------------------- rows
@pytest.mark.parametrize("row", ROWS)
def test_rows_change_options_of_vlkd_train(row, tmp_path):
    flags = [f"--{key}={as_text(value)}" for key, value in ROWS[row].items()]
    parsed = CommandParser(ARGUMENTS).parse_args(["--config", str(RECIPE), f"--output_dir={tmp_path}", *flags])
    found = {key: value for part in read_arguments(parsed) for key, value in vars(part).items()}
    assert {key: found[key] for key in ROWS[row]} == ROWS[row]


def test_every_row_differs_from_the_recipe_and_from_the_others():
    options = [json.dumps(options_of(row), sort_keys=True) for row in ROWS]
    assert len(set(options)) == len(ROWS) == 1 + sum(map(len, QUESTIONS.values()))


def test_amounts_of_data_are_1_and_10_percent_of_the_recipes():
    whole = options_of(BASE)["dataset_kwargs"]
    for row, size in (("images-50", whole["size"] / 100), ("images-500", whole["size"] / 10)):
        assert options_of(row)["dataset_kwargs"] == whole | {"size": size}


def test_random_bart_has_the_teachers_shape_and_weights_by_seed(tmp_path, bart_dir):
    folders = [save_random_bart(bart_dir, tmp_path / str(n), seed) for n, seed in enumerate((1, 1, 2))]
    first, again, other, bart = (
        BartForConditionalGeneration.from_pretrained(folder).model.encoder.layers[0].fc1.weight
        for folder in (*folders, bart_dir)
    )
    assert first.equal(again) and first.shape == bart.shape
    assert not first.equal(other) and not first.equal(bart)
    assert (tmp_path / "0" / "tokenizer.json").read_text() == Path(bart_dir, "tokenizer.json").read_text()


# ---------------------------------------------------------------------------------------------------------------- runs
def figures(values: dict[str, float], suffix: str = "") -> list[dict]:
    """The figures of a metrics.json from which the report reads these values; 0.5 for all other measures."""
    return [
        {
            "metric": m,
            "row": r,
            "condition": f"{c}{suffix}",
            "value": values.get(name, 0.5),
            "n": 10,
            "low": 0,
            "high": 1,
        }
        for name, found in MEASURES.items()
        for m, r, c in found
    ]


class FakeVLKD:
    """Replaces `call`: writes the files that `vlkd` would write, and fails for the runs in `failing`."""

    def __init__(self, failing: Sequence[str] = ()):
        self.failing, self.commands = failing, []

    def __call__(self, log: Path, stop: threading.Event, *command) -> None:
        self.commands.append([*map(str, command)])
        options = dict(word.partition("=")[::2] for word in self.commands[-1])
        options |= dict(zip(self.commands[-1], self.commands[-1][1:], strict=False))
        if f"{log.parent.parent.name} {log.parent.name.partition('-')[0]}" in self.failing:
            raise RuntimeError(f"vlkd failed; see {log}")
        folder = Path(options["--output_dir"])
        folder.mkdir(parents=True)
        if command[0] == "evaluate":
            part = figures({})[-1:] if "text" in folder.name else figures({})[:-1]
            common = {"schema": 1, "command": "x", "commit": "abc", "dataset": "x", "split": options["--split"]}
            common |= {"versions": {}, "machine": {"cores": 2, "threads": 1}}
            (folder / "metrics.json").write_text(json.dumps(common | {"figures": part}))


def test_only_unfinished_runs_start_and_a_failure_stops_no_other(args, monkeypatch, capsys):
    vlkd = FakeVLKD(failing=["pooled-token 1"])
    monkeypatch.setattr(run_module, "call", vlkd)
    jobs = [("recipe", 1), ("pooled-token", 1), ("recipe", 2)]
    assert run_jobs(jobs[:1], args) == []
    assert [command[0] for command in vlkd.commands] == ["train", *["evaluate"] * 4]  # both splits, image and text
    assert run_jobs(jobs, args) == [("pooled-token", 1)]
    assert f"{run_folder('pooled-token', 1, args)}/log.txt" in capsys.readouterr().err
    assert len(vlkd.commands) == 5 + 1 + 5
    vlkd.failing = []
    assert run_jobs(jobs, args) == []
    assert len(vlkd.commands) == 11 + 3  # validation only
    assert run_jobs(jobs, args) == [] and len(vlkd.commands) == 14
    conditions = {figure["condition"] for figure in finished("pooled-token", 1, args)["figures"]}
    assert conditions == {"direct, validation", "blind, validation", "model, validation"}
    assert "direct, test" in {figure["condition"] for figure in finished("recipe", 1, args)["figures"]}
    assert not [folder for folder in args.output_dir.glob("*/*/model")]


def test_a_run_gets_its_own_options_and_shares_the_feature_cache(args, monkeypatch):
    vlkd = FakeVLKD()
    monkeypatch.setattr(run_module, "call", vlkd)
    monkeypatch.setattr(run_module, "save_random_bart", lambda bart, folder, seed: folder)
    args.steps, args.scenes = 7, 150
    run_jobs([("random-bart", 2)], args)
    folder, (train, exam, text) = run_folder("random-bart", 2, args), vlkd.commands
    assert train == [
        *("train", "--config", str(RECIPE), f"--bart={folder / 'bart'}", f"--clip={args.teachers / 'clip'}"),
        *("--seed=2", f"--output_dir={folder / 'model'}", f"--cache_dir={args.output_dir / 'cache'}", "--max_steps=7"),
    ]
    assert exam[exam.index("--clip") + 1] == str(args.teachers / "clip")
    assert text[text.index("--reference_model") + 1] == str(folder / "bart")
    assert text[text.index("--limit") + 1] == "600"
    tasks = {task.name: task.dataset_kwargs for task in load_task(exam[exam.index("--task") + 1])}
    assert tasks == dict.fromkeys(PARTS, {"size": 150, "seed": 2}) | {
        "microworld-knowledge": {"knowledge": True, "size": 150, "seed": 2}
    }


def test_a_result_depends_on_its_settings(args, monkeypatch, tmp_path):
    monkeypatch.setattr(run_module, "call", FakeVLKD())
    run_jobs([("recipe", 1)], args)
    assert finished("recipe", 1, args) and not finished("recipe", 2, args)
    hashes = {hash_of("recipe", 1, args)}
    for changes in ({"steps": 3}, {"scenes": 400}, {"weights": ["a", "b"]}):
        hashes.add(hash_of("recipe", 1, argparse.Namespace(**vars(args) | changes)))
    assert len(hashes | {hash_of("recipe", 2, args), hash_of("frozen-bart", 1, args)}) == 6

    recipe = tmp_path / "train.yaml"
    monkeypatch.setattr(rows_module, "RECIPE", recipe)
    recipe.write_text(RECIPE.read_text() + "# a comment\n")
    assert finished("recipe", 1, args)
    file = run_folder("recipe", 1, args) / "metrics.json"
    file.write_text('{"schema": 1, "fig')
    assert not finished("recipe", 1, args)
    recipe.write_text(RECIPE.read_text() + "max_grad_norm: 0.5\n")
    assert file.parent != run_folder("recipe", 1, args)


def test_results_of_other_settings_are_kept(args, monkeypatch):
    vlkd = FakeVLKD()
    monkeypatch.setattr(run_module, "call", vlkd)
    for number, options in enumerate(([], ["--steps=2"], ["--scenes=150"]), 1):
        assert main(words(args, "--seeds=2", *options, "--rows", "recipe")) == 0
        assert len(list(args.output_dir.glob("recipe/*/metrics.json"))) == 2 * number
    before = len(vlkd.commands)
    assert main(words(args, "--seeds=2", "--rows", "recipe")) == 0 and len(vlkd.commands) == before


def test_two_studies_do_not_share_a_folder(args, monkeypatch, capsys):
    monkeypatch.setattr(run_module, "call", FakeVLKD())
    args.output_dir.mkdir()
    with FileLock(args.output_dir / ".lock"):
        assert main(words(args, "--seeds=2", "--rows", "recipe")) == 2
    assert f"Another study uses {args.output_dir}" in capsys.readouterr().err
    assert not list(args.output_dir.glob("recipe/*"))


def test_steps_omit_rows_with_steps_of_their_own(args, monkeypatch):
    monkeypatch.setattr(run_module, "call", FakeVLKD())
    assert main(words(args, "--seeds=2", "--steps=5", "--rows", "recipe", "steps-2400", "paper")) == 0
    assert sorted(folder.name for folder in args.output_dir.glob("*/")) == ["paper", "recipe"]
    command = json.loads((args.docs / "study.json").read_text())["command"]
    expected = f"python -m microworld.study --seeds 2 --scenes 300 --steps 5 --teachers {args.teachers}"
    assert command == expected


def test_stop_ends_the_process(tmp_path):
    stop = threading.Event()
    stop.set()
    with pytest.raises(RuntimeError, match="exit code -15; see .*log.txt"):
        call(tmp_path / "log.txt", stop, "train", "--help")
    assert (tmp_path / "log.txt").read_text().startswith("vlkd train --help")


def test_sigterm_stops_all_runs_as_ctrl_c_does(args, monkeypatch, capsys):
    stopped, before = [], signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(run_module, "call", lambda log, stop, *words: stopped.append(stop.wait(60)))
    main_thread = threading.main_thread().ident
    threading.Timer(1, signal.pthread_kill, [main_thread, signal.SIGTERM]).start()
    assert main(words(args, "--workers=2", "--seeds=2", "--rows", "recipe")) == 130
    signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err.endswith("study: stopped; the same command continues.\n")
    assert stopped and all(stopped)


def test_exit_codes(args, monkeypatch, capsys):
    assert main(words(args, "--seeds=1")) == 2 and "--seeds is 1; it must be 2 or more" in capsys.readouterr().err
    assert main(words(args, "--scenes=99")) == 2 and "must be 100 or more" in capsys.readouterr().err
    assert main(words(args, "--report")) == 2 and "needs two finished runs of recipe" in capsys.readouterr().err
    (args.teachers / "bart" / "model.safetensors").unlink()
    assert main(words(args)) == 2 and f"--teachers {args.teachers} must have" in capsys.readouterr().err
    (args.teachers / "bart" / "model.safetensors").touch()
    with pytest.raises(SystemExit, match="2"):
        main(["--rows", "nothing"])
    monkeypatch.setattr(run_module, "call", FakeVLKD(failing=["recipe 1"]))
    assert main(words(args, "--rows", "paper")) == 2 and "No report: " in capsys.readouterr().err
    assert main(words(args, "--rows", "recipe")) == 1


# -------------------------------------------------------------------------------------------------------------- report
def test_estimate_by_hand():
    # Standard deviation 0.02, t(0.975, 2) = 4.302653: 4.302653 * 0.02 / sqrt(3) = 0.04968.
    assert estimate([(0.70, 10), (0.72, 11), (0.74, 12)]) == (0.72, 0.0497, 33)
    # Standard deviation 0.282843, t(0.975, 1) = 12.706205: 12.706205 * 0.282843 / sqrt(2) = 2.54124.
    assert estimate([(0.2, 1), (0.6, 1)]) == (0.4, 2.5412, 2)


def run_with(values: dict[str, float]) -> dict:
    return {"figures": figures(values, ", validation") + figures({"VQA": 0.9}, ", test")}


def test_differences_are_paired_by_seed():
    # The rows' own values vary by 0.2 between the seeds, their differences by 0.02.
    base = {1: run_with({"VQA": 0.3}), 2: run_with({"VQA": 0.5}), 3: run_with({"VQA": 0.7})}
    row = {1: run_with({"VQA": 0.38}), 3: run_with({"VQA": 0.8})}
    found = estimates({"recipe": base, "frozen-bart": row})
    assert found["difference", "VQA", "frozen-bart"] == (0.09, 0.1271, 20)  # 12.706205 * 0.014142 / sqrt(2)
    assert found["validation", "VQA", "recipe"] == (0.5, 0.4968, 30) and found["test", "VQA", "recipe"] == (0.9, 0, 30)


def test_retrieval_is_the_mean_of_both_ways():
    run = run_with({})
    for figure in run["figures"]:
        if figure["metric"].startswith("retrieval"):
            figure["value"] = {"text to image": 0.9, "image to text": 0.7}[figure["row"]]
    assert estimates({"recipe": {1: run, 2: run}})["validation", "retrieval", "recipe"] == (0.8, 0, 20)


def write_result(args: argparse.Namespace, row: str, seed: int, **values: float) -> None:
    folder = run_folder(row, seed, args)
    folder.mkdir(parents=True)
    metrics = {"schema": 1, "command": "x", "commit": "abc1234", "dataset": "microworld", "split": "validation"}
    metrics |= {"versions": {"torch": "2.13.0"}, "machine": {"cores": 2, "threads": 1}}
    metrics |= {"seconds": {"train": 200.0, "evaluate": 100.0}}
    (folder / "metrics.json").write_text(json.dumps(metrics | run_with(values)))


def test_report_of_all_rows(args):
    for row in ROWS:
        for seed in (1, 2, 3):
            loss = 0.3 if row == "without-icti" else 0
            write_result(args, row, seed, VQA=0.70 + 0.02 * seed - loss, **{"text QA change": -0.01})
    args.docs.mkdir()
    page = args.docs / "study.md"
    page.write_text("# Old\n\nold table\n")
    (args.docs / "study_findings.md").write_text("ICTI carries the answers.\n")
    assert main(words(args, "--report")) == 0
    text = page.read_text()
    assert "## What we learned\n\nICTI carries the answers.\n\n## The recipe" in text
    assert "old table" not in text and all(f"## {question}" in text for question in QUESTIONS)
    assert "| VQA | 0.740 ± 0.050 | 30 | 0.900 ± 0.000 | 30 |" in text
    (line,) = [line for line in text.splitlines() if line.startswith("| without-icti")]
    cells = line.split(" | ")
    assert cells[0] == "| without-icti<br>`{icti_weight: 0.0}`"
    assert cells[1] == "0.440 ± 0.050<br>**−0.300 ± 0.000**"
    assert cells[8] == "−0.010 ± 0.000<br>+0.000 ± 0.000" and cells[9] == "200<br> |"
    command = f"python -m microworld.study --seeds 3 --scenes 300 --teachers {args.teachers}"
    assert f"Measured with `{command}` on commit `abc1234`; 200 s to train and 100 s" in text
    assert "fewer than" not in text
    with Image.open(args.docs / "study.png") as picture:
        assert picture.width == 1650 and "](study.png)" in text
    found = json.loads((args.docs / "study.json").read_text())
    figure = {"split": "difference", "measure": "VQA", "row": "without-icti", "value": -0.3, "margin": 0.0, "n": 30}
    assert figure in found["figures"] and found["rows"]["lr-5e-5"] == {
        "changes": {"learning_rate": 5e-5},
        "seeds": [1, 2, 3],
    }

    (args.docs / "study_findings.md").unlink()
    assert main(words(args, "--report")) == 0 and "What we learned" not in page.read_text()


def test_report_names_a_missing_figure(args, capsys):
    for seed in (1, 2):
        write_result(args, "recipe", seed)
    file = run_folder("recipe", 2, args) / "metrics.json"
    file.write_text(file.read_text().replace("text QA", "text"))
    assert main(words(args, "--report")) == 2
    assert f"{file} lacks ('text QA', 'exact match, change', 'model, validation')" in capsys.readouterr().err


def test_report_of_an_unfinished_study(args):
    for row, seed in (("recipe", 1), ("recipe", 2), ("pooled-token", 1), ("pooled-token", 2), ("images-50", 1)):
        write_result(args, row, seed)
    assert main(words(args, "--report")) == 0
    text = (args.docs / "study.md").read_text()
    assert "## What must the decoder see?" in text and "## How much data is needed?" not in text
    assert "Rows with fewer than 3 seeds: recipe (2), without-ttdm (0)" in text
    assert (args.docs / "study.png").is_file()


# ------------------------------------------------------------------------------------------------------- a real study
@pytest.mark.slow
def test_two_rows_from_training_to_report(tmp_path, monkeypatch):
    recipe = tmp_path / "train.yaml"
    recipe.write_text(RECIPE.read_text().replace("size: 5000", "size: 64"))
    for module in (rows_module, run_module):
        monkeypatch.setattr(module, "RECIPE", recipe)
    options = ["--rows", "recipe", "random-bart", "--seeds=2", "--steps=2", "--scenes=100", "--workers=2"]
    options += [f"--output_dir={tmp_path / 'out'}", f"--docs={tmp_path / 'docs'}", f"--teachers={TEACHERS}"]
    assert main(options) == 0
    found = json.loads((tmp_path / "docs" / "study.json").read_text())
    values = {(figure["split"], figure["measure"], figure["row"]): figure for figure in found["figures"]}
    assert values["test", "captions", "recipe"]["n"] == values["validation", "retrieval", "random-bart"]["n"] == 200
    assert values["difference", "VQA", "random-bart"]["value"] < 0
    assert abs(values["validation", "text QA change", "recipe"]["value"]) < 0.05
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*/*/metrics.json")}
    assert len(times) == 4 and main(options) == 0
    assert times == {file: file.stat().st_mtime_ns for file in times}
