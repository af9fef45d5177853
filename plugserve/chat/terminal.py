"""The terminal: edited lines with history, messages of several lines, and text that can't command it."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

_CONTROLS: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and line feed
_MOST_LINES: Final = 1000
_PROMPT, _FURTHER = "> ", ". "
_QUOTES: Final = '"""'


class Terminal:
    """Reads from standard input, writes to standard output. history: the file of typed lines, None for none."""

    def __init__(self, history: Path | None) -> None:
        self._history = history
        self._readline: Any = None
        self._is_dim_allowed = "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        with contextlib.suppress(ImportError):  # not on every platform
            import readline

            self._readline = readline
        if self._readline is not None and history is not None:
            self._readline.set_history_length(_MOST_LINES)
            with contextlib.suppress(OSError):
                self._readline.read_history_file(history)

    def close(self) -> None:
        """Keep the typed lines."""
        if self._readline is None or self._history is None:
            return
        with contextlib.suppress(OSError):  # a folder that can't be written: the chat works without
            self._history.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._readline.write_history_file(self._history)
            self._history.chmod(0o600)

    def read(self) -> str:
        '''A message: a line, further ones after a backslash at its end, or all lines between """ and """.

        Raises EOFError (Ctrl-D) and KeyboardInterrupt (Ctrl-C).
        '''
        line = input(_PROMPT)
        if line.lstrip().startswith(_QUOTES):
            return self._read_quoted(line.lstrip().removeprefix(_QUOTES))
        lines = [line]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(input(_FURTHER))
        return "\n".join(lines)

    def _read_quoted(self, line: str) -> str:
        lines = [line]
        while not lines[-1].rstrip().endswith(_QUOTES):
            lines.append(input(_FURTHER))
        lines[-1] = lines[-1].rstrip().removesuffix(_QUOTES)
        return "\n".join(lines).strip("\n")

    def write(self, text: str) -> None:
        """A part of an answer, without control characters, which could change the terminal or what it shows."""
        sys.stdout.write(_CONTROLS.sub("", text))
        sys.stdout.flush()

    def write_dim(self, text: str) -> None:
        """Reasoning and notes."""
        text = _CONTROLS.sub("", text)
        sys.stdout.write(f"\x1b[2m{text}\x1b[0m" if self._is_dim_allowed else text)
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """A line of the program itself."""
        self.write_dim(text)
        self.write("\n")


def history_file(environ: Mapping[str, str]) -> Path:
    """Where typed lines are kept, by the XDG base directories."""
    state = environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return Path(state) / "plugserve" / "chat_history"
