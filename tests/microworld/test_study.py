"""The study's runs: its rows, what is done and skipped, what a failure or a stop leaves, one run of the real thing."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from transformers import BartForConditionalGeneration

from microworld.study.__main__ import list_rows, main
from microworld.study.jobs import run_jobs
from microworld.study.results import load_results
from microworld.study.rows import BY_NAME, IMAGES, RECIPES, ROWS, rows_named
from microworld.study.run import by_scene, figures, save_random_bart, train_command
from microworld.study.sections import SECTIONS
from microworld.study.settings import TEACHERS, is_done, options_of, settings_of, teachers_hash
from trainer.arguments import DataArguments, ModelArguments, VLKDTrainingArguments
from trainer.build import build_trainer
from trainer.cli.parser import CommandParser
from trainer.cli.train import ARGUMENTS

# ---- rows


def parsed(row, seed=1, folder=Path("somewhere")):
    """The options of a row as `vlkd train` reads them."""
    _, *flags = train_command(row, seed, 40, folder, Path("cache"))
    return CommandParser(ARGUMENTS).parse_args(flags)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_vlkd_train_takes_every_row(row, tmp_path):
    args = parsed(row, folder=tmp_path)
    for name in row.overrides.keys() - {"bart"}:
        read = getattr(args, name)
        assert (yaml.safe_load(read) if name == "dataset_kwargs" else read) == row.overrides[name]
    assert args.seed == 1 and args.max_steps == row.overrides.get("max_steps", 40)
    assert row.against is None or row.against in BY_NAME


def test_rows_change_what_they_say_and_nothing_else():
    base = options_of(BY_NAME["paper"], 1, 400)
    for row in ROWS:
        if row.base == "paper":
            options = options_of(row, 1, 400)
            changed = {name for name in options if options[name] != base.get(name)}
            assert changed == set(row.overrides), row.name
    assert BY_NAME["images-80"].overrides["dataset_kwargs"]["size"] == 80 == IMAGES // 100
    assert base["dataset_kwargs"]["size"] == IMAGES
    assert base["warmup_steps"] == round(50 * 400 / 1200) == 17


def test_every_row_is_in_a_section_and_compared_with_a_row_of_its_recipe():
    in_sections = {name for section in SECTIONS for name in section.rows}
    assert in_sections == set(BY_NAME)
    assert all(row.base == BY_NAME[row.against].base for row in ROWS if row.against and row.name != "ours")
    assert all(section.rows[-1] in BY_NAME and set(section.choice) <= set(section.rows) for section in SECTIONS)


def test_rows_by_name():
    assert [row.name for row in rows_named(["without-icti", "paper"])] == ["paper", "without-icti"]
    with pytest.raises(ValueError, match="there is no paperr; the rows are paper, ours"):
        rows_named(["paper", "paperr"])
    assert len(list_rows().splitlines()) == len(ROWS) and "icti_weight=0.0" in list_rows()


def test_random_bart_has_the_teachers_shape_and_a_seeds_weights(tmp_path):
    teacher = f"{TEACHERS}/bart"
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        save_random_bart(teacher, str(tmp_path / name), seed)
    a, b, c, bart = (
        BartForConditionalGeneration.from_pretrained(folder).model.shared.weight
        for folder in (tmp_path / "a", tmp_path / "b", tmp_path / "c", teacher)
    )
    assert a.shape == bart.shape and (a == b).all() and not (a == c).all() and not (a == bart).all()
    assert (tmp_path / "a" / "tokenizer.json").read_text() == Path(teacher, "tokenizer.json").read_text()


def test_the_seed_draws_the_start_of_the_maps(clip_dir, bart_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1] / "support")

    def start(seed: int):
        trainer = build_trainer(
            ModelArguments(bart=bart_dir),
            DataArguments(dataset_name="caption_data:load", dataset_kwargs={"rows": 4}, cache_dir=str(tmp_path)),
            VLKDTrainingArguments(
                str(tmp_path / "out"), clip=clip_dir, seed=seed, use_cpu=True, bf16=False, report_to="none"
            ),
        )
        return trainer.model.text_projection.weight

    first, again, other = start(1), start(1), start(2)
    assert (first == again).all() and not (first == other).all()


# ---- what is done, and what is to be done again


def test_fingerprint_changes_with_whatever_decides_the_result(tmp_path, monkeypatch):
    row = BY_NAME["paper"]
    prints = {
        settings_of(*settings)["fingerprint"]
        for settings in ((row, 1, 400, 400), (row, 2, 400, 400), (row, 1, 300, 400), (row, 1, 400, 300))
    }
    assert len(prints) == 4 and settings_of(row, 1, 400, 400)["fingerprint"] in prints
    assert settings_of(BY_NAME["mlp"], 1, 400, 400)["fingerprint"] not in prints

    recipe = tmp_path / "train.yaml"
    text = Path(RECIPES["paper"]).read_text()
    monkeypatch.setitem(RECIPES, "paper", str(recipe))
    recipe.write_text(text + "# a comment\n")
    assert settings_of(row, 1, 400, 400)["fingerprint"] in prints
    recipe.write_text(text.replace("mask_ratio: 0.5", "mask_ratio: 0.4"))
    assert settings_of(row, 1, 400, 400)["fingerprint"] not in prints
    recipe.unlink()
    with pytest.raises(ValueError, match="paper: its recipe .* cannot be read"):
        settings_of(row, 1, 400, 400)


def test_teachers_are_part_of_the_fingerprint(tmp_path):
    for name, text in (("clip/model", "a"), ("bart/model", "b")):
        path = tmp_path / name
        path.parent.mkdir()
        path.write_text(text)
    before = teachers_hash(str(tmp_path))
    assert teachers_hash(str(tmp_path)) == before
    (tmp_path / "bart" / "model").write_text("c")
    assert teachers_hash(str(tmp_path)) != before


def test_only_a_whole_result_of_the_same_settings_is_done(tmp_path):
    assert not is_done(tmp_path, "abc")
    (tmp_path / "metrics.json").write_text('{"settings": {"fingerprint": "abc"')  # broken off
    assert not is_done(tmp_path, "abc")
    (tmp_path / "metrics.json").write_text('{"settings": {"fingerprint": "abc"}}')
    assert is_done(tmp_path, "abc") and not is_done(tmp_path, "def")


def study_args(folder: Path, **changes) -> argparse.Namespace:
    return argparse.Namespace(**{"output_dir": folder, "steps": 400, "scenes": 100, "workers": 2, **changes})


def test_done_jobs_are_skipped_and_a_failed_one_stops_no_other(tmp_path, monkeypatch):
    row = BY_NAME["paper"]
    folder = tmp_path / "paper" / "1"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps({"settings": settings_of(row, 1, 400, 100)}))
    started = []

    def start(job, args):
        started.append(job)
        return subprocess.Popen([sys.executable, "-c", f"raise SystemExit({int(job[0] == 'mlp')})"])

    monkeypatch.setattr("microworld.study.jobs._start", start)
    jobs = [("paper", 1), ("mlp", 1), ("paper", 2)]
    assert run_jobs(jobs, study_args(tmp_path)) == [("mlp", 1)]
    assert started == [("mlp", 1), ("paper", 2)]


def test_failed_rows_are_named_at_the_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("microworld.study.jobs._start", lambda *job: subprocess.Popen([sys.executable, "-c", "1 / 0"]))
    assert main(["--rows", "mlp", "--seeds", "2", "--output_dir", str(tmp_path), "--docs", str(tmp_path)]) == 1
    errors = capsys.readouterr().err
    assert "study: mlp, seed 1, failed: " in errors and "study: mlp, seed 2, failed: " in errors


def test_a_stopped_study_leaves_no_process(tmp_path):
    code = (
        "import subprocess, sys, argparse; from pathlib import Path; import microworld.study.jobs as s\n"
        "def start(job, args):\n"
        "    p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'])\n"
        "    Path(sys.argv[1], str(p.pid)).touch(); return p\n"
        "s._start = start\n"
        "s.run_jobs([('paper', 1), ('mlp', 1)], argparse.Namespace(output_dir=Path(sys.argv[1]) / 'o', steps=9, "
        "scenes=100, workers=2))"
    )
    study = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.DEVNULL)
    while len(pids := list(tmp_path.iterdir())) < 2:
        assert study.poll() is None
        time.sleep(0.1)
    study.send_signal(signal.SIGTERM)
    assert study.wait(timeout=20) != 0
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid.name), 0)


def test_mistakes_are_one_line(tmp_path, capsys):
    for argv, message in (
        (["--rows", "nothing"], "there is no nothing"),
        (["--seeds", "1"], "--seeds is 1; it must be at least 2"),
        (["--scenes", "99"], "--scenes is 99; it must be at least 100"),
        (["--report", "--output_dir", str(tmp_path)], "holds no row with two seeds"),
    ):
        assert main(argv) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]


def test_counts_by_scene_and_figures():
    hits = {("VQA", "all"): [(0, True), (0, False), (2, True)]}
    assert by_scene(hits, 3) == {"VQA: all": {"asked": [2, 0, 1], "right": [1, 0, 1]}}
    (figure,) = figures(hits, "paper")
    assert figure | {"low": 0, "high": 0} == {
        "metric": "VQA", "row": "all", "condition": "paper", "value": 0.6667, "n": 3, "low": 0, "high": 0
    }  # fmt: skip


def test_stale_and_single_runs_are_left_out(tmp_path):
    for name, seed, steps in (("paper", 1, 400), ("paper", 2, 400), ("mlp", 1, 400), ("ours", 1, 9), ("ours", 2, 9)):
        folder = tmp_path / name / str(seed)
        folder.mkdir(parents=True)
        settings = settings_of(BY_NAME[name], seed, steps, 100)
        (folder / "metrics.json").write_text(json.dumps({"settings": settings, "commit": None}))
    results = load_results(tmp_path, 400, 100, 3)
    assert list(results.runs) == ["paper"] and list(results.runs["paper"]) == [1, 2]
    assert "mlp (1 of 3 seeds)" in results.missing and "ours (0 of 3 seeds)" in results.missing
    assert results.commits == ["unknown"]


# ---- the real thing


@pytest.mark.slow
def test_two_rows_from_training_to_page(tmp_path):
    options = ["--rows", "untrained", "random-bart", "--seeds", "2", "--steps", "2", "--scenes", "100"]
    where = ["--output_dir", str(tmp_path / "out"), "--docs", str(tmp_path / "docs")]
    assert main([*options, *where]) == 0
    run = json.loads((tmp_path / "out" / "random-bart" / "2" / "metrics.json").read_text())
    assert run["seed"] == 2 and run["settings"]["options"]["bart"] == "random"
    assert not any((tmp_path / "out" / "random-bart" / "2").glob("*/")) and run["train_seconds"] > 0
    found = {(f["metric"], f["row"]): f for f in run["figures"]}
    assert found["text QA", "all"]["value"] < 0.1 and found["captions", "right"]["n"] == 100
    results = load_results(tmp_path / "out", 2, 100, 2)
    untrained = results.of("untrained", "text QA: all")
    assert untrained.value > 0.9 and untrained.n == found["VQA", "all"]["n"]
    assert (tmp_path / "docs" / "study.html").is_file()

    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/*/metrics.json")}
    assert len(times) == 4 and main([*options, *where]) == 0
    assert times == {path: path.stat().st_mtime_ns for path in times}
