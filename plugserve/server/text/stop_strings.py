"""Finds the stop string that completes first in a growing text.

Text that can't become part of a stop string is returned at once, so a stream lags by no more than a possible match.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """One text's search. After a match, feed must not be called again.

    Of all occurrences the one that ends first wins (of those, the longest), which makes the result independent of how
    the text was cut into pieces. is_included: the stop string itself stays in the text.
    """

    def __init__(self, stops: Sequence[str], *, is_included: bool = False) -> None:
        self._stops = tuple(stops)
        self._is_included = is_included
        self._held = ""
        self.matched: str | None = None

    def feed(self, text: str) -> str:
        """Take more text and return the part that can't belong to a stop string; sets matched when a stop string is
        complete."""
        if not self._stops:
            return text
        text = self._held + text
        match = self._first_match(text)
        if match is not None:
            start, stop = match
            self._held, self.matched = "", stop
            return text[: start + len(stop)] if self._is_included else text[:start]
        num_held = self._num_held(text)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]

    def flush(self) -> str:
        """End the text without a match; returns the text that was held back."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str) -> tuple[int, str] | None:
        found = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if not found:
            return None
        _, start, stop = min(found)
        return start, stop

    def _num_held(self, text: str) -> int:
        """Length of the longest suffix that begins a stop string."""
        return max(_overlap(text, stop) for stop in self._stops)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper beginning of stop that text ends with."""
    start = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while start >= 0:
        if stop.startswith(text[start:]):
            return len(text) - start
        start = text.find(stop[0], start + 1)
    return 0
