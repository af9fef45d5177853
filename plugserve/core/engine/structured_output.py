"""Grammars that bind what a sequence may generate. Torch-free; knows tokens and grammars, nothing of steps.

A grammar is llguidance's own text form (the server makes it from a JSON schema, a regular expression, choices or Lark).
Its parser has limits on size and effort, so that neither compiling nor a mask takes long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from plugserve.core.errors import RequestFailedError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

ALL_ALLOWED = 0xFFFFFFFF


class Constraint:
    """One sequence's place in its grammar."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def accept(self, token_id: int) -> str | None:
        """Move on over a generated token. Returns why that is impossible, or None."""
        if self._matcher.consume_token(token_id):
            return None
        return f"the grammar can't go on: {_one_line(self._matcher.get_error())}"

    @property
    def is_complete(self) -> bool:
        """Nothing may follow: the sequence ends here."""
        return bool(self._matcher.is_stopped())

    def fill(self, mask: np.ndarray[Any, np.dtype[np.uint32]]) -> None:
        """Set bit t of mask [words] for each token t that may come next."""
        self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)


class ConstraintCompiler:
    """Compiles grammars for one model's vocabulary on a thread of its own, which starts with the first request.

    read_tokenizer gives the text of tokenizer.json; it is only called then.
    """

    def __init__(self, read_tokenizer: Callable[[], str], vocab_size: int, eos_ids: Iterable[int]) -> None:
        self._read_tokenizer = read_tokenizer
        self._vocab_size = vocab_size
        self._eos_ids = sorted(eos_ids)
        self._tokenizer: LLTokenizer | None = None
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grammar")
        self.num_mask_words = -(-vocab_size // 32)

    def submit(self, grammar: str) -> Future[Constraint]:
        """The compiled grammar, later; the future raises RequestFailedError with one line for a bad one."""
        return self._pool.submit(self._compile, grammar)

    def _compile(self, grammar: str) -> Constraint:
        from llguidance import LLMatcher, LLTokenizer

        if self._tokenizer is None:
            self._tokenizer = LLTokenizer(
                self._read_tokenizer(), n_vocab=self._vocab_size, eos_token=self._eos_ids or None
            )
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise RequestFailedError(f"the grammar can't be used: {_one_line(matcher.get_error())}")
        return Constraint(matcher)

    def empty_masks(self, num_rows: int) -> np.ndarray[Any, np.dtype[np.uint32]]:
        """Masks [num_rows, words] that allow everything."""
        return np.full((num_rows, self.num_mask_words), ALL_ALLOWED, dtype=np.uint32)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
