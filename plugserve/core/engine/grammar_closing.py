"""Ends an answer with a grammar before max_tokens by a short completion that matches the grammar.

A small model may continue a string or a number until max_tokens, which leaves truncated, invalid JSON. When the
remaining tokens just suffice for a completion, the answer takes it, so that the result matches the grammar.

A regular expression has an exact shortest completion (shortest_match.py). For any other grammar it is searched
greedily, token by token (closing_vocabulary.py). A search costs milliseconds, so the next one is only made when it can
find something new, and all of an answer's searches together may take a bounded number of tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from plugserve.core.engine.closing_vocabulary import DIGITS, WORDS, ClosingVocabulary, Mask
from plugserve.core.engine.shortest_match import PartialMatch, UnsupportedExpression, expression_of

if TYPE_CHECKING:
    from llguidance import LLMatcher

_LONGEST_COMPLETION: Final = 512  # tokens
_LONGEST_RUN: Final = 4  # of words, of digits, or of one token, where something else may follow as well
_LEAST_SPARE, _MOST_SPARE = 8, 32  # spare tokens: one more token may make the completion longer by this
_LEAST_TRIES: Final = 32
_NEVER: Final = -1
_KINDS: Final = (DIGITS, WORDS)


class OpenText(Exception):
    """The answer is in a text that no quotation mark ends, such as thinking; a completion may be found later."""


def greedy_completion(
    matcher: LLMatcher, vocabulary: ClosingVocabulary, mask: Mask, longest: int = _LONGEST_COMPLETION
) -> tuple[list[int] | None, int]:
    """Tokens that end the answer from where matcher stands (which stays there), or None where none are found within
    longest tokens; and how many tokens were tried. mask is scratch space for one row. Raises OpenText."""
    copy = matcher.deep_copy()
    tokens: list[int] = []
    run = _Run()
    has_ended_text = False
    while len(tokens) <= longest and not copy.is_error():
        if copy.is_stopped():
            return tokens, len(tokens)
        if copy.is_accepting():
            return (None if vocabulary.eos_id is None else [*tokens, vocabulary.eos_id]), len(tokens)
        following = copy.compute_ff_tokens()
        if not following:
            copy.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
            token = vocabulary.first(mask, run.avoided_kind, run.avoided_token)
            if token is None:
                break
            if has_ended_text and vocabulary.ends_text(mask, token):
                raise OpenText
            has_ended_text = vocabulary.ends_text(mask, token)
            run.add(token, vocabulary.rank(mask, token))
            following = [token]
        if not copy.consume_tokens(following):
            break
        tokens += following
    return None, len(tokens)


class _Run:
    """Choices that were taken several times in a row and are avoided from then on: digits, words, or one token."""

    def __init__(self) -> None:
        self._kind, self._num_of_kind = range(0), 0
        self._token, self._num_of_token = -1, 0

    def add(self, token: int, rank: int) -> None:
        kind = next((some for some in _KINDS if rank in some), range(0))
        self._num_of_kind = self._num_of_kind + 1 if kind is self._kind else 1
        self._num_of_token = self._num_of_token + 1 if token == self._token else 1
        self._kind, self._token = kind, token

    @property
    def avoided_kind(self) -> range:
        return self._kind if self._num_of_kind >= _LONGEST_RUN else range(0)

    @property
    def avoided_token(self) -> int:
        return self._token if self._num_of_token >= _LONGEST_RUN else -1


class Closing(Protocol):
    """Ends one answer in time. Used from the engine's thread, or from the compiler's before the answer begins."""

    next_search: int
    """search when so many tokens are left, -1 for never."""

    def accept(self, token_id: int) -> None:
        """A token was generated."""

    def search(self, matcher: LLMatcher, num_left: int, scratch: Mask) -> list[int]:
        """The completion that has to begin now, of at most num_left tokens; empty while there is more room or where
        none was found. Sets next_search."""


class NoClosing:
    """The answer may be cut off."""

    next_search = _NEVER

    def accept(self, token_id: int) -> None: ...

    def search(self, matcher: LLMatcher, num_left: int, scratch: Mask) -> list[int]:
        return []


class _Schedule:
    """Decides when a completion of a known length begins or is searched again."""

    def __init__(self, max_tokens: int) -> None:
        self._spare = max(_LEAST_SPARE, min(_MOST_SPARE, max_tokens // 10))
        self.next_search = max_tokens

    def take(self, completion: list[int], num_left: int) -> list[int]:
        """completion if it has to begin now; else search again after half of the tokens that are to spare."""
        spare = num_left - len(completion)
        if spare <= self._spare:
            return completion
        self.next_search = len(completion) + max(self._spare, spare // 2)
        return []


class GreedyClosing(_Schedule):
    """Closes answers of any grammar. The first search delays no step. All later ones of an answer that find nothing
    together try as many tokens as the answer may have; a quarter of them, where the first one found no way to its end,
    because each try costs a mask and few of them find one."""

    def __init__(self, vocabulary: ClosingVocabulary, max_tokens: int) -> None:
        super().__init__(max_tokens)
        self._vocabulary = vocabulary
        self._max_tokens = max_tokens
        self._num_tries_left = max_tokens

    def accept(self, token_id: int) -> None: ...

    def search(self, matcher: LLMatcher, num_left: int, scratch: Mask) -> list[int]:
        try:
            is_first = num_left == self._max_tokens
            longest = _LONGEST_COMPLETION if is_first else min(num_left, _LONGEST_COMPLETION, self._num_tries_left)
            completion, num_tried = greedy_completion(matcher, self._vocabulary, scratch, longest)
        except OpenText:
            self.next_search = num_left // 2  # thinking; the grammar's part follows it
            return []
        if completion is not None and len(completion) <= num_left:
            return self.take(completion, num_left)
        if is_first:
            self._num_tries_left = max(_LEAST_TRIES, self._max_tokens // 4)
        else:
            self._num_tries_left -= num_tried
        wait = max(_LEAST_SPARE, num_left // 4)  # a later search may find one
        self.next_search = num_left - wait if self._num_tries_left > 0 else _NEVER
        return []


class ExactClosing(_Schedule):
    """Closes answers of a regular expression. Raises UnsupportedExpression where the expression can't be read."""

    def __init__(self, expression: str, vocabulary: ClosingVocabulary, max_tokens: int) -> None:
        super().__init__(max_tokens)
        self._partial = PartialMatch(expression)
        self._vocabulary = vocabulary
        self._accepted: list[int] = []  # since the last search

    def accept(self, token_id: int) -> None:
        self._accepted.append(token_id)

    def search(self, matcher: LLMatcher, num_left: int, scratch: Mask) -> list[int]:
        completion = self._completion(matcher)
        if self._partial.is_inside_character:
            self.next_search = num_left - 1
            return []
        if completion is None or len(completion) > num_left:
            self.next_search = _NEVER  # it gets shorter by one long token a token at most, as num_left does
            return []
        return self.take(completion, num_left)

    def _completion(self, matcher: LLMatcher) -> list[int] | None:
        vocabulary = self._vocabulary
        try:
            self._partial.feed(b"".join(vocabulary.spelt[token] for token in self._accepted))
        except UnsupportedExpression:
            return None
        self._accepted.clear()
        if self._partial.num_missing is None:
            return None
        tokens = vocabulary.speller.spell(self._partial.missing())
        if tokens is None:
            return None
        copy = matcher.deep_copy()
        if tokens and not copy.consume_tokens(tokens):
            return None
        if copy.is_stopped():
            return tokens
        return [*tokens, vocabulary.eos_id] if copy.is_accepting() and vocabulary.eos_id is not None else None


def make_closing(grammar: str, vocabulary: ClosingVocabulary, max_tokens: int) -> Closing:
    """The Closing of an answer of at most max_tokens with a grammar in llguidance's text form."""
    expression = expression_of(grammar)
    if expression is not None:
        try:
            return ExactClosing(expression, vocabulary, max_tokens)
        except UnsupportedExpression:
            pass  # the greedy search is for any grammar
    return GreedyClosing(vocabulary, max_tokens)
