"""Environment variables that the commands set before torch and tqdm are imported, tested in a subprocess."""

import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "TQDM_MININTERVAL", "TQDM_DELAY")
BAR = """
import time
from trainer import environment
from tqdm.auto import tqdm
for _ in tqdm(range(60), desc="slow"):
    time.sleep(0.05)
for _ in tqdm(range(60), desc="quick"):
    pass
"""


def clean(**changes: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in NAMES} | changes


@pytest.mark.parametrize("code", ["import trainer.cli, torch", "import microworld, torch"])
def test_it_is_set_before_torch_is_imported(code):
    """With `OMP_DISPLAY_ENV`, libgomp prints its settings when it is loaded."""
    environment = clean(OMP_DISPLAY_ENV="verbose")
    ran = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    if "GOMP_SPINCOUNT" not in ran.stderr:
        pytest.skip("torch has no GNU OpenMP here")
    assert "GOMP_SPINCOUNT = '6000'" in ran.stderr


def test_the_users_own_values_stay():
    code = "import os; from trainer import environment; print(*map(os.environ.get, " + repr(NAMES) + "))"
    environment = clean(OMP_WAIT_POLICY="active", TQDM_DELAY="1", TQDM_MININTERVAL="2")
    ran = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert ran.stdout.split() == ["active", "None", "2", "1"]


def test_importing_the_library_sets_nothing():
    code = "import os; from trainer import VLKDTrainer; print([n in os.environ for n in " + repr(NAMES) + "])"
    ran = subprocess.run([sys.executable, "-c", code], env=clean(), cwd=ROOT, capture_output=True, text=True)
    assert ran.stdout.strip() == "[False, False, False, False]", ran.stderr


def updates(stderr: bytes) -> list[str]:
    return [part for part in stderr.decode().split("\r") if part.strip()]


def test_bars_in_a_file_are_updated_every_few_seconds(tmp_path):
    """With an interval of 1 s, a bar of 3 s shows 2 or 3 updates and the end, and a short bar shows nothing."""
    environment = clean(TQDM_MININTERVAL="1", TQDM_DELAY="0.5")
    with open(tmp_path / "log", "wb") as log:
        subprocess.run([sys.executable, "-c", BAR], env=environment, cwd=ROOT, stderr=log, check=True)
    shown = updates((tmp_path / "log").read_bytes())
    assert 3 <= len(shown) <= 4 and "60/60" in shown[-1] and all("slow" in update for update in shown)
    with open(tmp_path / "log", "wb") as log:  # the default hides bars shorter than 5 s
        subprocess.run([sys.executable, "-c", BAR], env=clean(), cwd=ROOT, stderr=log, check=True)
    assert updates((tmp_path / "log").read_bytes()) == []


def test_a_terminal_sees_every_update():
    main, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    ran = subprocess.Popen([sys.executable, "-c", BAR], env=clean(), cwd=ROOT, stderr=terminal)
    os.close(terminal)
    shown = b""
    try:
        while part := os.read(main, 10_000):
            shown += part
    except OSError:  # Linux's way to say that the other end is closed
        pass
    os.close(main)
    assert ran.wait() == 0 and len(updates(shown)) > 15
