"""Rules for the code that ruff does not check: sizes, and no copies. Tests and the microworld are exempt."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(file for name in ("modeling_vlkd", "trainer", "vlkd") for file in (ROOT / name).rglob("*.py"))
SAME = 6  # lines


@pytest.mark.parametrize("module", MODULES, ids=lambda file: str(file.relative_to(ROOT)))
def test_sizes(module):
    """No function is longer than 60 lines, no module longer than 450."""
    source = module.read_text(encoding="utf-8")
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    lengths = {node.name: node.end_lineno - node.lineno + 1 for node in functions}
    assert not {name: length for name, length in lengths.items() if length > 60}
    assert len(source.splitlines()) <= 450


def code_lines(module: Path) -> list[str]:
    """The lines of a module without imports, signatures, comments and blank lines."""
    source = module.read_text(encoding="utf-8")
    left_out = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            left_out |= {*range(node.lineno, node.end_lineno + 1)}
        elif isinstance(node, ast.FunctionDef):
            left_out |= {*range(node.lineno, node.body[0].lineno)}
    lines = [line.strip() for number, line in enumerate(source.splitlines(), 1) if number not in left_out]
    return [line for line in lines if line and not line.startswith("#")]


def test_no_six_lines_are_copied():
    places = {}
    for module in MODULES:
        lines = code_lines(module)
        for start in range(len(lines) - SAME + 1):
            places.setdefault(tuple(lines[start : start + SAME]), []).append(str(module.relative_to(ROOT)))
    assert not {" and ".join(found): block[0] for block, found in places.items() if len(found) > 1}
