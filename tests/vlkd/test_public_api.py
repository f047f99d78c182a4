"""`import vlkd`: what it exports, when it imports it, and what it says of a missing extra."""

import ast
import operator
import subprocess
import sys
from pathlib import Path

import pytest

import modeling_vlkd
import trainer
import vlkd
from trainer.extras import OPTIONAL

ROOT = Path(__file__).parents[2]


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


def test_every_public_name_is_exported():
    assert {*modeling_vlkd.__all__, *trainer.__all__, "__version__"} == set(vlkd.__all__) <= set(dir(vlkd))
    assert vlkd.VLKDTrainer is trainer.VLKDTrainer and vlkd.VLKDModel is modeling_vlkd.VLKDModel
    with pytest.raises(AttributeError, match="VLKDTainer"):
        operator.attrgetter("VLKDTainer")(vlkd)


def test_type_checkers_see_every_name():
    tree = ast.parse(Path(vlkd.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    assert {alias.name for line in block.body for alias in line.names} == {*vlkd.__all__} - {"__version__"}


def test_a_class_registers_the_auto_classes():
    code = "from vlkd import VLKDConfig; from transformers import AutoConfig; AutoConfig.for_model('vlkd')"
    assert python(code).returncode == 0


@pytest.mark.parametrize(("name", "is_missing"), [("VLKDTrainer", True), ("VLKDModel", False)])
def test_a_missing_extra_is_named(name, is_missing):
    ran = python(f"import sys; sys.modules |= dict.fromkeys({sorted(OPTIONAL)})\nfrom vlkd import {name}")
    message = f"ImportError: {name} needs "
    assert (ran.returncode, message in ran.stderr) == (int(is_missing), is_missing), ran.stderr
    assert not is_missing or ran.stderr.endswith('pip install "vlkd[train]"\n')
