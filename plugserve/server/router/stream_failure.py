"""The end of a stream of events that its upstream can't finish, in the API's shape."""

from __future__ import annotations

from typing import Final

from plugserve.core.errors import EngineError
from plugserve.server.api.error_responses import anthropic_error_object, describe, error_event, is_anthropic
from plugserve.server.api.openai_format import DONE
from plugserve.server.api.typed_events import typed_event

_RESPONSES: Final = "/v1/responses"


def failure_event(path: str, error: EngineError, next_number: int) -> bytes:
    """The last bytes of the stream. next_number continues the events of the Responses API."""
    status, body = describe(error)
    described = body["error"]
    if is_anthropic(path):
        return typed_event(anthropic_error_object(status, described["message"]))
    if path.rstrip("/") == _RESPONSES:
        fields = {"code": described["code"], "message": described["message"], "param": None}
        return typed_event({"type": "error", "sequence_number": next_number, **fields})
    return error_event(error) + DONE
