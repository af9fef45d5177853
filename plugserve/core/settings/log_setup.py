"""Sets logging up, once a process: one line an event on standard error, as text or as JSON, whatever text a message
contains.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Final

from plugserve.core.settings.json_log import JsonFormatter, JsonLines, log_uncaught
from plugserve.core.settings.log_file import LogFile, LogFileHandler
from plugserve.core.wire.trace_ids import TRACE_IDS

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_TIME = "%Y-%m-%d %H:%M:%S"
_UNPRINTABLE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # C0, DEL, C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # bidirectional controls
    "\u2028\u2029\ufeff\ufff9-\ufffb"  # separators of lines and paragraphs, byte order mark, annotations
    "\ud800-\udfff]"  # bytes that were no UTF-8 (surrogateescape)
)
_SHORT: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_CAUSE: Final = "The above exception was the direct cause of the following exception:"
_CONTEXT: Final = "During handling of the above exception, another exception occurred:"
_LONGEST_CHAIN: Final = 16  # exceptions of one chain that are shown
_DEEPEST_GROUP: Final = 4

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def set_up_logging(level: str = "info", form: str = "text", file: LogFile | None = None) -> None:
    """plugserve and plugins log from level on, other libraries from warning on (or level, where that is stricter). form
    is "text" or "json"; with "json", what is printed to sys.stderr becomes JSON as well. Lines go to file, too. Raises
    ConfigError if that can't be written.

    Calling it again replaces level, form and file and leaves one handler for each place.
    """
    root = logging.getLogger()
    for old in [handler for handler in root.handlers if isinstance(handler, (_StandardError, LogFileHandler))]:
        root.removeHandler(old)
        if isinstance(old, LogFileHandler):
            old.close()
    if isinstance(sys.stderr, JsonLines):
        sys.stderr = sys.stderr.target
    handler = _StandardError(sys.stderr)
    text = LineFormatter(_FORMAT, _TIME)
    formatter = JsonFormatter(text.formatException) if form == "json" else text
    handler.setFormatter(formatter)
    root.addHandler(handler)
    if file is not None:
        file.check()
        to_file = LogFileHandler(file)
        to_file.setFormatter(formatter)
        root.addHandler(to_file)
    if form == "json":
        sys.stderr = JsonLines(sys.stderr)
        log_uncaught(logging.getLogger("plugserve"))
    number = logging.getLevelNamesMapping()[level.upper()]
    root.setLevel(max(number, logging.WARNING))
    logging.getLogger("plugserve").setLevel(number)
    logging.captureWarnings(True)


class LineFormatter(logging.Formatter):
    """Formats a record as one line, which ends with the trace that it belongs to, if any: control characters in its
    message are escaped. A traceback follows on lines of its own; the text of each exception in it is escaped, so that
    only the traceback's own structure makes lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        ids = TRACE_IDS.get()
        line = escape_controls(super().formatMessage(record).rstrip("\n"))
        return line if ids is None else f"{line} trace_id={ids.trace_id}"

    def formatException(self, ei: ExcInfo) -> str:
        error = ei[1]
        if error is None:
            return ""
        return "\n".join(_lines(traceback.TracebackException(*ei)))

    def formatStack(self, stack_info: str) -> str:
        return "\n".join(map(escape_controls, stack_info.split("\n")))


def escape_controls(text: str) -> str:
    """text with each control character, line separator and bidirectional control written as an escape (\\n, \\x1b,
    \\u2028), so that it stays on its line and shows what it contains."""
    return _UNPRINTABLE.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    character = found[0]
    code = ord(character)
    return _SHORT.get(character) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


def _lines(error: traceback.TracebackException, depth: int = 0) -> Iterator[str]:
    """The lines of a traceback with its causes, oldest first."""
    chain = list(_chain(error))
    for index, (link, reason) in enumerate(reversed(chain)):
        if index:
            yield ""
            yield reason
            yield ""
        if link.stack:
            yield "Traceback (most recent call last):"
            for entry in link.stack.format():
                yield from map(escape_controls, entry.rstrip("\n").split("\n"))
        if isinstance(link.__notes__, (list, tuple)):
            link.__notes__ = [escape_controls(str(note)) for note in link.__notes__]
        for text in link.format_exception_only():
            yield escape_controls(text.rstrip("\n"))
        if link.exceptions and depth < _DEEPEST_GROUP:
            for member in link.exceptions:
                yield from ("  | " + line for line in _lines(member, depth + 1))


def _chain(error: traceback.TracebackException) -> Iterator[tuple[traceback.TracebackException, str]]:
    """error and its causes, newest first, each with the line that introduces the one after it."""
    link: traceback.TracebackException | None = error
    reason = ""
    for _ in range(_LONGEST_CHAIN):
        if link is None:
            return
        cause, context = link.__cause__, None if link.__suppress_context__ else link.__context__
        reason = _CAUSE if cause is not None else _CONTEXT
        yield link, reason
        link = cause if cause is not None else context


class _StandardError(logging.StreamHandler):  # type: ignore[type-arg]
    """The handler that set_up_logging installs; a class of its own, so that it can be recognised."""
