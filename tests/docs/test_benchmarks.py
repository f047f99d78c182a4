"""Every benchmark runs with small settings, and writes its report between the marks of the page."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from microworld.world.kinds import KINDS
from microworld.world.scenes import BACKGROUNDS, Group, Scene

ROOT = Path(__file__).parents[2]
PHOTOGRAPHS = ["--workers", "0", "--batch", "4"]
TINY = {
    "throughput.py": ["--models", "microworld", "--steps", "1", "--size", "96", "72", *PHOTOGRAPHS],
    "data_loading.py": ["--model", "microworld", "--images", "8", "--sizes", "96x72", *PHOTOGRAPHS],
    "processes.py": ["--batch", "8", "--steps", "1"],
    "contrastive_batch.py": ["--batches", "8", "16/4"],
    "captioning.py": ["--models", "GIT-base", "CLIP and BART composed by hand", "--batches", "1", "--rounds", "1"],
    "inference.py": ["--photos", "4", "--size", "96", "72", "--backends", "torch"],
    "serving.py": ["--photos", "6", "--size", "96", "72", "--clients", "3", "--max_batches", "1", "16"],
    "ideal_tokens.py": ["--images", "32", "--steps", "1", "--scenes", "10", "--seeds", "2"],
}
ROWS = {
    "throughput.py": [("live", "microworld"), ("cached", "microworld")],
    "data_loading.py": [("plain PIL loop", "96 × 72"), ("VLKD, 0 workers", "96 × 72")],
    "processes.py": [(1, 8), (2, 4)],
    "contrastive_batch.py": [(8, None), (16, 4)],
    "captioning.py": [("GIT-base", 177), ("CLIP and BART composed by hand", 225)],
    "inference.py": [(4, "`vlkd caption`, 4 photos, torch"), (4,), (4,), (1,)],
    "serving.py": [(1, 3), (16, 3)],
    "ideal_tokens.py": [("microworld's CLIP",), ("ideal",)],
}


def test_none_is_left_out():
    scripts = {path.name for path in (ROOT / "benchmarks").glob("*.py")} - {"measure.py", "gpu.py"}
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert scripts == TINY.keys() and "python benchmarks/throughput.py" in page


@pytest.mark.slow
@pytest.mark.parametrize("script", TINY)
def test_benchmark_runs(script, tmp_path, micro_dir):
    page = tmp_path / "page.md"
    name = script.removesuffix(".py").replace("_", "-")
    page.write_text(f"before\n<!-- figures: {name} -->\n<!-- /figures -->\nafter\n")
    model = ["--model", str(micro_dir)] if script in ("inference.py", "serving.py") else []
    command = [sys.executable, str(ROOT / "benchmarks" / script), *TINY[script], *model, "--into", str(page)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-3000:]
    *table, line = run.stdout.rstrip().splitlines()
    found = json.loads(line)
    assert found["benchmark"] == name and str(page) not in found["command"]
    rows = found["rows"]
    assert len(rows) == len(ROWS[script])
    for row, expected in zip(rows, ROWS[script], strict=True):
        assert set(expected) <= set(row.values())
    if script == "ideal_tokens.py":
        shares = [float(cell.split(" ± ")[0]) for row in rows for cell in list(row.values())[1:]]
        assert len(shares) == 2 * 4 and all(0 <= share <= 1 for share in shares)
    else:
        speeds = [value for row in rows for key, value in row.items() if "/s" in key and value is not None]
        assert len(speeds) >= 2 and all(0 < speed < 1e6 for speed in speeds)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "\n".join(table).strip() in text
    assert text.count("\n| ") == len(rows) + 2


@pytest.mark.slow
def test_gpu_benchmark_on_a_cpu(tmp_path):
    page = tmp_path / "page.md"
    names = ("captioning-gpu", "throughput-gpu")
    page.write_text("".join(f"<!-- figures: {name} -->\n<!-- /figures -->\n" for name in names))
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--small", "--into", str(page)]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert run.returncode == 0, run.stderr[-3000:]
    captions, training = page.read_text().split("<!-- /figures -->")[:2]
    assert "| VLKD ViT-B/16 + BART-base |" in captions and "| microworld | cached |" in training


def test_flops_of_live_and_cached_differ_by_the_vision_tower(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = runpy.run_path(str(ROOT / "benchmarks" / "throughput.py"))
    model = "vlkd-vit-base-patch16-bart-base"
    options = {**script["recipe"](model), "report_to": "none", "use_cpu": True, "bf16": False}
    live, cached = (script["flops_per_sample"](options, model, kind) for kind in (False, True))
    # 12 layers of four maps and an MLP on 197 tokens, attention; 196 patches of 768 pixels; the projection
    assert live - cached == 12 * (2 * 197 * 12 * 768**2 + 4 * 197**2 * 768) + 2 * 196 * 768**2 + 2 * 197 * 768 * 512


def test_ideal_tokens_tell_what_each_patch_shows(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = runpy.run_path(str(ROOT / "benchmarks" / "ideal_tokens.py"))
    penguin = Group(kind="penguin", artist="twemoji", size="small", count=2, turned=False, x=72, y=24)
    tokens = script["ideal_patches"](Scene((penguin,), "snow"), 1 + 9 * 9, 256)
    # The two drawings of 26 pixels have their centers at x = 72 ± 0.54 * 26 = 58 and 86, and y = 24. They cover the
    # patches whose centers are less than 26 / 2 + 2 = 15 pixels away: x = 56, 72 and 88, y = 24.
    kind, size, count = tokens[:, :60], tokens[:, 60:62], tokens[:, 62:65]
    shown = (kind[:, KINDS.index("penguin")] == 1).reshape(9, 9)
    assert shown.nonzero().tolist() == [[1, 3], [1, 4], [1, 5]] and kind.sum() == 3
    assert size[shown.flatten()].tolist() == [[1, 0]] * 3 and count[shown.flatten()].tolist() == [[0, 1, 0]] * 3
    assert tokens[:, 65 + BACKGROUNDS.index("snow")].tolist() == [1] * 81 and tokens[:, 65:73].sum() == 81
    clip = torch.randn(1, 82, 256, generator=torch.Generator().manual_seed(0))
    ideal = script["with_ideal_patches"](clip, [Scene((penguin,), "snow")])
    assert torch.equal(ideal[:, 0], clip[:, 0])
    torch.testing.assert_close(ideal[:, 1:].square().sum(), clip[:, 1:].square().sum())
