"""
transformers' own common tests, run on our classes by `make test-slow`.

The tests come from the sdist of the installed transformers, which pip fetches once into pytest's cache.
"""

import importlib.util
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import transformers

PACKAGE = "transformers_tests"
FROM_THE_SDIST = ("test_modeling_common.py", "test_processing_common.py", "test_configuration_common.py")
# What those three import and the sdist leaves out. `config_common_kwargs` serves a check that composite configs, as
# ours is, are exempt from; the two mixins are skipped by name in our tests.
LEFT_OUT = {
    f"{PACKAGE}/__init__.py": "",
    f"{PACKAGE}/exporters/__init__.py": "",
    f"{PACKAGE}/exporters/test_export.py": "class ExportTesterMixin: pass",
    f"{PACKAGE}/generation/__init__.py": "",
    f"{PACKAGE}/generation/test_utils.py": "class GenerationTesterMixin: pass",
    f"{PACKAGE}/utils/__init__.py": "",
    f"{PACKAGE}/utils/test_configuration_utils.py": "config_common_kwargs = {}",
    "fetch_hub_objects_for_ci.py": "def url_to_local_path(url): return url",
}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The modules of this folder import the fetched tests: without the slow tests nothing is fetched."""
    expression = config.option.markexpr
    if "slow" not in expression or "not slow" in expression:
        return True
    os.environ.setdefault("RUN_SLOW", "yes")  # transformers' own mark, read when the fetched tests are imported
    if importlib.util.find_spec(PACKAGE) is None:
        sys.path.append(str(fetched_tests(config.cache.mkdir(f"transformers-{transformers.__version__}"))))
    return None


def fetched_tests(folder: Path) -> Path:
    """
    The folder that holds the package `transformers_tests`.

    Raises:
        pytest.UsageError: pip cannot fetch the sdist.
    """
    if (folder / PACKAGE / FROM_THE_SDIST[-1]).is_file():
        return folder
    requirement = f"transformers=={transformers.__version__}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--dest", str(folder)]
    run = subprocess.run([*command, requirement], capture_output=True, text=True)
    if run.returncode:
        raise pytest.UsageError(
            f"pip could not fetch the sdist of {requirement}, which holds transformers' common tests:\n{run.stderr}\n"
            "They need a package registry; `--ignore tests/transformers_common` runs the other slow tests."
        )
    for name, code in LEFT_OUT.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(code + "\n")
    with tarfile.open(next(folder.glob("transformers-*.tar.gz"))) as sdist:
        for member in sdist.getmembers():
            if Path(member.name).name in FROM_THE_SDIST:
                (folder / PACKAGE / Path(member.name).name).write_bytes(sdist.extractfile(member).read())
    return folder
