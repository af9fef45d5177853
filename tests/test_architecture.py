"""ARCHITECTURE.md's table of places: each file exists and defines the name."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TABLE = (ROOT / "ARCHITECTURE.md").read_text().partition("## Where to find it")[2].partition("\n## ")[0]
ROWS = re.findall(r"^\| ([^|]+) \| (plugserve/[^ |]+) \| ([\w.]*) ?\|$", TABLE, re.M)


def defined(body):
    """Names that a module or class defines, members of classes as Class.member."""
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield node.name
            yield from (f"{node.name}.{name}" for name in defined(node.body))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


def test_table_is_read():
    assert len(ROWS) == TABLE.count("\n| ") - 1
    assert len(ROWS) >= 12


@pytest.mark.parametrize(("question", "path", "name"), ROWS)
def test_place_exists(question, path, name):
    tree = ast.parse((ROOT / path).read_text())
    assert not name or name in defined(tree.body)
