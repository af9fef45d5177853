"""A prompt as a chat template wrote it, and which parts of it are the client's own words."""

from __future__ import annotations

from collections.abc import Sequence


class RenderedText(str):
    """client_spans: where each part that a client wrote begins and ends, one after the other."""

    client_spans: Sequence[int]

    def __new__(cls, text: str, client_spans: Sequence[int] = ()) -> RenderedText:
        self = super().__new__(cls, text)
        self.client_spans = client_spans
        return self
