"""Why an answer ended, in each API's words.

Who decides: the engine, at a stop token or at max_tokens (core/engine/sequence.py, Sequence.accept) and where a grammar
allows nothing more (core/engine/engine.py, Engine._advance); the server, at a stop string or where a parser says that
the answer is over (pipeline/choice.py, TextChoice._piece). Both give "stop", "length" or "abort", which are mapped here
to each API's words.
"""

from __future__ import annotations

from typing import Final

from plugserve.server.pipeline.choice import Piece

_ANTHROPIC: Final = {"stop": "end_turn", "length": "max_tokens", "abort": "pause_turn"}


def chat_finish_reason(piece: Piece) -> str | None:
    """OpenAI's finish_reason of a chat: "tool_calls" for an answer that ended by itself and holds calls."""
    return "tool_calls" if piece.finish_reason == "stop" and piece.has_calls else piece.finish_reason


def anthropic_stop_reason(piece: Piece) -> str:
    """Anthropic's stop_reason of a message."""
    if isinstance(piece.stop_reason, str):
        return "stop_sequence"
    if piece.finish_reason == "stop" and piece.has_calls:
        return "tool_use"
    return _ANTHROPIC.get(piece.finish_reason or "", "end_turn")


def responses_status(finish_reason: str | None) -> tuple[str, str | None]:
    """A response's status and, for one that a limit or the server's end cut short, the reason in
    incomplete_details."""
    if finish_reason == "stop":
        return "completed", None
    return "incomplete", "max_output_tokens" if finish_reason == "length" else "aborted"
