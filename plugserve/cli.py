"""The commands `plugserve [serve]`, `plugins`, `plugin new`, `models supported` and `simulate`.

Starts nothing heavy until a command needs it.

Exit codes: 0, 2 for the user's fault (one line on standard error), 130 after Ctrl-C; anything else is ours.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout

from plugserve import __version__
from plugserve.core.config_docs import help_text
from plugserve.core.config_reader import Reading, read_selection, read_settings
from plugserve.core.errors import ConfigError, UserError
from plugserve.core.logs import set_up_logging
from plugserve.core.plugin_host import PluginHost
from plugserve.core.plugin_report import PluginReport

log = logging.getLogger(__name__)

COMMANDS = ("serve", "plugins", "plugin", "models", "simulate")
PLUGINS_SWITCHES = frozenset({"--json", "--inspect"})
MODELS_SWITCHES = frozenset({"--markdown"})

USAGE = """\
usage: plugserve [serve] [MODEL] [SETTING ...]     serve a model behind the OpenAI HTTP API
       plugserve plugins [--json] [--inspect]      list plugins: active, installed, broken
       plugserve plugin new NAME --kind KIND       write a plugin package that passes its own tests
       plugserve models supported [--markdown]     list architectures, weight formats and RoPE kinds
       plugserve simulate --trace FILE ...         compare schedulers on a trace (--help says more)
       plugserve --version | --help

plugins and models take the same settings as serve, to show what would be active; plugins --inspect also imports the
inactive ones, each in a process of its own.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(words, os.environ)
    except UserError as error:
        print(f"plugserve: error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `plugserve plugins | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(words: list[str], environ: Mapping[str, str]) -> int:
    command = words.pop(0) if words and words[0] in COMMANDS else "serve"
    settings_words = words[: words.index("--")] if "--" in words else words
    if "--version" in settings_words:
        print(f"plugserve {__version__}")
        return 0
    if command == "simulate":
        return _simulate(words, environ)
    if "--help" in settings_words or "-h" in settings_words:
        return _help(words, environ)
    return {"plugins": _plugins, "plugin": _plugin, "models": _models, "serve": _serve}[command](words, environ)


def _serve(words: list[str], environ: Mapping[str, str]) -> int:
    host = PluginHost.load(read_selection(words, environ))
    reading = _read(words, environ, host)
    set_up_logging(reading.settings.log_level)
    for line in (*reading.warnings, *host.warnings):
        log.warning("%s", line)
    if reading.settings.load_format != "auto":
        host.factory("weight_formats", reading.settings.load_format)  # a format that nobody provides stops here
    if (reading.settings.lora_modules or reading.settings.lora_dir) and not host.names("lora_managers"):
        given = "--lora-modules" if reading.settings.lora_modules else "--lora-dir"
        raise ConfigError(f"{given} needs a plugin that serves LoRA adapters: add --enable-lora")
    from plugserve.server.supervisor.main import serve  # heavy: HTTP, ZMQ

    return serve(reading.settings, host)


def _read(
    words: list[str], environ: Mapping[str, str], host: PluginHost, switches: frozenset[str] = frozenset()
) -> Reading:
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


def _help(words: list[str], environ: Mapping[str, str]) -> int:
    """All flags, with the options of the plugins that words select; without those if they can't be loaded."""
    wanted = [word for word in words if word not in ("--help", "-h")]
    try:
        models = PluginHost.load(read_selection(wanted, environ, PLUGINS_SWITCHES)).option_models()
    except UserError as error:
        print(help_text(USAGE, {}))
        print(f"plugserve: error: {error}", file=sys.stderr)
        return 2
    print(help_text(USAGE, models), end="")
    return 0


# ---------------------------------------------------------------- plugserve plugins


def _plugins(words: list[str], environ: Mapping[str, str]) -> int:
    with redirect_stdout(sys.stderr):  # a plugin that prints when it is imported doesn't stand in the list
        host = PluginHost.load(read_selection(words, environ, PLUGINS_SWITCHES))
        reading = _read(words, environ, host, PLUGINS_SWITCHES)
    reports = host.report("--inspect" in reading.switches)
    if "--json" in reading.switches:
        print(json.dumps([report.as_dict() for report in reports], indent=2))
    else:
        print(_table(reports))
    return 0


def _table(reports: Sequence[PluginReport]) -> str:
    rows = [("NAME", "DISTRIBUTION", "VERSION", "STATE", "PROVIDES")]
    rows += [
        (report.name, report.distribution, report.version or "-", report.state, _provides(report)) for report in reports
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]) for row in rows
    )


def _provides(report: PluginReport) -> str:
    if report.problem:
        return report.problem
    if report.provides is None:
        return "(not imported; --inspect shows what it provides)"
    parts = list(report.provides)
    if report.hooks:
        parts.append("hooks " + ", ".join(report.hooks))
    if report.options:
        parts.append("options " + ", ".join(report.options))
    return "; ".join(parts)


# ---------------------------------------------------------------- plugserve plugin new


def _plugin(words: list[str], environ: Mapping[str, str]) -> int:
    if words[:1] != ["new"]:
        raise ConfigError("plugserve plugin needs to know what: plugserve plugin new NAME --kind KIND")
    from plugserve.core.plugin_loading import discover
    from plugserve.scaffold.new_plugin import new_plugin

    folder = new_plugin(words[1:], taken=discover())
    print(f"{folder} is written. Install it and run its tests: pip install -e {folder} && pytest {folder}")
    return 0


# ---------------------------------------------------------------- plugserve models supported


def _models(words: list[str], environ: Mapping[str, str]) -> int:
    if words[:1] != ["supported"]:
        raise ConfigError("plugserve models needs to know what: plugserve models supported")
    words = words[1:]
    host = PluginHost.load(read_selection(words, environ, MODELS_SWITCHES))
    reading = _read(words, environ, host, MODELS_SWITCHES)
    from plugserve.core.models.support import as_markdown, as_text, support_tables

    render = as_markdown if "--markdown" in reading.switches else as_text
    print(render(support_tables(host)), end="")
    return 0


# ---------------------------------------------------------------- plugserve simulate


def _simulate(words: list[str], environ: Mapping[str, str]) -> int:
    from plugserve.simulate.arguments import USAGE as simulate_usage
    from plugserve.simulate.command import simulate

    if "--help" in words or "-h" in words:
        print(simulate_usage, end="")
        return 0
    return simulate(words, environ)
