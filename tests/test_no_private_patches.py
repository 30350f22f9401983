"""Tests replace public names of the package only: a private one can be renamed without a look at the tests."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
OF_LIBRARIES = {"torch.cpu"}
"""Modules of other projects whose private names stand for a machine."""


def patched_private_names(source: str) -> list[str]:
    """Private names that a module replaces: by setattr, patch.object, or assignment to an attribute."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and len(node.args) >= 2:
            function = ast.unparse(node.func).rpartition(".")[2]
            target, name = node.args[:2]
            if function in ("setattr", "object", "_around") and isinstance(name, ast.Constant):
                found.append((ast.unparse(target), f"{name.value}"))
        if isinstance(node, ast.Assign):
            targets = [each for target in node.targets for each in getattr(target, "elts", [target])]
            found += [(ast.unparse(each.value), each.attr) for each in targets if isinstance(each, ast.Attribute)]
    return [
        f"{target}.{name}"
        for target, name in found
        if name.startswith("_") and not name.startswith("__") and target not in {"self", *OF_LIBRARIES}
    ]


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: f"{path.relative_to(TESTS)}")
def test_no_private_name_is_replaced(path):
    assert patched_private_names(path.read_text()) == []


def test_findings():
    source = "m.setattr(a, '_b', 1)\nc._d, e = 1, 2\nself._f = 3\npatch.object(g, '_h', 4)\nm.setattr(i, 'j', 5)"
    assert sorted(patched_private_names(source)) == ["a._b", "c._d", "g._h"]
