"""CONTRIBUTING.md gives a reason for each mandatory dependency."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_each_dependency_has_a_reason():
    with (ROOT / "pyproject.toml").open("rb") as file:
        dependencies = tomllib.load(file)["project"]["dependencies"]
    table = (ROOT / "CONTRIBUTING.md").read_text().partition("## Dependencies")[2].partition("\n## ")[0]
    listed = [name for cell in re.findall(r"^\| ([\w, -]+) \| \w", table, re.M) for name in cell.split(", ")]
    assert sorted(set(listed) - {"package"}) == sorted(re.split(r"[^\w-]", one, maxsplit=1)[0] for one in dependencies)
