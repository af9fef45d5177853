"""`plugserve simulate`: reads trace and settings, runs every scheduler, prints the table, writes plot and figures."""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from plugserve.core.contracts.factories import PrefixCacheContext, SchedulerContext
from plugserve.core.contracts.prefix_cache import PrefixCache
from plugserve.core.contracts.scheduling import StepTime
from plugserve.core.errors import ConfigError, PluginError, did_you_mean
from plugserve.core.flight.flight_log import FlightLog
from plugserve.core.flight.flight_trace import is_flight, trace_of
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.plugin_system.plugin_loading import discover
from plugserve.core.plugin_system.strategy_factory import make_strategy
from plugserve.core.settings.log_setup import set_up_logging
from plugserve.core.settings.settings import Settings
from plugserve.core.settings.settings_reader import read_selection, read_settings
from plugserve.core.wire.trace_file import Trace, read_trace
from plugserve.simulate.arguments import Arguments, read_arguments, scheduler_words
from plugserve.simulate.fair_share import FairShares
from plugserve.simulate.figures import Targets, figures_of, measured, simulated_figures, table
from plugserve.simulate.machine import build_machine, choose_step_time
from plugserve.simulate.report import Run, as_json, check_out, write_report
from plugserve.simulate.simulation import Machine, Simulation

log = logging.getLogger(__name__)

_YARDSTICK = "fcfs"  # what a user's fair share is measured with, unless it is switched off


def simulate(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run the command. Raises UserError for what the user can correct."""
    arguments = read_arguments(words)
    if arguments.out is not None:
        check_out(arguments.out)
    host, settings, given = _read(arguments, environ)
    trace = _at_rate(_read_trace(arguments.trace, _model(settings)), arguments.rate)
    _check_schedulers(host, arguments.schedulers)
    step_time, origin = choose_step_time(trace, arguments.step_time)
    machine = build_machine(trace, settings, given, step_time)
    notes = _notes(arguments, trace, machine, origin)
    print("\n".join(notes), end="\n\n")
    runs = _run_all(arguments, settings, host, trace, machine)
    print(table([figures for figures, _ in runs]))
    print("\nTTFT and TPOT in ms; fairness: Jain's index over users' shares. docs/simulate.md explains the figures.")
    if arguments.out is not None:
        write_report(arguments.out, runs, notes)
    if arguments.json is not None:
        _write(arguments.json, as_json(runs, notes))
    return 0


def _read_trace(path: str, model: str | None) -> Trace:
    """A trace, or what a flight recorder kept. Raises ConfigError."""
    file = Path(path).expanduser()
    if not file.is_file() or not is_flight(file):
        return read_trace(path, model)
    trace = trace_of(FlightLog(file))
    if not trace.requests:
        raise ConfigError(f"--trace {path} holds no requests")
    return trace


def _read(arguments: Arguments, environ: Mapping[str, str]) -> tuple[PluginHost, Settings, Collection[str]]:
    words = [*arguments.words, *scheduler_words(arguments.schedulers, discover())]
    host = PluginHost.load(read_selection(words, environ))
    reading = read_settings(
        words, environ, options=host.option_models(), active=host.active_names, installed=host.installed_names
    )
    set_up_logging("warning" if reading.settings.log_level == "info" else reading.settings.log_level)
    for line in host.warnings:
        log.warning("%s", line)
    host.configure(reading.settings)
    return host, reading.settings, reading.given


def _check_schedulers(host: PluginHost, names: Sequence[str]) -> None:
    """All are there before the first one runs."""
    for name in names:
        try:
            host.factory("schedulers", name)
        except PluginError:
            known = [*host.names("schedulers"), *host.installed_names]
            raise PluginError(
                f"--scheduler {name}: no scheduler is named {name!r}.{did_you_mean(name, known)} An installed plugin "
                "is named by its own name or as PLUGIN/NAME (`plugserve plugins` lists them)"
            ) from None


def _model(settings: Settings) -> str | None:
    if len(settings.model) > 1:
        raise ConfigError("plugserve simulate is about one model at a time; give --model once")
    return settings.model[0] if settings.model else None


def _at_rate(trace: Trace, rate: float) -> Trace:
    if rate != 1.0:
        trace.requests = [
            msgspec.structs.replace(one, arrival_s=one.arrival_s / rate, ttft_s=None, total_s=None)
            for one in trace.requests
        ]
    return trace


def _notes(arguments: Arguments, trace: Trace, machine: Machine, origin: str) -> list[str]:
    """The lines above the table: the simulated machine and the trace."""
    requests = trace.requests
    prompt, output = (sum(getattr(one, name) for one in requests) for name in ("prompt_tokens", "output_tokens"))
    targets = [
        f"{name} at most {value * 1e3:g} ms"
        for name, value in (("TTFT", arguments.ttft_s), ("TPOT", arguments.tpot_s))
        if value is not None
    ]
    return [
        f"{len(requests)} requests of {len({one.user for one in requests})} users in {requests[-1].arrival_s:.1f} s, "
        f"{prompt} prompt and {output} output tokens",
        f"step time: {_formula(machine.step_time)} ({origin})",
        f"{_blocks(machine)}, at most {machine.max_num_seqs} sequences and "
        f"{machine.max_num_batched_tokens} tokens a step",
        f"goodput: {' and '.join(targets)}"
        if targets
        else "goodput: every request that is answered (no targets given)",
    ]


def _blocks(machine: Machine) -> str:
    on_host = f" and {machine.num_host_blocks} in host memory" if machine.num_host_blocks else ""
    return f"{machine.num_blocks} KV blocks of {machine.block_size} tokens{on_host}"


def _formula(step_time: StepTime) -> str:
    return (
        f"{step_time.base_s * 1e3:.4g} ms + {step_time.per_token_s * 1e6:.4g} us a prompt token + "
        f"{step_time.per_row_s * 1e6:.4g} us a decoding sequence + {step_time.per_pair_s * 1e6:.3g} us an attended pair"
    )


def _run_all(arguments: Arguments, settings: Settings, host: PluginHost, trace: Trace, machine: Machine) -> list[Run]:
    targets = Targets(arguments.ttft_s, arguments.tpot_s)
    make_scheduler = partial(_make, host, settings, machine, "schedulers", "scheduler", context_type=SchedulerContext)
    yardstick = _YARDSTICK if _YARDSTICK in host.names("schedulers") else settings.scheduler
    shares = FairShares(trace.requests, machine, partial(make_scheduler, yardstick))
    runs: list[Run] = []
    recorded = measured(trace.requests)
    if recorded:
        name = f"measured ({trace.facts.scheduler})" if trace.facts.scheduler else "measured"
        runs.append((figures_of(name, recorded, shares, targets), recorded))
    for name in arguments.schedulers or [settings.scheduler]:
        simulation = Simulation(machine, make_scheduler(name), name, _prefix_cache(host, settings, machine))
        outcome = simulation.run(trace.requests)
        runs.append((simulated_figures(name, outcome, shares, targets), outcome.served))
        failed = [one for one in outcome.served if one.error]
        if failed:
            print(
                f"plugserve: warning: {len(failed)} requests failed under {name}, the first one so: {failed[0].error}",
                file=sys.stderr,
            )
    return runs


def _prefix_cache(host: PluginHost, settings: Settings, machine: Machine) -> PrefixCache | None:
    names = host.names("prefix_caches")
    made: PrefixCache | None = (
        _make(host, settings, machine, "prefix_caches", "prefix cache", names[0], PrefixCacheContext) if names else None
    )
    return made


def _make(
    host: PluginHost,
    settings: Settings,
    machine: Machine,
    kind: str,
    slot: str,
    name: str,
    context_type: type[SchedulerContext] | type[PrefixCacheContext],
) -> Any:
    """A strategy, made by its plugin's factory as the engine's process does it."""
    factory, plugin = host.factory(kind, name)
    context = context_type(
        options=host.options(plugin, settings),
        config=settings.view(),
        device="simulated",
        dtype="float32",
        block_size=machine.block_size,
        max_model_len=machine.max_model_len,
    )
    return make_strategy(plugin, slot, name, partial(factory, context))


def _write(path: Any, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--json {path}: {error.strerror}") from None
