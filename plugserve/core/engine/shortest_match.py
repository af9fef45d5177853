"""The shortest text that completes a match of a regular expression, and tokens that spell it.

The expression becomes a Thompson NFA over characters; a breadth-first search from its end gives each state's distance
to a match (R. Thompson 1968; 0-1 BFS since empty transitions cost nothing). What was generated moves the set of states
on, once for each character. The caller must check a result against the grammar itself.
"""

from __future__ import annotations

import codecs
import json
import re
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser as regex_parser  # type: ignore[attr-defined]
from typing import Any, Final

_MAX_STATES: Final = 20_000
_MAX_ACTIVE_STATES: Final = 256
_START_STATE: Final = 0
_MAX_TOKEN_CHARACTERS: Final = 24
_FAR: Final = 1 << 30
_CATEGORIES: Final = {
    op.CATEGORY_DIGIT: r"\d",
    op.CATEGORY_NOT_DIGIT: r"\D",
    op.CATEGORY_SPACE: r"\s",
    op.CATEGORY_NOT_SPACE: r"\S",
    op.CATEGORY_WORD: r"\w",
    op.CATEGORY_NOT_WORD: r"\W",
}
_START: Final = re.compile(r"start: /((?:[^/\\]|\\.)*)/\Z", re.DOTALL)


class UnsupportedExpression(Exception):
    """The expression is too large, or has parts that this module doesn't support."""


def expression_of(grammar: str) -> str | None:
    """The regular expression that a grammar in llguidance's text form consists of; None for any other grammar."""
    if not grammar.startswith('{"grammars"'):
        return None
    parts = json.loads(grammar)["grammars"]
    found = _START.match(parts[0].get("lark_grammar") or "") if len(parts) == 1 else None
    return found[1].replace(r"\/", "/") if found else None


@dataclass(slots=True)
class _Nfa:
    """Transitions by state: empty ones, and the one over a character class (its text as in an expression)."""

    empty: list[list[int]] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    targets: array[int] = field(default_factory=lambda: array("i"))

    def add(self) -> int:
        if len(self.empty) >= _MAX_STATES:
            raise UnsupportedExpression(f"more than {_MAX_STATES} states")
        self.empty.append([])
        self.classes.append("")
        self.targets.append(-1)
        return len(self.empty) - 1

    def distances(self, end: int) -> array[int]:
        """Characters from each state to end."""
        into_empty: list[list[int]] = [[] for _ in self.empty]
        into_class: list[list[int]] = [[] for _ in self.empty]
        for state, targets in enumerate(self.empty):
            for target in targets:
                into_empty[target].append(state)
            if self.classes[state]:
                into_class[self.targets[state]].append(state)
        distance = array("i", [_FAR]) * len(self.empty)
        distance[end] = 0
        queue = deque([end])
        while queue:
            state = queue.popleft()
            for before in into_empty[state]:
                if distance[before] > distance[state]:
                    distance[before] = distance[state]
                    queue.appendleft(before)
            for before in into_class[state]:
                if distance[before] > distance[state] + 1:
                    distance[before] = distance[state] + 1
                    queue.append(before)
        return distance


class _Builder:
    """Adds the parsed parts of an expression to an NFA, from a state to the state that it returns."""

    def __init__(self) -> None:
        self.nfa = _Nfa()

    def sequence(self, parts: Iterable[tuple[Any, Any]], state: int) -> int:
        for kind, value in parts:
            state = self._part(kind, value, state)
        return state

    def _part(self, kind: Any, value: Any, state: int) -> int:
        if kind in (op.MAX_REPEAT, op.MIN_REPEAT):
            least, most, inner = value
            return self._repeat(least, most, inner, state)
        if kind is op.SUBPATTERN:
            return self.sequence(value[-1], state)
        if kind is op.BRANCH:
            return self._branch(value[1], state)
        if kind is op.AT and value in (op.AT_BEGINNING, op.AT_END, op.AT_BEGINNING_STRING, op.AT_END_STRING):
            return state
        after = self.nfa.add()
        self.nfa.classes[state] = _class_text(kind, value)
        self.nfa.targets[state] = after
        return after

    def _branch(self, ways: Iterable[Any], state: int) -> int:
        end = self.nfa.add()
        for way in ways:
            start = self.nfa.add()
            self.nfa.empty[state].append(start)
            self.nfa.empty[self.sequence(way, start)].append(end)
        return end

    def _repeat(self, least: int, most: Any, parts: Any, state: int) -> int:
        for _ in range(least):
            state = self.sequence(parts, self._fresh(state))
        if most is op.MAXREPEAT:
            start, end = self._fresh(state), self.nfa.add()
            self.nfa.empty[start].append(end)
            self.nfa.empty[self.sequence(parts, self._fresh(start))].append(start)
            return end
        end = self.nfa.add()
        for _ in range(most - least):
            self.nfa.empty[state].append(end)
            state = self.sequence(parts, self._fresh(state))
        self.nfa.empty[state].append(end)
        return end

    def _fresh(self, state: int) -> int:
        """A new state behind state, which may then have a transition over a class."""
        fresh = self.nfa.add()
        self.nfa.empty[state].append(fresh)
        return fresh


def _class_text(kind: Any, value: Any) -> str:
    """A character class as Python's re writes it."""
    if kind is op.LITERAL:
        return re.escape(chr(value))
    if kind is op.NOT_LITERAL:
        return f"[^{_escaped(value)}]"
    if kind is op.ANY:
        return "."
    if kind is op.IN:
        return f"[{''.join(_member_text(*member) for member in value)}]"
    raise UnsupportedExpression(str(kind))


def _member_text(kind: Any, value: Any) -> str:
    if kind is op.NEGATE:
        return "^"
    if kind is op.LITERAL:
        return _escaped(value)
    if kind is op.RANGE:
        return f"{_escaped(value[0])}-{_escaped(value[1])}"
    if kind is op.CATEGORY and value in _CATEGORIES:
        return _CATEGORIES[value]
    raise UnsupportedExpression(f"{kind} in a class")


def _escaped(code: int) -> str:
    return f"\\U{code:08x}"


@lru_cache(4096)
def _pattern(class_text: str) -> re.Pattern[str]:
    return re.compile(class_text)


@lru_cache(65536)
def _is_in(class_text: str, character: str) -> bool:
    return _pattern(class_text).fullmatch(character) is not None


@lru_cache(64)
def _read(expression: str) -> tuple[_Nfa, array[int]]:
    """An expression's NFA, which starts at _START_STATE, and the distances to its end."""
    builder = _Builder()
    try:
        parsed = regex_parser.parse(expression)
        end = builder.sequence(parsed, builder.nfa.add())
    except (re.error, RecursionError, OverflowError) as error:
        raise UnsupportedExpression(str(error)) from error
    return builder.nfa, builder.nfa.distances(end)


class PartialMatch:
    """The state of matching a text against an expression. Raises UnsupportedExpression for one that it can't parse."""

    def __init__(self, expression: str) -> None:
        self._nfa, self._distance = _read(expression)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._states = self._closure([_START_STATE])

    def feed(self, spelt: bytes) -> None:
        """Move on over generated bytes; a character counts once it is whole. Raises UnsupportedExpression where that
        gets expensive."""
        nfa = self._nfa
        for character in self._decoder.decode(spelt):
            if len(self._states) > _MAX_ACTIVE_STATES:
                raise UnsupportedExpression(f"more than {_MAX_ACTIVE_STATES} states at once")
            self._states = self._closure(
                nfa.targets[state]
                for state in self._states
                if nfa.classes[state] and _is_in(nfa.classes[state], character)
            )

    @property
    def is_inside_character(self) -> bool:
        """The bytes so far end within a character."""
        return bool(self._decoder.getstate()[0])

    @property
    def num_missing(self) -> int | None:
        """The least number of characters to a match; None where no match is left."""
        least = min((self._distance[state] for state in self._states), default=_FAR)
        return None if least == _FAR else least

    def missing(self) -> list[str]:
        """The classes of the characters that complete a shortest match, in order."""
        distance, nfa = self._distance, self._nfa
        state = min(self._states, key=distance.__getitem__)
        classes = []
        while distance[state]:
            if nfa.classes[state] and distance[nfa.targets[state]] < distance[state]:
                classes.append(nfa.classes[state])
                state = nfa.targets[state]
            else:
                state = next(one for one in self._closure([state]) if self._steps_down(one, distance[state]))
        return classes

    def _steps_down(self, state: int, distance: int) -> bool:
        is_nearer = bool(self._nfa.classes[state]) and self._distance[self._nfa.targets[state]] < distance
        return is_nearer and self._distance[state] == distance

    def _closure(self, states: Iterable[int]) -> set[int]:
        found = set(states)
        stack = list(found)
        while stack:
            for target in self._nfa.empty[stack.pop()]:
                if target not in found and self._distance[target] < _FAR:
                    found.add(target)
                    stack.append(target)
        return found


class Speller:
    """Tokens that spell a text of given classes, long tokens first. texts holds each token's text; "" for tokens that
    have none or must not be used."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts
        self._by_text = {text: token for token, text in reversed(list(enumerate(texts))) if text}
        self._of_class: dict[str, list[int]] = {}

    def spell(self, classes: Sequence[str]) -> list[int] | None:
        """Tokens for one text that matches classes, or None where some class has no token."""
        tokens: list[int] = []
        for class_text, length in _runs(classes):
            of_class = self._longest(class_text)
            while length:
                token = of_class[min(length, _MAX_TOKEN_CHARACTERS)]
                if token < 0:
                    return None
                tokens.append(token)
                length -= len(self._texts[token])
        return self._joined(tokens)

    def _joined(self, tokens: list[int]) -> list[int]:
        """The same text, with neighbours put together where one token spells both."""
        joined: list[int] = []
        for token in tokens:
            joined.append(token)
            while len(joined) > 1:
                both = self._by_text.get(self._texts[joined[-2]] + self._texts[joined[-1]])
                if both is None:
                    break
                joined[-2:] = [both]
        return joined

    def _longest(self, class_text: str) -> list[int]:
        """For each length up to the longest: the longest token of the class that isn't longer, -1 for none."""
        if class_text not in self._of_class:
            is_of_class = re.compile(f"(?:{class_text})+").fullmatch
            best = [-1] * (_MAX_TOKEN_CHARACTERS + 1)
            for text, token in self._by_text.items():
                is_usable = len(text) == 1 or not text.isspace()  # words rather than runs of blanks
                if len(text) <= _MAX_TOKEN_CHARACTERS and best[len(text)] < 0 and is_usable and is_of_class(text):
                    best[len(text)] = token
            for length in range(1, len(best)):
                best[length] = best[length] if best[length] >= 0 else best[length - 1]
            self._of_class[class_text] = best
        return self._of_class[class_text]


def _runs(classes: Sequence[str]) -> Iterator[tuple[str, int]]:
    """(class, how often it comes in a row)."""
    start = 0
    for index in range(1, len(classes) + 1):
        if index == len(classes) or classes[index] != classes[start]:
            yield classes[start], index - start
            start = index
