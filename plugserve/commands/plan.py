"""`plugserve plan`: which split of a model over several GPUs to choose, and what to expect of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from sys import stderr
from typing import TYPE_CHECKING, Final

from plugserve.commands.reading import read_all
from plugserve.core.errors import ConfigError
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.command_flags import split_flags
from plugserve.core.settings.settings import Settings
from plugserve.core.settings.settings_reader import read_selection

if TYPE_CHECKING:
    from plugserve.core.contracts.model import DecoderSpec
    from plugserve.plan.report import Plan

HELP: Final = """\
usage: plugserve plan [MODEL] --gpus N [--gpu NAME] [--link NAME] [--nodes M] [SETTING ...]

Forecasts memory, step times and throughput of a model on N GPUs, for every split into tensor, pipeline and data
parallelism, and chooses one. Only the model's config is read; no GPU is needed. The figures are put together from
measured parts; docs/parallel.md has the arithmetic, and how far it was from what was measured.

  --gpus N             GPUs in all
  --gpu NAME           h100 (default), h200, a100
  --link NAME          between the GPUs of a node: nvlink (default), pcie, ethernet
  --nodes M            machines with N/M GPUs each (1); ethernet between them
  --rows N             requests at once over all GPUs (64)
  --prompt N           tokens of a prompt (1024)
  --answer N           tokens of an answer (256)
  --for GOAL           throughput (default) or latency: the shortest time between two tokens
  --weight-bytes N     bytes of a weight (2); 1 for FP8, 0.5 for 4 bits
  --parts FILE         other measured parts, as JSON
  --json               the plan as one JSON object

Settings are those of serve: --max-num-seqs, --max-num-batched-tokens and --gpu-memory-utilization count.
"""
SWITCHES = frozenset({"--json"})
_FLAGS: Final = {
    "--gpus": "", "--gpu": "h100", "--link": "nvlink", "--nodes": "1", "--rows": "64", "--prompt": "1024",
    "--answer": "256", "--for": "throughput", "--weight-bytes": "2", "--parts": "",
}  # fmt: skip
_GOALS: Final = ("throughput", "latency")
_MOST_GPUS: Final = 4096


def run(words: list[str], environ: Mapping[str, str]) -> int:
    flags = split_flags(words, _FLAGS)
    asked = dict(_FLAGS) | flags.values
    with redirect_stdout(stderr):  # what plugins print stays out of the plan
        host = PluginHost.load(read_selection(flags.words, environ, SWITCHES))
        reading = read_all(flags.words, environ, host, SWITCHES)
        host.configure(reading.settings)
        plan = _plan(asked, reading.settings, host)
    print(json.dumps(plan.as_dict(), indent=2) if "--json" in reading.switches else plan.as_text())
    return 0 if plan.chosen is not None else 2


def _plan(asked: Mapping[str, str], settings: Settings, host: PluginHost) -> Plan:
    from plugserve.plan.forecast import GPU_CHUNK, Workload, choose, forecast, splits
    from plugserve.plan.model_shape import ModelShape
    from plugserve.plan.parts import MEASURED, read_parts
    from plugserve.plan.report import Plan
    from plugserve.plan.split import Cluster

    if not asked["--gpus"]:
        raise ConfigError("plugserve plan needs --gpus N, how many GPUs there are")
    num_gpus = _number(asked, "--gpus", _MOST_GPUS)
    num_nodes = _number(asked, "--nodes", num_gpus)
    if num_gpus % num_nodes:
        raise ConfigError(f"--nodes {num_nodes} must divide --gpus {num_gpus}")
    goal = _choice("--for", asked["--for"], _GOALS)
    parts = read_parts(Path(asked["--parts"]).expanduser()) if asked["--parts"] else MEASURED
    gpu, link = _choice("--gpu", asked["--gpu"], parts.gpus), _choice("--link", asked["--link"], parts.links)
    far = _choice("--link", "ethernet", parts.links) if num_nodes > 1 else link
    cluster = Cluster(parts.gpus[gpu], parts.links[link], parts.links[far], num_gpus // num_nodes)
    name, spec = _spec(settings, host)
    work = Workload(
        rows=_number(asked, "--rows", 1 << 20),
        prompt=_number(asked, "--prompt", 1 << 24),
        answer=_number(asked, "--answer", 1 << 24),
        chunk=settings.max_num_batched_tokens or GPU_CHUNK,
        utilisation=settings.gpu_memory_utilization,
        max_num_seqs=settings.max_num_seqs,
    )
    shape = ModelShape.of(spec, _weight_bytes(asked["--weight-bytes"]))
    forecasts = [forecast(shape, split, cluster, work) for split in splits(num_gpus)]
    used = dict.fromkeys([gpu, *([link] if num_gpus > num_nodes else []), *([far] if num_nodes > 1 else [])])
    origins = [f"{one}: {parts.origin[one]}" for one in used if one in parts.origin]
    nodes = f" in {num_nodes} nodes" if num_nodes > 1 else ""
    machine = f"{num_gpus} x {gpu} ({link}){nodes}"
    return Plan(name, machine, work, goal, forecasts, choose(forecasts, goal == "latency"), origins)


def _spec(settings: Settings, host: PluginHost) -> tuple[str, DecoderSpec]:
    """The model's name and description, from its config."""
    from plugserve.core.model_files.architectures import describe_decoder
    from plugserve.core.model_files.encoder_files import GENERATE
    from plugserve.core.model_files.model_source import read_config, resolve

    if len(settings.model) > 1:
        raise ConfigError(f"plugserve plan plans one model, got {len(settings.model)}")
    source = resolve(
        next(iter(settings.model), None),
        revision=settings.revision,
        download_dir=settings.download_dir,
        load_format="dummy",
        config_overrides=settings.hf_overrides,
    )
    if source.task != GENERATE:
        raise ConfigError(f"{source.name} is an encoder; plugserve plan plans models that generate text")
    architectures = {name: host.factory("architectures", name)[0] for name in host.names("architectures")}
    return source.name, describe_decoder(read_config(source), architectures, "of a plan")


def _number(asked: Mapping[str, str], name: str, most: int) -> int:
    text = asked[name]
    if not (text.isdecimal() and 1 <= int(text) <= most):
        raise ConfigError(f"{name} must be a whole number from 1 to {most}, got {text!r}")
    return int(text)


def _weight_bytes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.1 <= value <= 4:
        raise ConfigError(f"--weight-bytes must be a number from 0.1 to 4, got {text!r}")
    return value


def _choice(flag: str, text: str, known: Mapping[str, object] | tuple[str, ...]) -> str:
    if text not in known:
        raise ConfigError(f"{flag} must be {' or '.join(known)}, got {text!r}")
    return text
