"""Llama 3.2's and 4's way: the answer is a Python list of calls, [get_weather(city="Paris"), clock()]."""

from __future__ import annotations

import ast
import json
import re
from typing import Final

from plugserve.plugins.tool_parsers.calls_in_text import CallsInText, Notation, Reader

_MAX_CHARACTERS: Final = 64 * 1024
_SPECIAL_TOKENS: Final = ("<|python_start|>", "<|python_end|>")
_MAX_NAME: Final = 128
_NAME_START: Final = re.compile(r"[A-Za-z_]")
_IN_NAME: Final = re.compile(r"[\w.]+")
_PLAIN: Final = re.compile(r"[^'\"()\[\]{}]+")
_IN_STRING: Final = {'"': re.compile(r'(?:[^"\\]|\\.)+', re.DOTALL), "'": re.compile(r"(?:[^'\\]|\\.)+", re.DOTALL)}


class _PythonCall:
    """One name(key=value, ...), emitted when it is whole: only then is it certain that the values are literals."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.is_certain = False
        self.is_complete = False
        self.is_broken = False
        self._parts: list[str] = []
        self._num_characters = 0
        self._depth = 0
        self._is_closed = False
        self._quote = ""
        self._held = ""

    def push(self, text: str) -> tuple[str, str]:
        text, self._held = self._held + text, ""
        at = 0
        while at < len(text) and not self.is_broken:
            end = self._next(text, at)
            if end == at:
                self._held = text[at:]  # a backslash at the end
                return "", ""
            self._parts.append(text[at:end])
            self._num_characters += end - at
            self.is_broken |= self._num_characters > (_MAX_CHARACTERS if self._depth else _MAX_NAME)
            at = end
            if self._is_closed:
                return self._read(), text[at:]
        return "", text[at:]

    def _next(self, text: str, at: int) -> int:
        """The end of the next token; its start if it is incomplete."""
        if self._quote:
            inside = _IN_STRING[self._quote].match(text, at)
            if inside is not None:
                return inside.end()
            if text[at] == "\\":
                return at
            self._quote = ""
            return at + 1
        plain = (_PLAIN if self._depth else _IN_NAME).match(text, at)
        if plain is not None:
            return plain.end()
        mark = text[at]
        if self._depth == 0 and mark != "(":
            self.is_broken = True
        elif mark in "'\"":
            self._quote = mark
        else:
            self._depth += 1 if mark in "([{" else -1
            self._is_closed = self._depth == 0
        return at + 1

    def _read(self) -> str:
        """The arguments as JSON."""
        self.is_complete = True
        try:
            node = ast.parse("".join(self._parts), mode="eval").body
            self.name, arguments = _call(node)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            self.is_broken = True
            return ""
        self.is_certain = True
        return arguments


def _call(node: ast.expr) -> tuple[str, str]:
    if not isinstance(node, ast.Call) or node.args or any(word.arg is None for word in node.keywords):
        raise ValueError("not a call with named arguments")
    arguments = {str(word.arg): ast.literal_eval(word.value) for word in node.keywords}
    return ast.unparse(node.func), json.dumps(arguments, ensure_ascii=False, allow_nan=False)


def _reader(first: str) -> Reader | None:
    return _PythonCall() if _NAME_START.match(first) else None


_NOTATION: Final = Notation(
    openers=("[", *_SPECIAL_TOKENS),
    reader=_reader,
    fillers=("[", "]", ",", *_SPECIAL_TOKENS),
    is_at_start=True,
    special_tokens=_SPECIAL_TOKENS,
)


def pythonic(tools: object = ()) -> CallsInText:
    return CallsInText(_NOTATION)
