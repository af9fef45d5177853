"""Log lines as JSON: one object a line on standard error, whoever writes it.

A message's own key=value pairs become members: log.info("engine died model=%s", name) gives {"model": name} beside
time, level, logger, message and pid.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import TracebackType
from typing import Any, Final, TextIO

from plugserve.core.wire.trace_ids import TRACE_IDS

_CONVERSION: Final = re.compile(
    r"(?:(?P<name>[A-Za-z_]\w*)=)?%(?P<key>\(\w*\))?[-#0 +]*(?:\*|\d+)?(?:\.(?:\*|\d+))?[hlL]?(?P<kind>[a-zA-Z%])"
)
_LONGEST_LINE: Final = 65536  # characters of a line that something prints
_STDERR: Final = "stderr"


class JsonFormatter(logging.Formatter):
    """format_exception writes a traceback as text."""

    def __init__(self, format_exception: Callable[[Any], str]) -> None:
        super().__init__()
        self._format_exception = format_exception

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time(record.created),
            "level": record.levelname,
            "logger": record.name,
            "message": _message(record),
            "pid": record.process,
        }
        ids = TRACE_IDS.get()
        if ids is not None:
            line |= {"trace_id": ids.trace_id, "span_id": ids.span_id}
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            line["error_type"] = type(error).__qualname__
            line["exception"] = self._format_exception(record.exc_info)
        if record.stack_info:
            line["stack"] = record.stack_info
        for name, value in _fields(record):
            line.setdefault(name, value)
        return _dumped(line)


class JsonLines:
    """Replaces sys.stderr: what libraries and the interpreter print there becomes lines of JSON on target."""

    def __init__(self, target: TextIO) -> None:
        self.target = target
        self._begun = ""
        self._lock = threading.RLock()  # a signal handler may print, too

    def write(self, text: str) -> int:
        with self._lock:
            *lines, self._begun = (self._begun + text).split("\n")
            if len(self._begun) > _LONGEST_LINE:
                lines, self._begun = [*lines, self._begun], ""
            for line in lines:
                shown = line.rstrip("\r").rpartition("\r")[2]  # a progress bar overwrites itself
                if shown.strip():
                    self.target.write(_printed(shown) + "\n")
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self.target.flush()

    def isatty(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.target, name)


def log_uncaught(logger: logging.Logger) -> None:
    """Log what ends the process or a thread of it as one line."""

    def in_process(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, traceback)
        else:
            logger.critical("uncaught exception", exc_info=(kind, error, traceback))

    def in_thread(given: threading.ExceptHookArgs) -> None:
        if given.exc_value is not None:
            name = given.thread.name if given.thread is not None else ""
            caught = (given.exc_type, given.exc_value, given.exc_traceback)
            logger.critical("uncaught exception thread=%s", name, exc_info=caught)

    sys.excepthook, threading.excepthook = in_process, in_thread


def _printed(text: str) -> str:
    line = {"time": _time(time.time()), "level": "INFO", "logger": _STDERR, "message": text, "pid": os.getpid()}
    return _dumped(line)


def _dumped(line: Mapping[str, Any]) -> str:
    return json.dumps(line, default=str)


def _time(seconds: float) -> str:
    """RFC 3339, in UTC, with milliseconds."""
    whole = math.floor(seconds)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{int((seconds - whole) * 1000):03d}Z"


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:  # arguments that don't belong to the message must not lose the line
        return f"{record.msg} {record.args!r} ({type(error).__name__}: {error})"


def _fields(record: logging.LogRecord) -> list[tuple[str, Any]]:
    """The key=value pairs of a message whose values are arguments."""
    arguments = record.args
    if not isinstance(arguments, tuple) or not isinstance(record.msg, str):
        return []
    return [(name, _plain(arguments[n])) for n, name in _names(record.msg) if n < len(arguments)]


@lru_cache(maxsize=1024)
def _names(template: str) -> list[tuple[int, str]]:
    """(number of the argument, key) for each key=%... of a message."""
    names: list[tuple[int, str]] = []
    number = 0
    for found in _CONVERSION.finditer(template):
        if found["kind"] == "%":
            continue
        number += found[0].count("*")
        if found["name"]:
            names.append((number, found["name"]))
        number += 1
    return names


def _plain(value: Any) -> Any:
    """value as JSON has it; a text that was quoted for a key=value line without its quotes."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, bool | int):
        return value
    text = str(value)
    if len(text) > 1 and text[0] == text[-1] == '"':
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text
