"""Threads for tokenising: one for long texts, which wait for each other, and several for short ones."""

from __future__ import annotations

from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Final

LONG_TEXT: Final = 32 * 1024
"""Characters; such a text takes about 10 ms."""
_NUM_SHORT: Final = 4


class TextThreads(ThreadPoolExecutor):
    """The threads for short texts and other short work. One more takes the long texts, so that no number of them
    occupies the processors that the engine needs."""

    def __init__(self) -> None:
        super().__init__(_NUM_SHORT, thread_name_prefix="tokenize")
        self._long = ThreadPoolExecutor(1, thread_name_prefix="tokenize-long")

    def of_length(self, num_characters: int) -> Executor:
        """The executor for a text of this many characters."""
        return self if num_characters < LONG_TEXT else self._long

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._long.shutdown(wait, cancel_futures=cancel_futures)
        super().shutdown(wait, cancel_futures=cancel_futures)
