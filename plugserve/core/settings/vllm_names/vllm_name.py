"""A setting of vLLM, and what becomes of its value."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from plugserve.core.errors import ConfigError

Kind = Literal["flag", "list", "value"]
_LONGEST_VALUE = 60


@dataclass(frozen=True, slots=True)
class Taken:
    """What a value means here: settings, entries of tables by setting, plugins to activate, options by plugin, lines
    for the user."""

    values: Mapping[str, Any] = field(default_factory=dict)
    plugins: tuple[str, ...] = ()
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    entries: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


Take = Callable[[Any, str], Taken]
"""Gets a value and its place as the user wrote it; raises ConfigError for a value that can't be honoured."""


@dataclass(frozen=True, slots=True)
class VllmName:
    """One setting of vLLM. kind and takes_many: as in setting_names.Name. same: values, as text, that ask for what
    plugserve does anyway. is_json: the value is a JSON object, whose keys may also be given as --NAME.KEY."""

    take: Take
    kind: Kind = "value"
    takes_many: bool = False
    same: tuple[str, ...] = ()
    is_json: bool = False

    def asks_for_nothing(self, value: Any) -> bool:
        """True for a value that needs no line: what plugserve does anyway."""
        return as_text(value) in self.same


@dataclass(frozen=True, slots=True)
class Reason:
    """Names with a common reason, separated by spaces: of settings that take a value, flags, and lists. same: by name,
    the values that ask for what plugserve does anyway, separated by spaces; a flag without an entry has "false"."""

    why: str
    values: str = ""
    flags: str = ""
    lists: str = ""
    same: Mapping[str, str] = field(default_factory=dict)
    is_secret: bool = False

    def names(self) -> list[str]:
        return [*self.values.split(), *self.flags.split(), *self.lists.split()]

    def entries(self, take: Take) -> Iterator[tuple[str, VllmName]]:
        for kind, names in (("value", self.values), ("flag", self.flags), ("list", self.lists)):
            for name in names.split():
                same = self.same.get(name, "false" if kind == "flag" else "")
                yield name, VllmName(take, kind, takes_many=kind == "list", same=tuple(same.split()))  # type: ignore[arg-type]


def ignore(reason: Reason) -> Take:
    """Accepts any value with a warning."""

    def take(value: Any, place: str) -> Taken:
        return Taken(warnings=(f"{shown(value, place)} has no effect here: {reason.why}",))

    return take


def refuse(reason: Reason) -> Take:
    """Refuses every value that asks for something."""

    def take(value: Any, place: str) -> Taken:
        raise ConfigError(f"{place if reason.is_secret else shown(value, place)} is not supported: {reason.why}")

    return take


def shown(value: Any, place: str) -> str:
    """The place with the value, cut to a readable length; a flag alone where it is on."""
    if as_text(value) == "true":
        return place
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"{place} {text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + '...'}"


def as_text(value: Any) -> str:
    """A value in lower case, equal for 1, 1.0 and "1", and for True and "true"."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, list):
        return " ".join(map(as_text, value))
    return str(value).strip().lower()
