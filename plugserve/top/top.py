"""`plugserve top`: the loop, the keys, and the terminal."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import sys
import termios
import time
import tty
from collections.abc import Iterator, Mapping
from typing import Any, Final

from plugserve.top.arguments import Arguments, read_arguments
from plugserve.top.live_client import LiveClient, ServerAwayError
from plugserve.top.screen import screen

_PERIOD_S: Final = 1.0
_KEYS_S: Final = 0.1  # how often a pressed key and a new size are noticed
_ONCE_REQUESTS: Final = 20
_MOST_REQUESTS: Final = 200
_HOME: Final = "\x1b[H"
_CLEAR_LINE: Final = "\x1b[K"
_CLEAR_BELOW: Final = "\x1b[J"
_OPEN: Final = "\x1b[?1049h\x1b[?25l\x1b[2J"  # another screen, without a cursor
_CLOSE: Final = "\x1b[?25h\x1b[?1049l"


def top(words: list[str], environ: Mapping[str, str]) -> int:
    """The exit code: 0, and 1 for a server that is away where it is asked once."""
    arguments = read_arguments(words, environ)
    client = LiveClient(arguments.url, arguments.api_key)
    is_terminal = sys.stdout.isatty() and sys.stdin.isatty()
    try:
        if arguments.json:
            return _print_json(client, arguments)
        if arguments.once or not is_terminal:
            return _print_once(client)
        with _raw_terminal():
            _watch(client)
    except (KeyboardInterrupt, BrokenPipeError):
        pass
    return 0


def _print_json(client: LiveClient, arguments: Arguments) -> int:
    while True:
        try:
            print(json.dumps(client.snapshot()), flush=True)
        except ServerAwayError as error:
            print(f"plugserve: {error}", file=sys.stderr)
            if arguments.once:
                return 1
        if arguments.once:
            return 0
        time.sleep(_PERIOD_S)


def _print_once(client: LiveClient) -> int:
    try:
        client.snapshot()  # has the engines write details
        time.sleep(_PERIOD_S + _KEYS_S)
        snapshot, requests = client.snapshot(), client.requests(_ONCE_REQUESTS)
    except ServerAwayError as error:
        print(f"plugserve: {error}", file=sys.stderr)
        return 1
    size = shutil.get_terminal_size((160, 0))
    lines = screen(snapshot, requests, client.url, width=max(80, size.columns), height=10_000)
    print("\n".join(lines))
    return 0


class _Shown:
    """What is on the screen; fault says why it is not newer."""

    def __init__(self) -> None:
        self.snapshot: dict[str, Any] | None = None
        self.requests: list[dict[str, Any]] = []
        self.fault = ""
        self.is_paused = False

    def update(self, client: LiveClient, num_requests: int) -> None:
        try:
            self.snapshot, self.requests = client.snapshot(), client.requests(num_requests)
            self.fault = ""
        except ServerAwayError as error:
            self.fault = f"trying again every second: {error}"

    def lines(self, url: str, width: int, height: int) -> list[str]:
        state = "paused, p goes on" if self.is_paused else "q ends, p pauses"
        foot = f"({self.fault or state})"[:width]
        if self.snapshot is None:
            return [foot]
        return [*screen(self.snapshot, self.requests, url, width=width, height=height - 1), foot]


def _watch(client: LiveClient) -> None:
    """Until q is pressed."""
    shown, due_s = _Shown(), 0.0
    drawn: tuple[object, ...] = ()
    while True:
        size = shutil.get_terminal_size()
        if time.monotonic() >= due_s and not shown.is_paused:
            shown.update(client, min(_MOST_REQUESTS, max(1, size.lines)))
            due_s, drawn = time.monotonic() + _PERIOD_S, ()
        if drawn != (size, shown.is_paused):
            drawn = (size, shown.is_paused)
            text = "".join(f"{line}{_CLEAR_LINE}\n" for line in shown.lines(client.url, size.columns, size.lines))
            sys.stdout.write(_HOME + text.removesuffix("\n") + _CLEAR_BELOW)
            sys.stdout.flush()
        key = _key()
        if key in ("q", "\x03", "\x04"):
            return
        if key == "p":
            shown.is_paused = not shown.is_paused


def _key() -> str:
    """A pressed key, or "" after a while."""
    descriptor = sys.stdin.fileno()
    return os.read(descriptor, 1).decode(errors="replace") if select.select([descriptor], [], [], _KEYS_S)[0] else ""


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    """Keys come at once and are not shown; the screen before comes back afterwards."""
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        sys.stdout.write(_OPEN)
        yield
    finally:
        sys.stdout.write(_CLOSE)
        sys.stdout.flush()
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
