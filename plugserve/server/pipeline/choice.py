"""One answer: converts the tokens of one sequence to text, logprobs and a finish reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from plugserve.core.contracts.answers import AnswerDelta
from plugserve.core.contracts.sampling import TokenLogprobs
from plugserve.server.text.answer_parsers import AnswerParser
from plugserve.server.text.detokenizer import Detokenizer
from plugserve.server.text.stop_strings import StopStrings
from plugserve.server.worker.token_stream import OutputDelta


@dataclass(slots=True)
class Piece:
    """The change of an answer by one delta. logprobs and offsets (characters of the answer before the token) have one
    entry for each of token_ids; logprobs is empty where none were asked for. The first num_echoed tokens are the
    prompt's. parsed is what text means, None where all of it is content; has_calls: the answer that ends here holds
    tool calls. vector is that of a prompt that was pooled."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    num_echoed: int = 0
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    parsed: AnswerDelta | None = None
    has_calls: bool = False
    vector: bytes = b""

    @property
    def has_output(self) -> bool:
        """The piece has output for the client."""
        return bool(self.text if self.parsed is None else self.parsed)

    def extend(self, later: Piece) -> None:
        """Append the next piece."""
        self.text += later.text
        self.token_ids += later.token_ids
        self.logprobs += later.logprobs
        self.offsets += later.offsets
        self.num_echoed += later.num_echoed
        self.finish_reason = later.finish_reason
        self.stop_reason = later.stop_reason
        self.has_calls |= later.has_calls
        self.vector = self.vector or later.vector
        if self.parsed is None:
            self.parsed = later.parsed
        elif later.parsed is not None:
            self.parsed.extend(later.parsed)


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt that an answer repeats first: its text, its tokens and where each begins in the text."""

    text: str
    token_ids: list[int]
    offsets: list[int]


@dataclass(frozen=True, slots=True)
class StopRules:
    """The stop conditions that depend on an answer's text. token_ids: the request's own stop tokens (the engine acts on
    them; here they give the stop_reason). Text of the first min_tokens tokens is not searched."""

    strings: Sequence[str] = ()
    token_ids: frozenset[int] = frozenset()
    is_included: bool = False
    min_tokens: int = 0


class Choice(Protocol):
    """One sequence's result while it is generated. num_reasoning_tokens is None where thinking isn't counted."""

    @property
    def index(self) -> int: ...

    @property
    def num_tokens(self) -> int: ...

    @property
    def finish_reason(self) -> str | None:
        """None until the last piece."""

    @property
    def queue_s(self) -> float: ...

    @property
    def num_cached_tokens(self) -> int: ...

    @property
    def num_reasoning_tokens(self) -> int | None: ...

    @property
    def prompt_logprobs(self) -> list[TokenLogprobs | None] | None: ...

    def push(self, delta: OutputDelta) -> Piece:
        """The piece that the next delta adds."""


class _NoStopStrings:
    """Replaces StopStrings if there are none: returns all text at once."""

    matched: str | None = None

    def feed(self, text: str) -> str:
        return text

    def flush(self) -> str:
        return ""


_NO_STOPS: Final = _NoStopStrings()


class TextChoice:
    """Feed deltas, get pieces. After a piece with a finish_reason nothing more may be pushed.

    is_silent: generated tokens are discarded (a request for max_tokens 0 still needs one step for the prompt).
    parser reads thinking and tool calls out of the text.
    """

    def __init__(
        self,
        index: int,
        detokenizer: Detokenizer,
        rules: StopRules,
        *,
        echo: Echo | None = None,
        is_silent: bool = False,
        parser: AnswerParser | None = None,
    ) -> None:
        self.index = index
        self.num_tokens = 0
        self.finish_reason: str | None = None
        self.queue_s = 0.0
        self.num_cached_tokens = 0
        self.prompt_logprobs: list[TokenLogprobs | None] | None = None
        self._detokenizer = detokenizer
        self._rules = rules
        self._stops: StopStrings | _NoStopStrings = _NO_STOPS
        if rules.strings:
            self._stops = StopStrings(rules.strings, is_included=rules.is_included)
        self._offset = len(echo.text) if echo is not None else 0
        self._echo = echo
        self._is_silent = is_silent
        self._parser = parser

    @property
    def num_reasoning_tokens(self) -> int | None:
        """Tokens of thinking so far; None where thinking isn't separated."""
        return None if self._parser is None else self._parser.num_reasoning_tokens

    def push(self, delta: OutputDelta) -> Piece:
        """Take the next tokens. The engine's stop token counts as a token but shows no text unless it is included."""
        piece = self._piece(delta)
        if self._parser is not None:
            piece.parsed = self._parser.feed(piece.text, piece.offsets)
            if self._parser.is_over and piece.finish_reason is None:
                self._finish(piece, "stop", None)
            if piece.finish_reason is not None:
                piece.parsed.extend(self._parser.finish())
                piece.has_calls = self._parser.has_calls
        return piece

    def _piece(self, delta: OutputDelta) -> Piece:
        self._note_start(delta)
        piece = self._first_piece()
        if self._is_silent:
            if delta.finish_reason is not None:
                self.finish_reason = piece.finish_reason = "length"
            return piece
        last = len(delta.token_ids) - 1
        for position, token_id in enumerate(delta.token_ids):
            is_stop_token = delta.ends_with_stop_token and position == last
            self._push_token(piece, token_id, is_stop_token and not self._rules.is_included)
            if delta.logprobs is not None:
                piece.logprobs.append(delta.logprobs[position])
            if self._stops.matched is not None:
                return self._finish(piece, "stop", self._stops.matched)
        if delta.finish_reason is not None:
            self._flush(piece)
            if self._stops.matched is not None:
                return self._finish(piece, "stop", self._stops.matched)
            return self._finish(piece, delta.finish_reason, self._stop_token(delta))
        return piece

    def _first_piece(self) -> Piece:
        """Empty, but for the first piece of an answer that repeats its prompt."""
        if self._echo is None:
            return Piece()
        echo, self._echo = self._echo, None
        return Piece(
            echo.text,
            list(echo.token_ids),
            list(self.prompt_logprobs or []),
            list(echo.offsets),
            num_echoed=len(echo.token_ids),
        )

    def _push_token(self, piece: Piece, token_id: int, is_hidden: bool) -> None:
        self.num_tokens += 1
        piece.token_ids.append(token_id)
        piece.offsets.append(self._offset)
        text = "" if is_hidden else self._detokenizer.push(token_id)
        self._show(piece, text, self.num_tokens > self._rules.min_tokens)

    def _show(self, piece: Piece, text: str, is_searched: bool) -> None:
        self._offset += len(text)
        piece.text += self._stops.feed(text) if is_searched else text

    def _flush(self, piece: Piece) -> None:
        self._show(piece, self._detokenizer.flush(), self.num_tokens > self._rules.min_tokens)
        if self._stops.matched is None:
            piece.text += self._stops.flush()

    def _finish(self, piece: Piece, finish_reason: str, stop_reason: str | int | None) -> Piece:
        self.finish_reason = piece.finish_reason = finish_reason
        piece.stop_reason = stop_reason
        return piece

    def _stop_token(self, delta: OutputDelta) -> int | None:
        if not delta.ends_with_stop_token or not delta.token_ids:
            return None
        return delta.token_ids[-1] if delta.token_ids[-1] in self._rules.token_ids else None

    def _note_start(self, delta: OutputDelta) -> None:
        if delta.queue_s is not None:
            self.queue_s = delta.queue_s
        if delta.num_cached_tokens is not None:
            self.num_cached_tokens = delta.num_cached_tokens
        if delta.prompt_logprobs is not None:
            self.prompt_logprobs = delta.prompt_logprobs
