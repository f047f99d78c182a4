"""`import vlkd`: what it exports, when it imports it, and what it says of a missing extra."""

import ast
import operator
import os
import subprocess
import sys
from pathlib import Path

import pytest

import modeling_vlkd
import trainer
import vlkd
from trainer.extras import OPTIONAL

ROOT = Path(__file__).parents[2]


def test_every_public_name_is_exported():
    assert {*modeling_vlkd.__all__, *trainer.__all__, "__version__"} == set(vlkd.__all__) <= set(dir(vlkd))
    assert vlkd.VLKDTrainer is trainer.VLKDTrainer and vlkd.VLKDModel is modeling_vlkd.VLKDModel
    with pytest.raises(AttributeError, match="VLKDTainer"):
        operator.attrgetter("VLKDTainer")(vlkd)


def test_type_checkers_see_every_name():
    tree = ast.parse(Path(vlkd.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    assert {alias.name for line in block.body for alias in line.names} == {*vlkd.__all__} - {"__version__"}


OF_COMMANDS = ("OMP_", "GOMP_", "TQDM_")  # variables that only the commands set
LIBRARY = f"""
import os, sys
sys.modules |= dict.fromkeys({sorted(OPTIONAL)})
from vlkd import VLKDConfig
from transformers import AutoConfig
AutoConfig.for_model("vlkd")
from vlkd import VLKDModel
try:
    from vlkd import VLKDTrainer
finally:
    print([name for name in os.environ if name.startswith({OF_COMMANDS})])
"""


def test_a_process_that_uses_the_library():
    """A class registers the Auto classes, sets no environment variable, and needs no extra or names it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(OF_COMMANDS)}
    command = [sys.executable, "-c", LIBRARY]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (1, "[]\n"), ran.stderr
    *_, error = ran.stderr.splitlines()
    assert error.startswith("ImportError: VLKDTrainer needs ") and error.endswith('pip install "vlkd[train]"')
