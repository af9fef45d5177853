"""The weight formats of active plugins, made as an engine makes them."""

from __future__ import annotations

from plugserve.core.contracts.factories import WeightFormatContext
from plugserve.core.contracts.weights import WeightFormat
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.settings import Settings


def active_formats(host: PluginHost, settings: Settings) -> dict[str, tuple[WeightFormat, str]]:
    """By name: the format, and the plugin that provides it."""
    made: dict[str, tuple[WeightFormat, str]] = {}
    for name in host.names("weight_formats"):
        factory, owner = host.factory("weight_formats", name)
        context = WeightFormatContext(options=host.options(owner, settings), config=settings.view())
        made[name] = factory(context), owner
    return made
