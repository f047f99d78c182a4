"""No function is longer than 60 lines, no module longer than 450; tests and the microworld are exempt."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(file for name in ("modeling_vlkd", "trainer", "vlkd") for file in (ROOT / name).rglob("*.py"))


@pytest.mark.parametrize("module", MODULES, ids=lambda file: str(file.relative_to(ROOT)))
def test_size(module):
    source = module.read_text(encoding="utf-8")
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    lengths = {node.name: node.end_lineno - node.lineno + 1 for node in functions}
    assert not {name: length for name, length in lengths.items() if length > 60}
    assert len(source.splitlines()) <= 450
