"""Grammars that bind what a sequence may generate. Torch-free; knows tokens and grammars, nothing of steps.

A grammar is llguidance's own text form (the server makes it from a JSON schema, a regular expression, choices or Lark).
Its parser has limits on size and effort, so that neither compiling nor a mask takes long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from plugserve.core.engine.grammar_closing import ClosingOrder, OpenText, shortest_way
from plugserve.core.errors import GrammarError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

ALL_ALLOWED = 0xFFFFFFFF
_LEAST_SPARE, _MOST_SPARE = 8, 32  # tokens beyond the way to the end: what one more token may add to it


class Constraint:
    """One sequence's place in its grammar. With an order it ends before max_tokens: see grammar_closing.py."""

    def __init__(self, matcher: LLMatcher, order: ClosingOrder | None = None, max_tokens: int = 0) -> None:
        self._matcher = matcher
        self._order = order
        self._num_left = max_tokens
        self._spare = max(_LEAST_SPARE, min(_MOST_SPARE, max_tokens // 10))
        self._way: list[int] = []  # tokens to the end, once it is time to take it
        self._check_at = -1  # look the way up when so many tokens are left
        if order is not None:
            self._plan(order, np.zeros(order.num_mask_words, dtype=np.uint32))

    def accept(self, token_id: int) -> str | None:
        """Move on over a generated token. Returns why that is impossible, or None."""
        if self._matcher.consume_token(token_id):
            self._num_left -= 1
            del self._way[:1]
            return None
        return f"the grammar can't go on: {_one_line(self._matcher.get_error())}"

    @property
    def is_complete(self) -> bool:
        """Nothing may follow: the sequence ends here."""
        return bool(self._matcher.is_stopped())

    def fill(self, mask: np.ndarray[Any, np.dtype[np.uint32]]) -> None:
        """Set bit t of mask [words] for each token t that may come next."""
        if self._order is not None and not self._way and self._num_left <= self._check_at:
            self._plan(self._order, mask)
        if self._way:
            mask.fill(0)
            mask[self._way[0] // 32] = 1 << self._way[0] % 32
        else:
            self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)

    def _plan(self, order: ClosingOrder, scratch: np.ndarray[Any, np.dtype[np.uint32]]) -> None:
        """Look the way to the end up: take it when there is just room for it, else say when to look again."""
        try:
            way = shortest_way(self._matcher, order, scratch)
        except OpenText:
            self._check_at = self._num_left // 2  # thinking; what is bound comes after it
            return
        spare = self._num_left - len(way or ())
        if way is None or spare < 0:  # perhaps there is one from further on
            self._check_at = self._num_left - max(_LEAST_SPARE, self._num_left // 8)
        elif spare <= self._spare:
            self._way = way
        else:
            self._check_at = len(way) + max(self._spare, spare // 2)


class ConstraintCompiler:
    """Compiles grammars for one model's vocabulary on a thread of its own, which starts with the first request.

    read_tokenizer gives the text of tokenizer.json; it is only called then. closes_in_time: answers end before their
    max_tokens where their grammars let them.
    """

    def __init__(
        self,
        read_tokenizer: Callable[[], str],
        vocab_size: int,
        eos_ids: Iterable[int],
        *,
        closes_in_time: bool = True,
    ) -> None:
        self._read_tokenizer = read_tokenizer
        self._vocab_size = vocab_size
        self._eos_ids = sorted(eos_ids)
        self._closes_in_time = closes_in_time
        self._tokenizer: LLTokenizer | None = None
        self._order: ClosingOrder | None = None
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grammar")
        self.num_mask_words = -(-vocab_size // 32)

    def submit(self, grammar: str, max_tokens: int = 0) -> Future[Constraint]:
        """The compiled grammar for an answer of at most max_tokens (0: it may be cut off), later; the future raises
        GrammarError with one line for a bad one."""
        return self._pool.submit(self._compile, grammar, max_tokens)

    def _compile(self, grammar: str, max_tokens: int) -> Constraint:
        from llguidance import LLMatcher, LLTokenizer

        if self._tokenizer is None:
            self._tokenizer = LLTokenizer(
                self._read_tokenizer(), n_vocab=self._vocab_size, eos_token=self._eos_ids or None
            )
            if self._closes_in_time:
                self._order = ClosingOrder(self._tokenizer, self._vocab_size, self._eos_ids)
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise GrammarError(f"the grammar can't be used: {_one_line(matcher.get_error())}")
        return Constraint(matcher, self._order if max_tokens else None, max_tokens)

    def empty_masks(self, num_rows: int) -> np.ndarray[Any, np.dtype[np.uint32]]:
        """Masks [num_rows, words] that allow everything."""
        return np.full((num_rows, self.num_mask_words), ALL_ALLOWED, dtype=np.uint32)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
