"""`plugserve plugins`: which plugins are active, installed or broken, and what they provide."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout

from plugserve.commands.reading import read_all
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.plugin_system.plugin_report import PluginReport
from plugserve.core.settings.settings_reader import read_selection

HELP = """\
usage: plugserve plugins [--json] [--inspect] [SETTING ...]

Lists plugins with their packages: active, installed or broken, and what each active one provides.

  --json       as JSON
  --inspect    also import the inactive ones, each in a process of its own, to show what they provide

Settings are those of serve (plugserve --help); they select the active plugins: --plugin NAME, --no-plugin NAME,
--scheduler NAME, --attention NAME, --runner NAME, --config FILE.
"""
SWITCHES = frozenset({"--json", "--inspect"})


def run(words: list[str], environ: Mapping[str, str]) -> int:
    with redirect_stdout(sys.stderr):  # what a plugin prints when it is imported stays out of the list
        host = PluginHost.load(read_selection(words, environ, SWITCHES))
        reading = read_all(words, environ, host, SWITCHES)
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
