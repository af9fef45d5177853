"""The common parts of streams of typed events (Responses and Messages)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from plugserve.core.contracts.answers import AnswerDelta
from plugserve.server.pipeline.choice import Piece


def typed_event(body: Mapping[str, Any]) -> bytes:
    """A server-sent event that is named after its body's type."""
    return b"event: %s\ndata: %s\n\n" % (str(body["type"]).encode(), orjson.dumps(body))


def parsed_of(piece: Piece) -> AnswerDelta:
    """A piece as thinking, content and calls; all of it is content where no parser reads the answer."""
    return AnswerDelta(piece.text) if piece.parsed is None else piece.parsed
