"""`plugserve [serve]`: serve models behind the OpenAI HTTP API."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from plugserve.commands.reading import read_all
from plugserve.core.errors import ConfigError
from plugserve.core.plugin_system.needed_plugins import check_needed_plugins
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.log_file import log_file_of
from plugserve.core.settings.log_setup import set_up_logging
from plugserve.core.settings.settings_reader import read_selection

HELP = """\
usage: plugserve [serve] [MODEL] [SETTING ...]

Serves models behind the OpenAI HTTP API until Ctrl-C or SIGTERM: MODEL (the same as --model), those of --model-dir and
of `models:` in a --config file; without any the embedded model. docs/many-models.md is about several.
"""
log = logging.getLogger(__name__)


def run(words: list[str], environ: Mapping[str, str]) -> int:
    host = PluginHost.load(read_selection(words, environ))
    reading = read_all(words, environ, host)
    settings = reading.settings
    set_up_logging(settings.log_level, settings.log_format, log_file_of(settings))
    for line in (*reading.warnings, *host.warnings):
        log.warning("%s", line)
    if settings.upstream:
        raise ConfigError("--upstream is a setting of the router: plugserve route --upstream URL")
    check_needed_plugins(settings, host)
    from plugserve.server.supervisor.main import serve  # heavy: HTTP, ZMQ

    return serve(settings, host)
