"""Strings that record which of their characters a client wrote, while a chat template processes them.

A ClientText is the string that it holds in every respect; what is made from it (slices, sums, joins, other cases) is
marked character by character. If an operation hides the origin of characters, its whole result counts as the client's:
then a template's control token may be encoded as text, but never a client's text as a control token.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, SupportsIndex

from jinja2 import Environment, Template, Undefined
from jinja2.nodes import EvalContext
from jinja2.runtime import Context, Macro

_CLIENT: Final = b"\x01"
_PROBE: Final = "\U0010fffe"  # no character of any text: a noncharacter of the last plane
_KEPT: Final = "\"\\/&<>'{}%"
_KEPT_BETWEEN: Final = re.compile(f"(?<={_PROBE})([\\s{re.escape(_KEPT)}]+)(?={_PROBE})")
_WITHOUT_TEXT: Final = (str, int, float, type(None), Undefined, Environment, Context, EvalContext, Macro, Template)


class ClientText(str):
    """text with one mark a character: 1 the client's, 0 the template's. All are the client's unless marks are given."""

    __slots__ = ("_marks",)
    _marks: bytes

    def __new__(cls, text: object = "", marks: bytes | None = None) -> ClientText:
        self = str.__new__(cls, text)
        self._marks = _CLIENT * len(self) if marks is None else marks
        return self

    def __str__(self) -> str:
        return self

    # ---- one character after the other

    def __add__(self, other: str) -> ClientText:
        if not isinstance(other, str):
            return NotImplemented
        return ClientText(str.__add__(self, other), self._marks + marks_of(other))

    def __radd__(self, other: str) -> ClientText:
        return ClientText(str.__add__(other, self), marks_of(other) + self._marks)

    def __mul__(self, count: SupportsIndex) -> ClientText:
        return ClientText(str.__mul__(self, count), self._marks * count)

    __rmul__ = __mul__

    def __getitem__(self, key: SupportsIndex | slice) -> ClientText:
        text = str.__getitem__(self, key)
        if isinstance(key, slice):
            return ClientText(text, self._marks[key])
        return ClientText(text, bytes((self._marks[key],)))

    def __iter__(self) -> Iterator[str]:
        for index in range(len(self)):
            yield self[index]

    def __mod__(self, values: Any) -> Any:
        return traced(str.__mod__, (self, values), {})

    def __rmod__(self, template: str) -> Any:
        return traced(str.__mod__, (template, self), {})

    # ---- parts

    def lstrip(self, chars: str | None = None, /) -> ClientText:
        return self[len(self) - len(str.lstrip(self, chars)) :]

    def rstrip(self, chars: str | None = None, /) -> ClientText:
        return self[: len(str.rstrip(self, chars))]

    def strip(self, chars: str | None = None, /) -> ClientText:
        return self.lstrip(chars).rstrip(chars)

    def removeprefix(self, prefix: str, /) -> ClientText:
        return self[len(self) - len(str.removeprefix(self, prefix)) :]

    def removesuffix(self, suffix: str, /) -> ClientText:
        return self[: len(str.removesuffix(self, suffix))]

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        pieces = str.split(self, sep, maxsplit)
        return self._located(pieces) if sep is None else self._between(pieces, len(sep))

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        pieces = str.rsplit(self, sep, maxsplit)
        return self._located(pieces) if sep is None else self._between(pieces, len(sep))

    def splitlines(self, keepends: bool = False) -> list[str]:
        lines = self._between(str.splitlines(self, True), 0)
        return lines if keepends else [line[: len(str.splitlines(line)[0])] for line in lines]

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        head, found, tail = self._between(list(str.partition(self, sep)), 0)
        return head, found, tail

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        head, found, tail = self._between(list(str.rpartition(self, sep)), 0)
        return head, found, tail

    def _between(self, pieces: list[str], gap: int) -> list[str]:
        """pieces of self that follow each other with gap characters between them."""
        found: list[str] = []
        start = 0
        for piece in pieces:
            found.append(self[start : start + len(piece)])
            start += len(piece) + gap
        return found

    def _located(self, pieces: list[str]) -> list[str]:
        """pieces of self with white space between them."""
        found: list[str] = []
        start = 0
        for piece in pieces:
            start = str.index(self, piece, start)
            found.append(self[start : start + len(piece)])
            start += len(piece)
        return found

    # ---- others

    def join(self, parts: Iterable[str], /) -> str:
        parts = list(parts)
        str.join(self, parts)  # raises what it raises for parts that aren't strings
        return concatenated(piece for index, part in enumerate(parts) for piece in ((self, part) if index else (part,)))

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        if not old:
            return ClientText(str.replace(self, old, new, count))
        pieces = self._between(str.split(self, old, count), len(old))
        return ClientText(new, marks_of(new)).join(pieces)


def _same_length(name: str) -> Callable[..., ClientText]:
    """A method that changes letters; where their number changes, the result counts as the client's."""
    change = getattr(str, name)

    def method(self: ClientText) -> ClientText:
        text = change(self)
        return ClientText(text, self._marks if len(text) == len(self) else None)

    return method


def _whole(name: str) -> Callable[..., ClientText]:
    change = getattr(str, name)

    def method(self: ClientText, *args: Any, **kwargs: Any) -> ClientText:
        return ClientText(change(self, *args, **kwargs))

    return method


for _name in ("upper", "lower", "title", "capitalize", "swapcase", "casefold"):
    setattr(ClientText, _name, _same_length(_name))
for _name in ("center", "ljust", "rjust", "zfill", "expandtabs", "translate"):
    setattr(ClientText, _name, _whole(_name))


def marks_of(text: str) -> bytes:
    """One mark for each character of text; a plain string is the template's."""
    return text._marks if isinstance(text, ClientText) else bytes(len(text))


def client_spans(text: str) -> list[int]:
    """[start, end, start, end, ...]: where text is the client's."""
    return [edge for found in re.finditer(b"\x01+", marks_of(text)) for edge in found.span()]


def concatenated(parts: Iterable[str]) -> str:
    """ "".join(parts), with their marks."""
    parts = list(parts)
    text = "".join(parts)
    if not any(isinstance(part, ClientText) for part in parts):
        return text
    return ClientText(text, b"".join(map(marks_of, parts)))


def of_client(value: Any) -> Any:
    """value (JSON) with every string of it, keys included, as the client's."""
    if isinstance(value, str):
        return ClientText(value)
    if isinstance(value, list):
        return [of_client(entry) for entry in value]
    if isinstance(value, dict):
        return {of_client(name): of_client(entry) for name, entry in value.items()}
    return value


def holds_client_text(value: Any) -> bool:
    """A string of the client's is in value, or may be: in what isn't JSON."""
    if isinstance(value, ClientText):
        return 1 in value._marks
    if isinstance(value, dict):
        return any(holds_client_text(name) or holds_client_text(entry) for name, entry in value.items())
    if isinstance(value, list | tuple):
        return any(map(holds_client_text, value))
    return not isinstance(value, _WITHOUT_TEXT)


def traced(work: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """work's result for the arguments, marked if it is a string and the arguments hold client text. work is called
    again with the client's letters replaced by a probe character that occurs in no text: if the results differ only
    there, the probe marks the client's characters; otherwise all of the result counts as the client's.
    """
    try:
        plain_args, plain_kwargs = _replaced((args, kwargs), str.__str__)
        probe_args, probe_kwargs = _replaced((args, kwargs), _probed)
    except _UntraceableError:
        result = work(*args, **kwargs)
        return ClientText(result) if isinstance(result, str) else result
    result = work(*plain_args, **plain_kwargs)
    if not isinstance(result, str) or not holds_client_text((args, kwargs)):
        return result
    try:
        seen = work(*probe_args, **probe_kwargs)
    except Exception:  # the result depends on the text itself: no probe in it
        return ClientText(result)
    return ClientText(result, _marks_seen(result, seen))


def _marks_seen(result: str, seen: Any) -> bytes | None:
    """One mark for each character of result, by where seen has the probe; None where the two differ elsewhere."""
    if not isinstance(seen, str) or len(result) != len(seen):
        return None
    if any(one != other and other != _PROBE for one, other in zip(result, seen, strict=True)):
        return None
    marks = bytearray(other == _PROBE for other in seen)
    for start, end in (found.span(1) for found in _KEPT_BETWEEN.finditer(seen)):
        marks[start:end] = _CLIENT * (end - start)
    return bytes(marks)


def _probed(text: ClientText) -> str:
    """text with the client's characters replaced, but for those that mean something to layout, JSON or HTML."""
    return "".join(
        _PROBE if mark and not (character.isspace() or character in _KEPT) else character
        for character, mark in zip(str.__str__(text), marks_of(text), strict=True)
    )


class _UntraceableError(Exception):
    """An argument may hold client text that can't be replaced."""


def _replaced(value: Any, change: Callable[[ClientText], str]) -> Any:
    """value with change applied to each ClientText in it."""
    if isinstance(value, ClientText):
        return change(value)
    if isinstance(value, list):
        return [_replaced(entry, change) for entry in value]
    if isinstance(value, tuple):
        return tuple(_replaced(entry, change) for entry in value)
    if isinstance(value, dict):
        return {_replaced(name, change): _replaced(entry, change) for name, entry in value.items()}
    if isinstance(value, _WITHOUT_TEXT):
        return value
    raise _UntraceableError
