"""`plugserve route`: a router before several servers."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Mapping

from plugserve.core.errors import ConfigError
from plugserve.core.settings.log_file import log_file_of
from plugserve.core.settings.log_setup import set_up_logging
from plugserve.core.settings.setting_groups import ROUTER
from plugserve.core.settings.setting_names import flag
from plugserve.core.settings.settings import setting_facts
from plugserve.core.settings.settings_help import help_on
from plugserve.core.settings.settings_reader import read_settings

SERVER_SETTINGS = frozenset(
    {
        "host",
        "port",
        "ssl_keyfile",
        "ssl_certfile",
        "shutdown_timeout",
        "disable_log_requests",
        "log_level",
        "log_file",
        "log_file_size",
        "log_file_count",
        "log_format",
        "otlp_traces_endpoint",
        "collect_detailed_traces",
        "trace_baggage",
        "api_key",
        "api_key_file",
        "metrics_no_auth",
        "allowed_origins",
        "allowed_methods",
        "allowed_headers",
        "allow_credentials",
        "request_timeout",
        "max_body_size",
        "max_body_values",
        "max_body_bytes_in_flight",
        "max_connections",
        "header_timeout",
        "body_timeout",
        "config",
    }
)
"""The settings of serve that a router has too."""

_SHARED = textwrap.fill(
    " ".join(flag(name) for name in setting_facts() if name in SERVER_SETTINGS),
    width=110,
    initial_indent="  ",
    subsequent_indent="  ",
    break_on_hyphens=False,
)

HELP = f"""\
usage: plugserve route --upstream URL [--upstream NAME=URL ...] [SETTING ...]

A router before several plugserve servers, or others that speak the OpenAI API: sends each request to one that serves
its model and, with --policy prefix, has computed its beginning before. docs/routing.md explains it.

{help_on(ROUTER, {})}
Settings of the server that a router has too (plugserve --help=server):
{_SHARED}
"""
log = logging.getLogger(__name__)


def run(words: list[str], environ: Mapping[str, str]) -> int:
    reading = read_settings(words, environ)
    settings = reading.settings
    if settings.model and reading.given >= {"model"}:
        _refuse_positional(words, settings.model)
    set_up_logging(settings.log_level, settings.log_format, log_file_of(settings))
    for line in reading.warnings:
        log.warning("%s", line)
    facts = setting_facts()
    unused = sorted(name for name in reading.given & facts.keys() - SERVER_SETTINGS if facts[name].group != ROUTER)
    if unused:
        log.warning("plugserve route does not use these settings: %s", ", ".join(map(flag, unused)))
    from plugserve.server.router.main import route  # heavy: HTTP

    return route(settings)


def _refuse_positional(words: list[str], models: list[str]) -> None:
    """A URL without its flag would be read as a model."""
    stray = next((one for one in models if one in words and "://" in one), None)
    if stray is not None:
        raise ConfigError(f"unexpected argument {stray!r}; servers are named with --upstream {stray}")
