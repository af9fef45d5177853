"""`plugserve doctor`: what a model will take of this machine's memory, whether it fits, and what the machine lacks."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextlib import redirect_stdout
from sys import stderr
from typing import TYPE_CHECKING

from plugserve.commands.reading import read_all
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.settings import Settings
from plugserve.core.settings.settings_reader import read_selection

if TYPE_CHECKING:
    from plugserve.commands.memory_report import DoctorReport

HELP = """\
usage: plugserve doctor [MODEL] [--json] [SETTING ...]

Predicts the memory that a model takes with these settings, from its config and the headers of its files: weights, KV
cache, what steps work in, CUDA graphs, LoRA slots, a draft model, blocks and weights in host memory. Says whether it
fits beside what other processes hold and, if not, the smallest change that makes it fit. No model is loaded. Then it
checks the machine: CPU, GPU, versions, disk, port, open files.

  --json   everything as one JSON object

A model on the Hugging Face hub is predicted from its config alone: its weights are not downloaded. Settings are those
of serve: plugserve --help. docs/memory.md explains each line.

Exit code: 0, or 2 if a model doesn't fit or a check fails.
"""
SWITCHES = frozenset({"--json"})


def run(words: list[str], environ: Mapping[str, str]) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    with redirect_stdout(stderr):  # what plugins print stays out of the report
        host = PluginHost.load(read_selection(words, environ, SWITCHES))
        reading = read_all(words, environ, host, SWITCHES)
        host.configure(reading.settings)
        report = _examine(reading.settings, host)
    print(json.dumps(report.as_dict(), indent=2) if "--json" in reading.switches else report.as_text())
    return 0 if report.is_well else 2


def _examine(settings: Settings, host: PluginHost) -> DoctorReport:
    from plugserve.commands.machine_checks import check_machine
    from plugserve.commands.memory_report import DoctorReport, examine_models, fit_together

    models = examine_models(settings, host)
    return DoctorReport(models, fit_together(models), check_machine(settings))
