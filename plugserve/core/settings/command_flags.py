"""The flags that a command has beside the settings: `plugserve chat --url URL`, `plugserve simulate --trace FILE`."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from plugserve.core.errors import ConfigError


@dataclass(slots=True)
class CommandFlags:
    """A command's own flags by their long names: values of those given once, of those that may be repeated, and the
    switches. words are all others, in their order."""

    values: dict[str, str] = field(default_factory=dict)
    repeated: dict[str, list[str]] = field(default_factory=dict)
    switches: set[str] = field(default_factory=set)
    words: list[str] = field(default_factory=list)


def split_flags(
    words: Sequence[str],
    own: Collection[str],
    *,
    repeated: Collection[str] = (),
    switches: Collection[str] = (),
    other_names: Mapping[str, str] | None = None,
) -> CommandFlags:
    """Take the command's flags out of words: --name VALUE and --name=VALUE, also with _ for -. Raises ConfigError for a
    flag without a value, and for one of own that is given twice."""
    flags = CommandFlags(repeated={name: [] for name in repeated})
    rest = list(words)
    while rest:
        word = rest.pop(0)
        spelt, has_value, value = word.partition("=")
        name = (other_names or {}).get(spelt, spelt.replace("_", "-"))
        if name in switches and not has_value:
            flags.switches.add(name)
            continue
        if name not in own and name not in repeated:
            flags.words.append(word)
            continue
        if not has_value:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"{name} needs a value")
            value = rest.pop(0)
        if name in repeated:
            flags.repeated[name].append(value)
        elif name in flags.values:
            raise ConfigError(f"{name} is given twice")
        else:
            flags.values[name] = value
    return flags


def positive_number(name: str, text: str) -> float:
    """The value of a flag that takes one. Raises ConfigError."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{name} must be a number above 0, got {text!r}")
    return value
