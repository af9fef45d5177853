"""The command line of `plugserve top`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from plugserve.core.errors import ConfigError
from plugserve.core.settings.command_flags import split_flags
from plugserve.core.wire.server_address import ServerAddress

USAGE = """\
usage: plugserve top [--url URL] [--api-key KEY] [--once] [--json]

Shows what a server does now: requests, latencies, models and their KV blocks, plugins, and the last requests with the
reason why they were slow. It reads GET /live and /live/requests once a second (docs/live.md).

  --url URL        the server [http://localhost:8000]
  --api-key KEY    the server's key; better as PLUGSERVE_API_KEY in the environment
  --once           print it once, and end; so it does where the output is no terminal
  --json           print the snapshots of /live as JSON, one a line

Keys: q ends it, p pauses it and goes on.
"""


@dataclass(frozen=True, slots=True)
class Arguments:
    """The command's flags, read. url has no path but a prefix of the server's."""

    url: str
    api_key: str = ""
    once: bool = False
    json: bool = False


def read_arguments(words: Sequence[str], environ: Mapping[str, str]) -> Arguments:
    """Raises ConfigError for anything else."""
    flags = split_flags(words, ("--url", "--api-key"), switches=("--once", "--json"))
    if flags.words:
        raise ConfigError(f"unexpected argument {flags.words[0]!r}; plugserve top --help shows what it takes")
    return Arguments(
        url=str(ServerAddress.read(flags.values.get("--url", "http://localhost:8000"))),
        api_key=flags.values.get("--api-key") or environ.get("PLUGSERVE_API_KEY", ""),
        once="--once" in flags.switches,
        json="--json" in flags.switches,
    )
