"""`plugserve plugin new`: write a plugin package that passes its own tests."""

from __future__ import annotations

from collections.abc import Mapping

from plugserve.core.errors import ConfigError
from plugserve.core.plugin_system.plugin_loading import discover
from plugserve.scaffold.new_plugin import KINDS, USAGE, new_plugin

HELP = f"""\
{USAGE}

Writes a plugin package into a new folder: a small plugin of the kind that works, its tests, and pyproject.toml with the
entry point. docs/plugins describes each kind.

  --kind KIND     {", ".join(KINDS)}
  --into FOLDER   where the package's folder is made [.]
"""


def run(words: list[str], environ: Mapping[str, str]) -> int:
    if words[:1] != ["new"]:
        raise ConfigError("plugserve plugin needs a subcommand: plugserve plugin new NAME --kind KIND")
    folder = new_plugin(words[1:], taken=discover())
    print(f"{folder} is written. Install it and run its tests: pip install -e {folder} && pytest {folder}")
    return 0
