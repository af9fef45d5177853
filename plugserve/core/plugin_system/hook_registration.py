"""Registers active plugins with pluggy: hook specifications, implementations and their order."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from types import ModuleType

import pluggy

from plugserve.core.plugin_system import hookspecs
from plugserve.core.plugin_system.plugin_loading import Plugin


class _CheckedHooks:
    """The hooks of a plugin, which plugin_loading has checked, as an object for pluggy; the plugin's other attributes
    are hidden."""

    def __init__(self, plugin: Plugin) -> None:
        vars(self).update(plugin.hooks)


def make_manager(
    plugins: Sequence[Plugin], specs: ModuleType | type = hookspecs
) -> tuple[pluggy.PluginManager, list[str]]:
    """pluggy's manager, and a line about each use of a deprecated hook or argument.

    pluggy calls the last registered plugin first, so plugins are registered in reverse order of activation.
    """
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(specs)
    retirements = []
    for plugin in reversed(plugins):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", hookspecs.Retirement)
            manager.register(_CheckedHooks(plugin), name=plugin.name)
        retirements += [f"{plugin}: {one.message}" for one in caught if issubclass(one.category, hookspecs.Retirement)]
    return manager, retirements
