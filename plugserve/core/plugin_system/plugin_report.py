"""Reports on plugins, for `plugserve plugins` and GET /v1/plugins.

An inactive plugin is imported in a child process (main): a broken one, even one that crashes the interpreter, ends
only that process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from plugserve.core.errors import PluginError
from plugserve.core.plugin_system.plugin_loading import (
    KIND_WORDS,
    PROVIDER_HOOKS,
    Installed,
    Plugin,
    discover,
    load_installed,
)

INSPECTION_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class PluginReport:
    """One plugin. provides reads "scheduler fcfs"; hooks lacks the prefix; problem is the fault of a broken one.
    provides, hooks and options are None for an inactive plugin that was not inspected. seconds, num_errors and
    num_quarantines (how often it was left out or switched off) are this process's."""

    name: str
    distribution: str
    version: str
    state: Literal["active", "installed", "broken"]
    provides: list[str] | None = None
    hooks: list[str] | None = None
    options: list[str] | None = None
    problem: str | None = None
    seconds: float = 0.0
    num_errors: int = 0
    num_quarantines: int = 0

    def as_dict(self) -> dict[str, Any]:
        """The report as a dict for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Contents:
    """A plugin's strategies, hooks and options, as lists of names."""

    provides: list[str] = field(default_factory=list)
    hooks: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)


def contents(plugin: Plugin) -> Contents:
    """The contents of a loaded plugin."""
    provided = [f"{word} {name}" for kind, word in KIND_WORDS.items() for name in plugin.provides.get(kind, {})]
    set_up = {*PROVIDER_HOOKS.values(), "plugserve_options"}
    hooks = [hook.removeprefix("plugserve_") for hook in plugin.hooks if hook not in set_up]
    options = list(plugin.options.model_fields) if plugin.options else []
    return Contents(provided, hooks, options)


def report_installed(installed: Sequence[Installed], *, inspect: bool) -> PluginReport:
    """An inactive plugin; with inspect it is imported in a child process. Several registrations of one name: broken."""
    first = installed[0]
    if len(installed) > 1:
        owners = " and ".join(f"{one.distribution} {one.version}" for one in installed)
        problem = f"plugin name {first.name!r} is registered by {owners}; uninstall one of them"
        return PluginReport(first.name, first.distribution, first.version, "broken", problem=problem)
    if not inspect:
        return PluginReport(first.name, first.distribution, first.version, "installed")
    found = _inspect(first.name)
    if isinstance(found, str):
        return PluginReport(first.name, first.distribution, first.version, "broken", problem=found)
    return PluginReport(first.name, first.distribution, first.version, "installed", **asdict(found))


def _inspect(name: str) -> Contents | str:
    """The contents of an installed plugin, or its fault."""
    # The child gets this process's path: the plugin may be in a folder that is on no other.
    program = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import main; main({name!r})"
    try:
        child = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            timeout=INSPECTION_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"importing it took longer than {INSPECTION_TIMEOUT_S:g} s"
    lines = child.stdout.strip().splitlines()
    try:
        answer = json.loads(lines[-1])
    except (IndexError, ValueError):
        return f"importing it ended the process (exit code {child.returncode})"
    return answer["problem"] if "problem" in answer else Contents(**answer)


def main(name: str) -> None:
    """Print the contents, or the problem, of an installed plugin as one line of JSON."""
    try:
        answer = asdict(contents(load_installed(discover()[name][0])))
    except PluginError as error:
        answer = {"problem": str(error)}
    print("\n" + json.dumps(answer), flush=True)
