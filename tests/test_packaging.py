"""What a checkout needs of the machine: no symbolic links, any Python from 3.11 on."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_no_file_that_is_read_is_a_symbolic_link():
    """Windows checks links out as text files that hold their target. The card at the top is for people on GitHub."""
    listed = subprocess.run(["git", "ls-files", "-s"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    lines = listed.stdout.splitlines()
    assert [line.split("\t")[1] for line in lines if line.startswith("120000")] == ["model_card.md"]
    assert stat.S_ISREG(os.lstat(ROOT / "modeling_vlkd" / "model_card.md").st_mode)


def chosen_python(folder: Path, versions: dict[str, str]) -> subprocess.CompletedProcess:
    """What `make` says of its Python where the commands in `versions` exist and report these versions."""
    for name, version in versions.items():
        minor = version.split(".")[1]
        enough, found = int(int(minor) < 11), f"{name} is {version}"
        script = f'#!/bin/sh\ncase "$2" in *exit*) exit {enough};; *) echo "{found}";; esac\n'
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    for name in ("setup.py", "constraints.txt"):
        (folder / name).touch()
    for name in ("make", "sh"):
        (folder / name).symlink_to(shutil.which(name))
    return subprocess.run(
        ["make", "-n", "-f", str(ROOT / "Makefile"), ".venv/.ready"],
        env={"PATH": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("versions", "chosen"),
    [
        ({"python3.11": "3.11", "python3": "3.9"}, "python3.11"),
        ({"python3.13": "3.13", "python3": "3.10"}, "python3.13"),
        ({"python3": "3.14"}, "python3"),
        ({"python": "3.12"}, "python"),
    ],
)
def test_make_finds_a_python(tmp_path, versions, chosen):
    made = chosen_python(tmp_path, versions)
    assert made.stdout.startswith(f"{chosen} -m venv .venv\n"), made.stderr


@pytest.mark.parametrize("versions", [{"python3": "3.10"}, {}])
def test_make_without_a_python_says_what_it_found(tmp_path, versions):
    made = chosen_python(tmp_path, versions)
    found = "python3 is 3.10" if versions else "no Python was found"
    assert made.returncode and "Python 3.11 or later is needed" in made.stderr and found in made.stderr
