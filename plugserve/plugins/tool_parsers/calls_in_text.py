"""Finds calls between marks in a text, for all built-in tool parsers. A Reader parses one call.

A text goes through three places: outside (content; a mark may begin), around calls (after a mark; white space and
fillers), and inside one call. Text that turns out not to be a call is content. The time is linear in the text.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from plugserve.core.contracts.answers import AnswerDelta, ToolCallDelta


class Reader(Protocol):
    """One call as it grows. is_certain: it is a call, and name is known; is_broken: its text is malformed."""

    name: str | None
    is_certain: bool

    @property
    def is_complete(self) -> bool: ...

    @property
    def is_broken(self) -> bool: ...

    def push(self, text: str) -> tuple[str, str]:
        """(more of the arguments, what comes after the call); the second is "" while the call goes on."""


@dataclass(frozen=True, slots=True)
class Notation:
    """The marks of calls in a notation. openers: marks that begin them, anywhere or (is_at_start) only where an answer
    begins, and is taken away; fillers may stand around calls; closers end them. reader: what reads a call that begins
    with this character; None where none can begin with it."""

    openers: Sequence[str]
    reader: Callable[[str], Reader | None]
    fillers: Sequence[str] = ()
    closers: Sequence[str] = ()
    is_at_start: bool = False
    special_tokens: Sequence[str] = ()


class _Content:
    """The text that is no call. White space beside calls does not count; texts around a call stay on lines apart."""

    def __init__(self) -> None:
        self._space = ""
        self._is_after_call = False
        self._has_content = False

    def emit(self, text: str) -> str:
        text = self._space + text
        if self._is_after_call:
            text = text.lstrip()
            if not text:
                return ""
            text = ("\n" if self._has_content else "") + text
            self._is_after_call = False
        emitted = text.rstrip()
        self._space = text[len(emitted) :]
        self._has_content |= bool(emitted)
        return emitted

    def note_call(self) -> None:
        self._space = ""
        self._is_after_call = True

    def end(self) -> str:
        space, self._space = self._space, ""
        return space


class CallsInText:
    """One answer in one notation; see plugserve.core.contracts.answers.ToolParser."""

    def __init__(self, notation: Notation) -> None:
        self.special_tokens: Collection[str] = notation.special_tokens
        self._notation = notation
        self._step: Callable[[str], str] = self._at_start if notation.is_at_start else self._outside
        self._content = _Content()
        self._held = ""
        self._undecided: list[str] = []  # what is content again if no call follows
        self._reader: Reader | None = None
        self._has_call = False  # since the mark
        self._num_calls = 0
        self._texts: list[str] = []
        self._deltas: list[ToolCallDelta] = []

    def feed(self, text: str) -> AnswerDelta:
        rest = self._held + text
        self._held = ""
        while rest:
            rest = self._step(rest)
        return self._news()

    def finish(self) -> AnswerDelta:
        is_between_calls = self._step == self._around and self._has_call
        if not is_between_calls:
            self._texts.append(self._content.emit("".join(self._undecided) + self._held))
        self._texts.append(self._content.end())
        return self._news()

    def _news(self) -> AnswerDelta:
        delta = AnswerDelta("".join(self._texts), self._deltas)
        self._texts, self._deltas = [], []
        return delta

    # ---- places: each takes a text and returns what is left of it

    def _at_start(self, text: str) -> str:
        """Only white space so far."""
        begun = text.lstrip()
        if not begun or _may_grow(begun, self._notation.openers):
            self._held = text
            return ""
        opener = _longest_start(begun, self._notation.openers)
        if opener is None:
            self._step = self._plain
            return text
        self._texts.append(self._content.emit(text[: len(text) - len(begun)]))
        return self._open(opener, begun)

    def _plain(self, text: str) -> str:
        self._texts.append(self._content.emit(text))
        return ""

    def _outside(self, text: str) -> str:
        found = [(at, mark) for mark in self._notation.openers if (at := text.find(mark)) >= 0]
        if not found:
            num_held = max(_overlap(text, mark) for mark in self._notation.openers)
            self._held = text[len(text) - num_held :]
            return self._plain(text[: len(text) - num_held])
        at, mark = min(found)
        self._plain(text[:at])
        return self._open(mark, text[at:])

    def _open(self, opener: str, text: str) -> str:
        self._step = self._around
        self._has_call = False
        if self._notation.reader(opener[0]) is not None or opener in self._notation.fillers:
            return text
        self._undecided.append(opener)
        return text[len(opener) :]

    def _around(self, text: str) -> str:
        begun = text.lstrip()
        self._undecided.append(text[: len(text) - len(begun)])
        marks = (*self._notation.fillers, *self._notation.closers)
        if not begun or _may_grow(begun, marks):
            self._held = begun
            return ""
        mark = _longest_start(begun, marks)
        if mark is not None:
            self._undecided.append(mark)
            if mark in self._notation.closers:
                self._leave(is_text=not self._has_call)
            return begun[len(mark) :]
        self._reader = self._notation.reader(begun[0])
        if self._reader is None:
            self._leave(is_text=not self._has_call)
            return begun
        self._step = self._inside
        return begun

    def _inside(self, text: str) -> str:
        reader = self._reader
        assert reader is not None
        was_certain = reader.is_certain
        arguments, rest = reader.push(text)
        if reader.is_certain and not was_certain:
            self._content.note_call()
            self._undecided.clear()
            self._has_call = True
            self._num_calls += 1
        elif not reader.is_certain:
            self._undecided.append(text)
            if rest:  # it may begin in an earlier piece
                held = "".join(self._undecided)
                self._undecided = [held[: len(held) - len(rest)]]
        name = None if was_certain else reader.name
        if reader.is_certain and (arguments or name is not None):
            self._deltas.append(ToolCallDelta(self._num_calls - 1, arguments, name))
        if reader.is_broken:
            self._leave(is_text=not reader.is_certain)
        elif reader.is_complete:
            self._step = self._around
        return rest

    def _leave(self, *, is_text: bool) -> None:
        """No more calls here; is_text: what was held is content."""
        if is_text:
            self._texts.append(self._content.emit("".join(self._undecided)))
        self._undecided.clear()
        self._step = self._plain if self._notation.is_at_start else self._outside


def _may_grow(text: str, marks: Sequence[str]) -> bool:
    """text is the beginning of a mark that is longer."""
    return any(len(mark) > len(text) and mark.startswith(text) for mark in marks)


def _longest_start(text: str, marks: Sequence[str]) -> str | None:
    return max((mark for mark in marks if text.startswith(mark)), key=len, default=None)


def _overlap(text: str, mark: str) -> int:
    """Length of the longest proper beginning of mark that text ends with."""
    return next((size for size in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:size])), 0)
