"""`plugserve [serve]`: serve models behind the OpenAI HTTP API."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from plugserve.commands.reading import read_all
from plugserve.core.errors import ConfigError
from plugserve.core.model_files.load_formats import format_used
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.log_setup import set_up_logging
from plugserve.core.settings.settings_reader import read_selection

HELP = "usage: plugserve [serve] [MODEL] [SETTING ...]\n"
log = logging.getLogger(__name__)


def run(words: list[str], environ: Mapping[str, str]) -> int:
    host = PluginHost.load(read_selection(words, environ))
    reading = read_all(words, environ, host)
    set_up_logging(reading.settings.log_level)
    for line in (*reading.warnings, *host.warnings):
        log.warning("%s", line)
    if reading.settings.upstream:
        raise ConfigError("--upstream is a setting of the router: plugserve route --upstream URL")
    load_format, _ = format_used(reading.settings.load_format, host.names("weight_formats"))
    if load_format != "auto":
        host.factory("weight_formats", load_format)  # a format that no plugin provides stops here
    if (reading.settings.lora_modules or reading.settings.lora_dir) and not host.names("lora_managers"):
        given = "--lora-modules" if reading.settings.lora_modules else "--lora-dir"
        raise ConfigError(f"{given} needs a plugin that serves LoRA adapters: add --enable-lora")
    from plugserve.server.supervisor.main import serve  # heavy: HTTP, ZMQ

    return serve(reading.settings, host)
