"""A request whose body is read within limits."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, Final

from sanic import Request

from plugserve.server.worker.http.content_coding import coding_of, decode
from plugserve.server.worker.http.request_head import HttpError
from plugserve.server.worker.server_state import state_of

_TOO_LARGE: Final = "The request is larger than this server allows."


class LimitedRequest(Request[Any, Any]):
    """The request class of the app. A request without a key is refused before its body is read."""

    async def receive_body(self) -> None:
        """Raises HttpError: 408, 413, 415, 503, or 400 for malformed chunks and codings."""
        state = state_of(self)
        if not state.access.admits(self):
            return
        stream: Any = self.stream
        most = state.limits.max_body_bytes
        coding = coding_of(self.headers.get("content-encoding"))
        if (stream.request_bytes or 0) > most:
            raise HttpError(_TOO_LARGE, status=413)
        share = stream.open_share()
        pieces: list[bytes] = []
        num_bytes = 0
        async for piece in stream:
            num_bytes += len(piece)
            if num_bytes > most:
                raise HttpError(_TOO_LARGE, status=413)
            share.take(len(piece))
            pieces.append(piece)
        share.note_arrived()
        self.body = b"".join(pieces)
        if coding and self.body:
            self.body = await asyncio.get_running_loop().run_in_executor(None, partial(decode, self.body, coding, most))
            share.take(len(self.body))
