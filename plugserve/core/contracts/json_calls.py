"""Incremental parsers of tool calls that a model writes as JSON, for one call without the text around it.

Output that was returned is never taken back: the joined results are the same for every way to cut the text into pieces.
The time is linear in the length of the text.
"""

from __future__ import annotations

import json
import re
from typing import Final

_MAX_DEPTH: Final = 200
_SPACE: Final = " \t\r\n"
_PLAIN: Final = re.compile(r'[^"\\\x00-\x1f]+')
_ESCAPE: Final = re.compile(r'\\(?:["\\/bfnrt]|u[0-9A-Fa-f]{4})')
_ESCAPE_BEGUN: Final = re.compile(r"\\(?:u[0-9A-Fa-f]{0,3})?\Z")
_WORD: Final = re.compile(r"[-+.0-9A-Za-z]+")
_SCALAR: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|true|false|null")
_ARGUMENT_KEYS: Final = ("arguments", "parameters")


class JsonValue:
    """One JSON value. Raw line breaks and tabs in strings, which models write, become escapes."""

    def __init__(self) -> None:
        self.is_complete = False
        self.is_broken = False
        self._open: list[str] = []
        self._expects = "value"
        self._string = ""  # the kind of the string that is being read: "", "key" or "value"
        self._held = ""

    def push(self, text: str) -> tuple[str, str]:
        """(text that belongs to the value, text after it). The second is "" until the value is complete; of malformed
        JSON it begins with the first character that can't belong to the value."""
        text, self._held = self._held + text, ""
        parts: list[str] = []
        at = 0
        while at < len(text) and not self.is_complete and not self.is_broken:
            at = self._in_string(text, at, parts) if self._string else self._between(text, at, parts)
            if self._held:
                return "".join(parts), ""
        return "".join(parts), text[at:]

    def _in_string(self, text: str, at: int, parts: list[str]) -> int:
        plain = _PLAIN.match(text, at)
        if plain is not None:
            parts.append(plain[0])
            return plain.end()
        mark = text[at]
        if mark == '"':
            parts.append(mark)
            if self._string == "key":
                self._expects = "colon"
            else:
                self._end_value()
            self._string = ""
            return at + 1
        if mark != "\\":
            parts.append(json.dumps(mark)[1:-1])
            return at + 1
        escape = _ESCAPE.match(text, at)
        if escape is not None:
            parts.append(escape[0])
            return escape.end()
        if _ESCAPE_BEGUN.match(text, at):
            self._held = text[at:]
        else:
            self.is_broken = True
        return at

    def _between(self, text: str, at: int, parts: list[str]) -> int:
        """Read one token outside of strings."""
        mark = text[at]
        if mark in _SPACE:
            parts.append(mark)
            return at + 1
        if mark == '"' and self._expects in ("value", "value]", "key", "key}"):
            self._string = "key" if self._expects.startswith("key") else "value"
        elif mark in "{[" and self._expects in ("value", "value]") and len(self._open) < _MAX_DEPTH:
            self._open.append(mark)
            self._expects = "key}" if mark == "{" else "value]"
        elif self._closes(mark):
            self._open.pop()
            self._end_value()
        elif mark == "," and self._expects == "comma":
            self._expects = "key" if self._open[-1] == "{" else "value"
        elif mark == ":" and self._expects == "colon":
            self._expects = "value"
        elif self._expects in ("value", "value]") and (word := _WORD.match(text, at)):
            return self._scalar(text, word, parts)
        else:
            self.is_broken = True
            return at
        parts.append(mark)
        return at + 1

    def _closes(self, mark: str) -> bool:
        if not self._open or self._open[-1] + mark not in ("{}", "[]"):
            return False
        return self._expects == "comma" or self._expects.endswith(mark)

    def _scalar(self, text: str, word: re.Match[str], parts: list[str]) -> int:
        if word.end() == len(text):
            self._held = text[word.start() :]
        elif _SCALAR.fullmatch(word[0]):
            parts.append(word[0])
            self._end_value()
            return word.end()
        else:
            self.is_broken = True
        return word.start()

    def _end_value(self) -> None:
        self._expects = "comma"
        self.is_complete = not self._open


class JsonArguments(JsonValue):
    """The arguments of a call: one JSON object, which starts at the first character."""

    def push(self, text: str) -> tuple[str, str]:
        """(more of the arguments, what comes after the call)."""
        is_begun = bool(self._open or self._string) or self.is_complete
        self.is_broken |= bool(text) and not is_begun and text[0] != "{"
        return super().push(text)


class JsonCall:
    """One {"name": ..., "arguments" or "parameters": {...}}, keys in any order; arguments may also be null or JSON
    text in a string. is_certain: a name and arguments were read, so that the text is a call; name is set then.
    needs_arguments: an object without arguments is not a call."""

    def __init__(self, *, needs_arguments: bool = True) -> None:
        self.name: str | None = None
        self.is_certain = False
        self.is_complete = False
        self.is_broken = False
        self._needs_arguments = needs_arguments
        self._expects = "{"
        self._key = ""
        self._value = JsonValue()
        self._value_text = ""
        self._streams = False
        self._has_arguments = False
        self._unsent = ""

    def push(self, text: str) -> tuple[str, str]:
        """(more of the arguments, what comes after the call)."""
        rest = text
        while rest and not self.is_complete and not self.is_broken:
            rest = self._in_value(rest) if self._expects in ("key text", "value text") else self._between(rest)
        return self._news(), rest

    def _news(self) -> str:
        """The arguments' text that was not returned yet."""
        if self.name is None or not self._has_arguments:
            return ""
        self.is_certain = True
        news, self._unsent = self._unsent, ""
        return news

    def _between(self, text: str) -> str:
        mark = text[0]
        if mark in _SPACE:
            return text[1:]
        if mark == "{" and self._expects == "{":
            self._expects = "key}"
        elif mark == '"' and self._expects in ("key", "key}"):
            self._begin("key text")
            return text
        elif mark == "}" and self._expects in ("key}", "comma"):
            self._end()
        elif mark == "," and self._expects == "comma":
            self._expects = "key"
        elif mark == ":" and self._expects == "colon":
            self._begin("value text")
        else:
            self.is_broken = True
            return text
        return text[1:]

    def _begin(self, what: str) -> None:
        self._expects, self._value, self._value_text, self._streams = what, JsonValue(), "", False

    def _in_value(self, text: str) -> str:
        part, rest = self._value.push(text)
        if not self._value_text:
            part = part.lstrip(_SPACE)
        if not self._value_text and part:
            self._streams = part[0] == "{" and self._is_at_arguments
            self._has_arguments |= self._streams
        if self._streams:
            self._unsent += part
            self._value_text = "{"
        else:
            self._value_text += part
        self.is_broken = self._value.is_broken
        if self._value.is_complete:
            self._end_value()
        return rest

    @property
    def _is_at_arguments(self) -> bool:
        return self._expects == "value text" and self._key in _ARGUMENT_KEYS and not self._has_arguments

    def _end_value(self) -> None:
        if self._expects == "key text":
            self._key = json.loads(self._value_text)
            self._expects = "colon"
            return
        if self._is_at_arguments and not self._streams:
            self._take_arguments(_object_text(self._value_text))
        elif self._key == "name" and self.name is None:
            name = json.loads(self._value_text)
            self.name = name if isinstance(name, str) and name else None
            self.is_broken = self.name is None
        self._expects = "comma"

    def _take_arguments(self, text: str | None) -> None:
        self._has_arguments, self._unsent = text is not None, text or ""
        self.is_broken = text is None

    def _end(self) -> None:
        if not self._has_arguments and not self._needs_arguments:
            self._take_arguments("{}")
        self.is_complete = self.name is not None and self._has_arguments
        self.is_broken = not self.is_complete


def _object_text(text: str) -> str | None:
    """The JSON object in a string, "{}" for null; None for any other value."""
    value = json.loads(text)
    if value is None:
        return "{}"
    if not isinstance(value, str):
        return None
    try:
        is_object = isinstance(json.loads(value), dict)
    except (ValueError, RecursionError):
        return None
    return value if is_object else None
