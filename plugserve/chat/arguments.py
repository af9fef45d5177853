"""The command line of `plugserve chat`: its own flags, and the words that are settings of a server that it starts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from plugserve.core.errors import ConfigError
from plugserve.core.settings.command_flags import split_flags

USAGE = """\
usage: plugserve chat [--url URL | --model MODEL] [--system TEXT] [--set NAME=VALUE ...] [SETTING ...]

Chat in a terminal, with a server's public API. Without --url it starts a server of its own on this machine (of the
embedded model without --model), with the given settings, and stops it at the end.

  --url URL          a server, such as http://localhost:8000; any that speaks the OpenAI API
  --model MODEL      with --url the name of one of its models [the first]; else the model to serve
  --api-key KEY      the server's key; better as PLUGSERVE_API_KEY in the environment
  --system TEXT      system prompt
  --set NAME=VALUE   a field of each request, such as temperature=0.7 or max_tokens=200; repeat it
  --no-history       don't keep typed lines for the next chat

Input that is not a terminal is one message, and only its answer is printed:  echo "Tell a joke." | plugserve chat
In the chat /help lists commands. docs/chat.md explains them.
"""

_OWN = ("--url", "--model", "--api-key", "--system")
_SWITCH = "--no-history"


@dataclass(slots=True)
class Arguments:
    """The command's own flags, read. words are the rest: settings of a server that the command starts."""

    url: str | None = None
    model: str | None = None
    api_key: str | None = None
    system: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    keeps_history: bool = True
    words: list[str] = field(default_factory=list)


def read_arguments(words: Sequence[str], environ: Mapping[str, str]) -> Arguments:
    """Raises ConfigError for a flag without a value, given twice, or with a value that it can't have."""
    flags = split_flags(words, _OWN, repeated=["--set"], switches=[_SWITCH])
    given = flags.values
    read = Arguments(words=flags.words, keeps_history=_SWITCH not in flags.switches)
    for value in flags.repeated["--set"]:
        put_field(read.fields, value, "--set")
    read.url = _url(given["--url"]) if "--url" in given else None
    read.model, read.system = given.get("--model"), given.get("--system")
    read.api_key = given.get("--api-key") or environ.get("PLUGSERVE_API_KEY")
    _check_words(read)
    return read


def put_field(fields: dict[str, Any], text: str, place: str) -> None:
    """Set a field of requests by NAME=VALUE; the value is JSON, or text where it isn't. Raises ConfigError."""
    name, equals, value = text.partition("=")
    name = name.strip().replace("-", "_")
    if not equals or not name.isidentifier():
        raise ConfigError(f"{place} must be NAME=VALUE, such as temperature=0.7, got {text!r}")
    if name in ("messages", "stream", "model", "n"):
        raise ConfigError(f"{place} can't set {name}: the chat does")
    try:
        fields[name] = json.loads(value)
    except ValueError:
        fields[name] = value.strip()


def _url(text: str) -> str:
    """The server's address, without /v1. Raises ConfigError."""
    parts = urlsplit(text.strip())
    try:
        port_is_valid = parts.port != 0
    except ValueError:
        port_is_valid = False
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_valid or parts.query:
        raise ConfigError(f"--url must be http://HOST:PORT or https://HOST:PORT, got {text!r}")
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/').removesuffix('/v1')}"


def _check_words(read: Arguments) -> None:
    """Raises ConfigError for what would be taken for something else."""
    if not read.words:
        return
    first = read.words[0]
    if read.url is not None:
        raise ConfigError(f"unexpected argument {first!r}: settings are for a server that chat starts, not for --url")
    if not first.startswith("-"):
        raise ConfigError(f"unexpected argument {first!r}; a model is named with --model, a message comes from a pipe")
