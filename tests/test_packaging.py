"""The wheel and its dependencies, and what a checkout needs: no symbolic links, any Python from 3.11 on."""

import os
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, PathDistribution, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import vlkd
from trainer.extras import OPTIONAL

ROOT = Path(__file__).parents[1]
PARTS = ("setup.py", "pyproject.toml", "README.md", "LICENSE")
PACKAGES = ("vlkd", "modeling_vlkd", "trainer", "microworld", "hub_configs")
RECIPES = {folder.name for folder in ROOT.glob("hub_configs/vlkd-*")}
BASE_RECIPE = "vlkd-vit-base-patch16-bart-base"


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the content of the wheel, as pip would install it."""
    pytest.importorskip("setuptools", minversion="77")
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in PARTS:
        shutil.copy(ROOT / name, source)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(source)]
    subprocess.run([*command, str(source)], check=True, capture_output=True)
    (wheel,) = source.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def run(installed: Path, code: str, *argv: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(installed)}
    return subprocess.run(
        [sys.executable, "-c", code, *argv], cwd=installed.parent, env=environment, capture_output=True, text=True
    )


def requirements(installed: Path, extra: str = "") -> set[str]:
    """The distributions that ours requires with an extra, and all that these require."""
    metadata = PathDistribution(next(installed.glob("vlkd-*.dist-info")))
    waiting, found = [*map(Requirement, metadata.requires)], set()
    while waiting:
        requirement = waiting.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": extra})):
            continue
        found.add(name)
        try:
            waiting += map(Requirement, requires(name) or ())
        except PackageNotFoundError:  # of another platform
            pass
    return found


def test_version_and_recipes_of_the_wheel(installed):
    assert (installed / f"vlkd-{vlkd.__version__}.dist-info").is_dir()
    assert {folder.name for folder in (installed / "vlkd" / "recipes").iterdir()} == RECIPES


def block_others(installed: Path, extra: str = "") -> str:
    """Code that makes the import of a module of another distribution a ModuleNotFoundError."""
    required = requirements(installed, extra)
    others = {
        module
        for module, distributions in packages_distributions().items()
        if not required & {re.sub(r"[-_.]+", "-", name).lower() for name in distributions}
    } - {*PACKAGES, "_distutils_hack", "__editable___vlkd_0_1_0_finder"}
    assert "torch" not in others and (extra or OPTIONAL & {*packages_distributions()} <= others)
    return f"import sys; sys.modules |= dict.fromkeys({sorted(others)})\n"


def test_the_wheel_has_every_file(installed):
    names = ("vlkd", "modeling_vlkd", "trainer", "microworld")
    files = [file for name in names for file in (ROOT / name).rglob("*") if file.is_file()]
    files = {str(file.relative_to(ROOT)) for file in files if "__pycache__" not in file.parts}
    missing = {name for name in files if not (installed / name).exists()}
    assert not missing - {"microworld/teachers/README.md"}


@pytest.mark.parametrize(
    ("extra", "commands"),
    [
        ("train", "train cache push estimate report"),
        ("eval", "evaluate score report"),
        ("search", "embed search"),
        ("demo", "demo"),
        ("onnx", "export"),
    ],
)
def test_an_extra_is_enough_for_its_commands(installed, extra, commands):
    """Of `train`, also with the recipes of the wheel."""
    code = block_others(installed, extra) + "from trainer.cli import main\nimport vlkd\n"
    if extra == "train":
        code += f"assert main(['estimate', '--config', '{BASE_RECIPE}', '--device_flops', '1e12']) == 0\n"
        code += "assert vlkd.VLKDTrainer and main(['train', '--config', 'vlkd-huge']) == 2\n"
    for command in commands.split():
        code += f"try: main(['{command}', '--help'])\nexcept SystemExit as ended: assert ended.code == 0\n"
    ran = run(installed, code)
    assert ran.returncode == 0 and "Install the extra" not in ran.stderr, ran.stderr
    if extra == "train":
        assert ran.stdout.startswith("openai/clip-vit-base-patch16 and facebook/bart-base")
        assert all(name in ran.stderr for name in RECIPES)


def test_base_requirements_are_enough_to_caption(installed, vlkd_dir, images, tmp_path):
    images[0].save(tmp_path / "a.png")
    ran = run(
        installed,
        block_others(installed)
        + "from trainer.cli import main; print(main(sys.argv[1:]), 'trainer.arguments' in sys.modules)",
        *("caption", str(tmp_path / "a.png"), "--model", vlkd_dir, "--max_new_tokens", "3"),
    )
    assert ran.stdout.startswith(f"{tmp_path / 'a.png'}\t") and ran.stdout.endswith("\n0 False\n"), ran.stderr


@pytest.mark.parametrize("extra", ["train", "eval"])
def test_optional_modules_are_those_of_the_extras(installed, extra):
    """`trainer.extras` knows the modules whose absence means a missing extra."""
    metadata = PathDistribution(next(installed.glob("vlkd-*.dist-info")))
    direct = [Requirement(line) for line in metadata.requires]
    names = {r.name for r in direct if r.marker and r.marker.evaluate({"extra": extra})}
    assert names and names <= OPTIONAL


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
