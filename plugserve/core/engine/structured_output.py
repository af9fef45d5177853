"""Grammars that constrain the tokens of a sequence. Torch-free.

A grammar is llguidance's own text form (the server makes it from a JSON schema, a regular expression, choices or Lark).
Its parser has limits of size and time, so that neither compiling nor a mask takes long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from plugserve.core.engine.closing_vocabulary import ClosingVocabulary, Mask
from plugserve.core.engine.grammar_closing import Closing, NoClosing, make_closing
from plugserve.core.errors import GrammarError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

ALL_ALLOWED = 0xFFFFFFFF
_SLICES = (
    r"[\x20\x0A\x0D\x09]+",
    r"[a-z ]{1,12}",
    r"[a-zA-Z0-9 ]{1,20}",
    r'[^"\\\x00-\x1F\x7F]{1,10}',
    r'[^"\\\x00-\x1F\x7F]{1,30}',
    r'[^"\\\x00-\x1F\x7F]+',
)
"""Sets of texts for which llguidance precomputes the tokens' bits: a mask is combined from whole slices. The two
sets of letters beside llguidance's own make masks of plain words five to seven times cheaper."""


class Constraint:
    """One sequence's place in its grammar; closing ends it before max_tokens."""

    def __init__(self, matcher: LLMatcher, closing: Closing, max_tokens: int) -> None:
        self._matcher = matcher
        self._closing = closing
        self._num_left = max_tokens
        self._completion: list[int] = []  # set when the completion must start

    def accept(self, token_id: int) -> str | None:
        """Advance by a generated token. Returns the reason if the grammar doesn't allow it, else None."""
        if self._matcher.consume_token(token_id):
            self._num_left -= 1
            self._closing.accept(token_id)
            del self._completion[:1]
            return None
        return f"the grammar can't continue: {_one_line(self._matcher.get_error())}"

    @property
    def is_complete(self) -> bool:
        """No token may follow: the sequence ends here."""
        return bool(self._matcher.is_stopped())

    def prepare(self, scratch: Mask) -> None:
        """Search for a completion where that is due. The compiler calls it too: the first search delays no step."""
        if not self._completion and self._num_left <= self._closing.next_search:
            self._completion = self._closing.search(self._matcher, self._num_left, scratch)

    def fill(self, mask: Mask) -> None:
        """Set bit t of mask [words] for each token t that may come next."""
        self.prepare(mask)
        if self._completion:
            mask.fill(0)
            mask[self._completion[0] // 32] = 1 << self._completion[0] % 32
        else:
            self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)


class ConstraintCompiler:
    """Compiles grammars for one model's vocabulary on a thread of its own, which starts with the first request.

    read_tokenizer gives the text of tokenizer.json; it is only called then. closes_in_time: answers are completed
    before max_tokens if their grammars allow it.
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
        self._vocabulary: ClosingVocabulary | None = None
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
                self._read_tokenizer(), n_vocab=self._vocab_size, eos_token=self._eos_ids or None, slices=[*_SLICES]
            )
            if self._closes_in_time:
                self._vocabulary = ClosingVocabulary(self._tokenizer, self._vocab_size, self._eos_ids)
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise GrammarError(f"the grammar can't be used: {_one_line(matcher.get_error())}")
        constraint = Constraint(matcher, self._closing(grammar, max_tokens), max_tokens)
        constraint.prepare(self.empty_masks(1)[0])
        return constraint

    def _closing(self, grammar: str, max_tokens: int) -> Closing:
        if self._vocabulary is None or not max_tokens:
            return NoClosing()
        return make_closing(grammar, self._vocabulary, max_tokens)

    def empty_masks(self, num_rows: int) -> np.ndarray[Any, np.dtype[np.uint32]]:
        """Masks [num_rows, words] that allow everything."""
        return np.full((num_rows, self.num_mask_words), ALL_ALLOWED, dtype=np.uint32)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
