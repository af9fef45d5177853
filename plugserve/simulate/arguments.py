"""The command line of `plugserve simulate`: its own flags, and the words that are settings."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from plugserve.core.errors import ConfigError
from plugserve.core.settings.command_flags import positive_number, split_flags
from plugserve.core.wire.trace_file import StepTimeFacts

USAGE = """\
usage: plugserve simulate --trace FILE [--scheduler NAME ...] [SETTING ...]

Replays a trace (JSON lines, as `plugserve serve --record-trace FILE` writes it) through the real engine, block
pool and schedulers, against a model of the time that steps take; prints a table, and draws a plot with --out.

  --trace FILE            the trace, or the file of a flight recorder
  --scheduler NAME        a scheduler to run, NAME or PLUGIN/NAME as for serve; repeat it to compare [fcfs]
  --step-time MODEL       BASE_MS,TOKEN_US[,ROW_US[,PAIR_US]]: a step takes BASE_MS, and so many us for each prompt
                          token, decoding sequence (like a token where left out) and attended pair [as measured in the
                          trace]
  --ttft-ms MS            a request is good if its first token comes within MS, and
  --tpot-ms MS            if its further tokens take at most MS each on average
  --rate X                replay arrivals X times as fast [1]
  --out FILE              plot: .html (with tables), .svg, or .png (needs matplotlib: plugserve[simulate])
  --json FILE             all figures, also by user

Settings are those of serve. What matters here: --max-num-seqs, --max-num-batched-tokens, --block-size,
--num-gpu-blocks-override, --max-model-len (each as in the trace unless given), --enable-prefix-caching,
--max-itl-ms, --scheduler-delay-factor, --max-num-queued-requests, --swap-space 0 (leaves out the trace's blocks in
host memory), --model (a name, where the trace holds several), --plugin, and the options of plugins
(--sjf.aging-tokens 32). Others are read and not used, so a server's --config can be given.
docs/simulate.md explains trace, figures and limits.
"""

_OWN = ("--trace", "--step-time", "--ttft-ms", "--tpot-ms", "--rate", "--out", "--json")


@dataclass(slots=True)
class Arguments:
    """The command's own flags, read. words are the rest: settings."""

    trace: str = ""
    schedulers: list[str] = field(default_factory=list)
    step_time: StepTimeFacts | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    rate: float = 1.0
    out: Path | None = None
    json: Path | None = None
    words: list[str] = field(default_factory=list)


def read_arguments(words: Sequence[str]) -> Arguments:
    """Raises ConfigError for a flag without a value, given twice, or with a value that it can't have."""
    flags = split_flags(words, _OWN, repeated=["--scheduler"])
    read = Arguments(words=flags.words)
    for names in flags.repeated["--scheduler"]:
        read.schedulers += [one for one in names.split(",") if one.strip()]
    _fill(read, flags.values)
    return read


def _fill(read: Arguments, given: dict[str, str]) -> None:
    if "--trace" not in given:
        raise ConfigError("plugserve simulate needs a trace: --trace FILE (serve --record-trace FILE writes one)")
    read.trace = given["--trace"]
    read.schedulers = list(dict.fromkeys(read.schedulers))
    read.step_time = _step_time(given["--step-time"]) if "--step-time" in given else None
    read.ttft_s = _milliseconds("--ttft-ms", given)
    read.tpot_s = _milliseconds("--tpot-ms", given)
    if "--rate" in given:
        read.rate = positive_number("--rate", given["--rate"])
    read.out = Path(given["--out"]) if "--out" in given else None
    read.json = Path(given["--json"]) if "--json" in given else None


def _milliseconds(name: str, given: dict[str, str]) -> float | None:
    return positive_number(name, given[name]) / 1e3 if name in given else None


def _step_time(text: str) -> StepTimeFacts:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    is_usable = all(math.isfinite(number) and number >= 0 for number in numbers) and any(numbers)
    if not 2 <= len(numbers) <= 4 or not is_usable:
        raise ConfigError(
            f"--step-time must be BASE_MS,TOKEN_US[,ROW_US[,PAIR_US]], such as 12.5,150, with numbers of at least 0, "
            f"got {text!r}"
        )
    return StepTimeFacts(*numbers)


def scheduler_words(schedulers: Sequence[str], installed: Collection[str]) -> list[str]:
    """Words that make every one of schedulers' plugins active: the first fills the slot, others come beside it."""
    words = ["--scheduler", schedulers[0]] if schedulers else []
    for name in schedulers[1:]:
        plugin, slash, strategy = name.rpartition("/")
        if (plugin if slash else strategy) in installed:
            words += ["--plugin", plugin if slash else strategy]
    return words
