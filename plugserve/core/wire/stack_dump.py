"""Dumps the stacks of a process's threads into a file when it gets SIGUSR1.

faulthandler does this in C, so it works even if a thread never releases the interpreter lock.
"""

from __future__ import annotations

import faulthandler
import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Final

DUMP_SIGNAL: Final = signal.SIGUSR1

_FRAME = re.compile(r'  File "(?P<file>.*)", line (?P<line>\d+|\?\?\?) in (?P<function>.*)')


@dataclass(frozen=True, slots=True)
class Frame:
    """One call of a stack."""

    file: str
    line: str
    function: str

    def __str__(self) -> str:
        return f"{self.function} ({'/'.join(self.file.split('/')[-2:])}:{self.line})"


def write_stacks_to(path: Path) -> None:
    """Append the stacks to path at each SIGUSR1 from now on. Once a process."""
    file = path.open("a")  # kept open by faulthandler's reference
    faulthandler.register(DUMP_SIGNAL, file=file, all_threads=True, chain=False)


def parse_stacks(text: str) -> list[list[Frame]]:
    """The threads of the last dump in text, each from the innermost frame outwards; the main thread comes first."""
    threads: list[list[Frame]] = []
    for line in text.splitlines():
        if line.endswith("(most recent call first):"):
            threads.append([])
        elif threads and (found := _FRAME.fullmatch(line)) is not None:
            threads[-1].append(Frame(found["file"], found["line"], found["function"]))
    return threads[::-1]  # faulthandler lists the newest thread first, and the main thread is the oldest
