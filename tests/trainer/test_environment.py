"""Environment variables that the commands set before torch and tqdm are imported, tested in a subprocess."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SET = "import os, sys; from trainer.environment import set_defaults; set_defaults(); "
NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "TQDM_MININTERVAL", "TQDM_DELAY")


def clean(**changes: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in NAMES} | changes


@pytest.mark.parametrize("code", ["from trainer.cli import main; main([]); import torch", "import microworld, torch"])
def test_it_is_set_before_torch_is_imported(code):
    """With `OMP_DISPLAY_ENV`, libgomp prints its settings when it is loaded."""
    environment = clean(OMP_DISPLAY_ENV="verbose")
    ran = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    if "GOMP_SPINCOUNT" not in ran.stderr:
        pytest.skip("torch has no GNU OpenMP here")
    assert "GOMP_SPINCOUNT = '6000'" in ran.stderr


def test_the_users_own_values_stay():
    code = (
        "import os; from trainer.environment import set_defaults; set_defaults(); print(*map(os.environ.get, "
        + repr(NAMES)
        + "))"
    )
    environment = clean(OMP_WAIT_POLICY="active", TQDM_DELAY="1", TQDM_MININTERVAL="2")
    ran = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert ran.stdout.split() == ["active", "None", "2", "1"]


@pytest.mark.parametrize(("is_terminal", "expected"), [(False, "5 5"), (True, "None None")])
def test_progress_bars_in_a_file_are_updated_every_few_seconds(is_terminal, expected):
    code = f"import sys; sys.stderr.isatty = lambda: {is_terminal}; {SET}"
    code += f"print(*map(os.environ.get, {NAMES[2:]!r}))"
    ran = subprocess.run([sys.executable, "-c", code], env=clean(), cwd=ROOT, capture_output=True, text=True)
    assert ran.stdout.strip() == expected, ran.stderr
