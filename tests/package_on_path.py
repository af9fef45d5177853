"""A plugin package as if pip had installed it: its folder on the path, and metadata made from its pyproject.toml."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path


def register(package: Path, site: Path) -> dict[str, str]:
    """Write package's *.dist-info into site; returns an environment for child processes that see both."""
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = project["entry-points"].items()
    lines = [
        f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in all_.items()) for group, all_ in groups
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(site), str(package)]), "OMP_NUM_THREADS": "1"}
