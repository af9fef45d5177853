"""Reads all settings for the commands, after the plugins are selected."""

from __future__ import annotations

import os
from collections.abc import Mapping

from plugserve.commands.command_table import COMMANDS
from plugserve.core.errors import ConfigError
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.settings_reader import Reading, read_settings


def read_all(
    words: list[str], environ: Mapping[str, str], host: PluginHost, switches: frozenset[str] = frozenset()
) -> Reading:
    """Every setting and the active plugins' options. Raises ConfigError for a command in the wrong place."""
    reading = read_settings(
        words,
        environ,
        options=host.option_models(),
        active=host.active_names,
        installed=host.installed_names,
        switches=switches,
    )
    misplaced = next((one for one in reading.settings.model if one in COMMANDS and not os.path.exists(one)), None)
    if misplaced:
        raise ConfigError(f"the command comes first: plugserve {misplaced} ...")
    return reading
