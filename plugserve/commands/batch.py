"""`plugserve batch`: answer a file of requests."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from plugserve.commands.reading import read_all
from plugserve.core.errors import ConfigError
from plugserve.core.plugin_system.needed_plugins import check_needed_plugins
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.command_flags import split_flags
from plugserve.core.settings.log_setup import set_up_logging
from plugserve.core.settings.settings_reader import read_selection

HELP = """\
usage: plugserve batch INPUT OUTPUT [--url URL] [--concurrency N] [SETTING ...]

Answers the requests in INPUT, a file in OpenAI's batch format, and appends each result to OUTPUT as it comes. The same
command again goes on where an earlier one stopped: it sends only lines without a result, lines that have changed since,
and those that failed on the server's side.

  INPUT             a request a line: {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {...}}
  OUTPUT            a result a line, by custom_id: {"id", "custom_id", "response": {"status_code", "body"}, "error"}
  --url URL         ask a running server (its key: --api-key or PLUGSERVE_API_KEY) instead of a model in this process
  --concurrency N   requests at a time; without it as many as suit the engine, and 32 with --url
  SETTING           without --url the settings of `plugserve serve`: --model, --dtype, ... (plugserve serve --help)

Exit codes: 0 when every line has its result, also an error; 1 when the engine or server is gone; 130 after Ctrl-C.
"""
log = logging.getLogger(__name__)

_OWN: Final = ("--url", "--concurrency")
_OF_URLS: Final = ("api_key", "api_key_file", "log_level", "config")


def run(words: list[str], environ: Mapping[str, str]) -> int:
    flags = split_flags(words, _OWN)
    own, settings_words = flags.values, flags.words
    places = [word for word in settings_words[:2] if not word.startswith("-")]
    if len(places) != 2:
        raise ConfigError("batch needs two files: plugserve batch INPUT OUTPUT [--url URL] [SETTING ...]")
    rest = settings_words[2:]
    host = PluginHost.load(read_selection(rest, environ))
    reading = read_all(rest, environ, host)
    set_up_logging(reading.settings.log_level if "log_level" in reading.given else "warning")
    for line in (*reading.warnings, *host.warnings):
        log.warning("%s", line)
    if "--url" in own:
        on_command_line = read_all(rest, {}, host).given
        idle = next((name for name in sorted(on_command_line) if name not in _OF_URLS), None)
        if idle is not None:
            raise ConfigError(f"--{idle.replace('_', '-')} has no effect with --url: the server has its own settings")
    check_needed_plugins(reading.settings, host)
    from plugserve.offline.batch_command import BatchFiles, run_batch  # heavy: HTTP, ZMQ

    files = BatchFiles(Path(places[0]), Path(places[1]), own.get("--url"), _count(own.get("--concurrency")))
    return run_batch(files, reading.settings, host)


def _count(text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isdigit() or not 0 < int(text) <= 4096:
        raise ConfigError(f"--concurrency must be a whole number from 1 to 4096, got {text!r}")
    return int(text)
