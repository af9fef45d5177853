"""The command line of `plugserve replay`: its own flags, and the words that are settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from plugserve.core.errors import ConfigError
from plugserve.core.settings.command_flags import positive_number, split_flags

USAGE = """\
usage: plugserve replay FILE [--show] [--url URL] [--rate X] [--last N] [--json FILE] [SETTING ...]

Runs the requests of a flight recorder's file again, with their arrival times, lengths and sampling parameters, and
compares the times. A server keeps such a file when an engine dies, and logs its path. Prompts are the recorded ones
where they were recorded (--flight-recorder-prompts), else made up, of the same lengths and with the same common
beginnings.

  FILE              the file
  --show            don't run anything: print what happened, request by request and step by step
  --url URL         a running server (its key: --api-key or PLUGSERVE_API_KEY; its model: --model [its first]) instead
                    of an engine in this process
  --rate X          let requests arrive X times as fast [1]
  --last N          the last N requests only
  --json FILE       all times, request by request

Settings are those of serve, for the engine in this process. As recorded unless given: --model, --dtype,
--max-num-seqs, --max-num-batched-tokens, --max-model-len, --block-size, --num-gpu-blocks-override and
--enable-prefix-caching.
docs/flight-recorder.md explains it.
"""

_OWN = ("--url", "--rate", "--last", "--json")


@dataclass(slots=True)
class Arguments:
    """The command's own flags, read. words are the rest: settings."""

    path: Path
    shows: bool = False
    url: str | None = None
    rate: float = 1.0
    last: int | None = None
    json: Path | None = None
    words: list[str] = field(default_factory=list)


def read_arguments(words: Sequence[str]) -> Arguments:
    """Raises ConfigError for a flag without a value, given twice, or with a value that it can't have."""
    flags = split_flags(words, _OWN, switches=("--show",))
    if not flags.words or flags.words[0].startswith("-"):
        raise ConfigError("replay needs a flight recorder's file: plugserve replay FILE")
    given = flags.values
    read = Arguments(Path(flags.words[0]).expanduser(), shows="--show" in flags.switches, words=flags.words[1:])
    read.url = given.get("--url")
    read.rate = positive_number("--rate", given.get("--rate", "1"))
    read.last = _count(given["--last"]) if "--last" in given else None
    read.json = Path(given["--json"]).expanduser() if "--json" in given else None
    if read.shows and (read.url or read.json or "--rate" in given):
        raise ConfigError("--show runs nothing; leave --url, --rate and --json out")
    return read


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise ConfigError(f"--last must be a whole number of at least 1, got {text!r}")
    return int(text)
