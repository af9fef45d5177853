"""Which level of hooks a plugin is written for, and whether this plugserve has it. Knows nothing of hooks.

A package says it in its metadata, so that it can be refused before anything of it is imported:

    [project.entry-points.plugserve_api]
    2 = "my_module"

A one-file plugin says PLUGSERVE_API = 2.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Any

from plugserve.core.errors import PluginError
from plugserve.core.plugin_system.hookspecs import OLDEST_API, PLUGSERVE_API

LEVEL_GROUP = "plugserve_api"


def check_registered_levels(entry_point: EntryPoint, plugin: str) -> None:
    """Raises PluginError where the plugin's distribution names a level that isn't served here."""
    if entry_point.dist is None:
        return
    for level in entry_point.dist.entry_points.select(group=LEVEL_GROUP):
        if not level.name.isdigit():
            raise PluginError(
                f"{plugin}: its metadata names the hook level {level.name!r}, which is no number; write "
                f'{PLUGSERVE_API} = "{entry_point.module}" below [project.entry-points.{LEVEL_GROUP}]'
            )
        _check(int(level.name), plugin)


def check_declared_level(target: Any, plugin: str) -> None:
    """Raises PluginError where the plugin's module or object has a PLUGSERVE_API that isn't served here."""
    level = getattr(target, "PLUGSERVE_API", None)
    if level is None:
        return
    if not isinstance(level, int) or isinstance(level, bool):
        raise PluginError(f"{plugin}: PLUGSERVE_API must be a number such as {PLUGSERVE_API}, got {level!r}")
    _check(level, plugin)


def _check(level: int, plugin: str) -> None:
    if level > PLUGSERVE_API:
        raise PluginError(
            f"{plugin} is written for hook level {level}, this plugserve has level {PLUGSERVE_API}; update plugserve, "
            "or install an older version of the plugin"
        )
    if level < OLDEST_API:
        raise PluginError(
            f"{plugin} is written for hook level {level}, the oldest that this plugserve still serves is {OLDEST_API}; "
            "install a newer version of the plugin"
        )
