"""`plugserve replay` from its command line to its table."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

import orjson

from plugserve.core.errors import ConfigError
from plugserve.core.flight.flight_log import FlightFacts, FlightLog
from plugserve.core.plugin_system.needed_plugins import check_needed_plugins
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.key_file import all_keys
from plugserve.core.settings.log_setup import set_up_logging
from plugserve.core.settings.setting_names import flag
from plugserve.core.settings.settings_reader import Reading, read_selection, read_settings
from plugserve.replay.arguments import Arguments, read_arguments
from plugserve.replay.comparison import Pair, as_json, table
from plugserve.replay.local_target import LocalTarget
from plugserve.replay.recording import Measured, Recording, ReplayRequest, open_log, read_recording
from plugserve.replay.server_target import ServerTarget
from plugserve.replay.timeline import timeline

log = logging.getLogger(__name__)

_OF_URLS: Final = frozenset({"api_key", "api_key_file", "log_level", "config", "model"})


class Target(Protocol):
    """An engine in this process, or a server. None: it doesn't say."""

    max_model_len: int | None
    vocab_size: int | None

    def run(self, requests: Sequence[ReplayRequest], rate: float) -> list[Measured | str]: ...

    def close(self) -> None: ...


def replay(words: list[str], environ: Mapping[str, str]) -> int:
    """The exit code: 0, and 1 where a request failed that had not failed before."""
    arguments = read_arguments(words)
    flight = open_log(arguments.path)
    if arguments.shows:
        if arguments.words:
            raise ConfigError(f"unexpected argument {arguments.words[0]!r}: --show takes no settings")
        for line in timeline(flight, arguments.last):
            print(line if line.isprintable() else line.encode("unicode_escape").decode())
        return 0
    _check_out(arguments.json)
    if flight.facts.task != "generate":
        raise ConfigError(f"{arguments.path} is of an encoder ({flight.facts.model}); --show prints it")
    target = _target(arguments, environ, flight)
    try:
        recording = read_recording(flight, arguments.last, target.max_model_len, target.vocab_size)
        if not recording.requests:
            raise ConfigError(f"{arguments.path} holds no requests that can run again")
        print("\n".join(_about(recording, arguments)), flush=True)
        started_s = time.perf_counter()
        outcomes = target.run(recording.requests, arguments.rate)
        seconds = time.perf_counter() - started_s
    finally:
        target.close()
    return _report(recording, outcomes, seconds, arguments)


def _report(recording: Recording, outcomes: Sequence[Measured | str], seconds: float, arguments: Arguments) -> int:
    is_local = arguments.url is None
    pairs: list[Pair] = [
        (request, request.in_engine if is_local else request.in_server, again)
        for request, again in zip(recording.requests, outcomes, strict=True)
    ]
    num_tokens = sum(one.params.max_tokens for one, _, again in pairs if isinstance(again, Measured))
    print(f"replayed in {seconds:.1f} s, {num_tokens / seconds:.1f} generated tokens/s\n")
    print("\n".join(table(pairs)))
    failures = [again for _, _, again in pairs if isinstance(again, str)]
    if failures:
        print(f"\n{len(failures)} requests failed, the first: {failures[0]}")
    if arguments.json is not None:
        arguments.json.write_bytes(orjson.dumps(as_json(pairs)))
    return 1 if failures else 0


def _about(recording: Recording, arguments: Arguments) -> list[str]:
    requests = recording.requests
    num_prompt = sum(len(one.prompt) for one in requests)
    num_output = sum(one.params.max_tokens for one in requests)
    num_alive = sum(one.in_engine is None for one in requests)
    lines = [
        f"{len(requests)} requests of {recording.facts.model}, which arrived in {requests[-1].offset_s:.1f} s: "
        f"{num_prompt} prompt tokens, {num_output} generated"
    ]
    if recording.num_with_prompts < len(requests):
        lines.append(f"prompts: {recording.num_with_prompts} as recorded, the others made up, of the same lengths")
    if num_alive:
        lines.append(f"{num_alive} had not ended, and generate the tokens that they had by then")
    lines += [f"left out: {count} {reason}" for reason, count in sorted(recording.left_out.items())]
    if arguments.rate != 1:
        lines.append(f"they arrive {arguments.rate:g} times as fast")
    return lines


def _target(arguments: Arguments, environ: Mapping[str, str], flight: FlightLog) -> Target:
    words = arguments.words
    if arguments.url is None:
        words = [*_recorded_words(flight.facts, set(words)), *words]
    host = PluginHost.load(read_selection(words, environ))
    reading = _read(words, environ, host)
    set_up_logging(reading.settings.log_level if "log_level" in reading.given else "warning")
    for line in (*reading.warnings, *host.warnings):
        log.warning("%s", line)
    if arguments.url is not None:
        return _server(arguments.url, words, environ, reading, host)
    check_needed_plugins(reading.settings, host)
    return LocalTarget(reading.settings, host)


def _server(url: str, words: list[str], environ: Mapping[str, str], reading: Reading, host: PluginHost) -> ServerTarget:
    idle = sorted(_read(words, {}, host).given - _OF_URLS)
    if idle:
        raise ConfigError(f"{flag(idle[0])} has no effect with --url: the server has its own settings")
    settings = reading.settings
    keys = all_keys(settings.api_key, settings.api_key_file)
    model = settings.model[0] if "model" in reading.given and settings.model else ""
    return ServerTarget(url, keys[0] if keys else "", model)


def _read(words: list[str], environ: Mapping[str, str], host: PluginHost) -> Reading:
    return read_settings(
        words, environ, options=host.option_models(), active=host.active_names, installed=host.installed_names
    )


def _recorded_words(facts: FlightFacts, given: set[str]) -> list[str]:
    """Settings of the recorded engine that decide its times, unless they are given."""
    path = Path(facts.path)
    recorded: dict[str, object] = {
        "--model": facts.path if facts.path and path.exists() else facts.model,
        "--dtype": facts.dtype,
        "--max-num-seqs": facts.max_num_seqs,
        "--max-num-batched-tokens": facts.max_num_batched_tokens,
        "--max-model-len": facts.max_model_len,
        "--block-size": facts.block_size,
        "--num-gpu-blocks-override": facts.num_blocks,
    }
    names = {word.partition("=")[0] for word in given}
    words = [f"{name}={value}" for name, value in recorded.items() if value and name not in names]
    is_named = {"--enable-prefix-caching", "--no-enable-prefix-caching"} & names
    return [*words, "--enable-prefix-caching"] if facts.prefix_caching and not is_named else words


def _check_out(path: Path | None) -> None:
    if path is not None and not path.parent.is_dir():
        raise ConfigError(f"--json {path}: there is no folder {path.parent}")
