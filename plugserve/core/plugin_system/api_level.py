"""The hook level that a plugin is written for, and whether this plugserve supports it.

A package names it in its metadata, so that it can be refused before it is imported:

    [project.entry-points.plugserve_api]
    2 = "my_module"

A one-file plugin defines PLUGSERVE_API = 2.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Any

from plugserve.core.errors import PluginError
from plugserve.core.plugin_system.hookspecs import OLDEST_API, PLUGSERVE_API

LEVEL_GROUP = "plugserve_api"


MOVING = "docs/plugins/moving-to-2.md"


def registered_level(entry_point: EntryPoint, plugin: str) -> int | None:
    """The level that the plugin's distribution names, None for none. Raises PluginError for an unsupported one."""
    levels: list[int] = []
    if entry_point.dist is None:
        return None
    for level in entry_point.dist.entry_points.select(group=LEVEL_GROUP):
        if not level.name.isdigit():
            raise PluginError(
                f"{plugin}: its metadata names the hook level {level.name!r}, which is not a number; write "
                f'{PLUGSERVE_API} = "{entry_point.module}" below [project.entry-points.{LEVEL_GROUP}]'
            )
        levels.append(_checked(int(level.name), plugin))
    return min(levels, default=None)


def declared_level(target: Any, plugin: str) -> int | None:
    """The PLUGSERVE_API of the plugin's module or object, None for none. Raises PluginError for an unsupported one."""
    level = getattr(target, "PLUGSERVE_API", None)
    if level is None:
        return None
    if not isinstance(level, int) or isinstance(level, bool):
        raise PluginError(f"{plugin}: PLUGSERVE_API must be a number such as {PLUGSERVE_API}, got {level!r}")
    return _checked(level, plugin)


def old_level_warning(level: int | None, plugin: str) -> str | None:
    """The line about a plugin of an older level, None for any other."""
    if level is None or level >= PLUGSERVE_API:
        return None
    move = f"{MOVING} describes how to move it to level {PLUGSERVE_API}"
    return f"{plugin} is written for hook level {level}; it still works; {move}"


def _checked(level: int, plugin: str) -> int:
    if level > PLUGSERVE_API:
        raise PluginError(
            f"{plugin} is written for hook level {level}, this plugserve has level {PLUGSERVE_API}; update plugserve, "
            "or install an older version of the plugin"
        )
    if level < OLDEST_API:
        raise PluginError(
            f"{plugin} is written for hook level {level}, the oldest that this plugserve supports is {OLDEST_API}; "
            "install a newer version of the plugin"
        )
    return level
