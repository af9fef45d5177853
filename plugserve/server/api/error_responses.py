"""Error responses in OpenAI's format, on Anthropic's routes in Anthropic's; unexpected exceptions are reported without
details.

Status and code of the server's failures come from core/wire/failures.py.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

import orjson
from sanic import Request
from sanic.exceptions import MethodNotAllowed, NotFound, PayloadTooLarge, SanicException
from sanic.handlers import ErrorHandler
from sanic.response import HTTPResponse

from plugserve.core.contracts.requests import Refusal
from plugserve.core.errors import EngineError, RequestError
from plugserve.core.wire.failures import failure_of
from plugserve.server.api.json_body import JSON_TYPE

logger = logging.getLogger(__name__)

_INTERNAL: Final = "The server failed to answer this request; its log has the cause."
_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_ANTHROPIC_TYPES: Final = _TYPES | {413: "request_too_large", 503: "overloaded_error"}


def error_type(status: int) -> str:
    """OpenAI's error type for a status."""
    if status in _TYPES:
        return _TYPES[status]
    return "invalid_request_error" if status < 500 else "server_error"


def error_object(status: int, message: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": error_type(status), "param": param, "code": code}}


def anthropic_error_object(status: int, message: str) -> dict[str, Any]:
    """Anthropic's shape, with its error type for a status."""
    kind = _ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}}


def is_anthropic(path: str) -> bool:
    return path == "/v1/messages" or path.startswith("/v1/messages/")


def _in_shape_of(path: str, status: int, body: dict[str, Any]) -> dict[str, Any]:
    """An error in the shape of the API that path belongs to; body is OpenAI's."""
    message = body["error"]["message"]
    if is_anthropic(path):
        return anthropic_error_object(status, message)
    return {"message": message} if path == "/v2/rerank" else body


def describe(error: BaseException) -> tuple[int, dict[str, Any]]:
    """Status and body for any exception; only messages written for clients are shown."""
    if isinstance(error, RequestError):
        return error.status, error_object(error.status, str(error), param=error.param, code=error.code)
    if isinstance(error, EngineError):
        failure = failure_of(error)
        return failure.status, error_object(failure.status, str(error), param=failure.param, code=failure.code)
    if isinstance(error, SanicException) and 400 <= (error.status_code or 500) < 500:
        return error.status_code, error_object(error.status_code, _http_message(error))
    return 500, error_object(500, _INTERNAL, code="internal_error")


def _http_message(error: SanicException) -> str:
    if isinstance(error, NotFound):
        return "This path does not exist."
    if isinstance(error, MethodNotAllowed):
        return f"{error}."
    if isinstance(error, PayloadTooLarge):
        return "The request is larger than this server allows."
    return str(error) or "The request can't be read."


def error_response(error: BaseException, path: str = "") -> HTTPResponse:
    """The response for error at path, with Retry-After for temporary failures."""
    status, body = describe(error)
    body = _in_shape_of(path, status, body)
    headers = dict(getattr(error, "headers", None) or {})
    if status == 503:
        headers.setdefault("Retry-After", "1")
    return HTTPResponse(orjson.dumps(body), status=status, headers=headers, content_type=JSON_TYPE)


def refusal_response(refusal: Refusal, path: str = "") -> HTTPResponse:
    """The response for a plugin's refusal at path."""
    body = _in_shape_of(path, refusal.status, error_object(refusal.status, refusal.message, code=refusal.code))
    return HTTPResponse(
        orjson.dumps(body), status=refusal.status, headers=dict(refusal.headers), content_type=JSON_TYPE
    )


def error_event(error: BaseException) -> bytes:
    """An error in the middle of a stream."""
    return b"data: " + orjson.dumps(describe(error)[1]) + b"\n\n"


def log_if_ours(error: BaseException, request_id: str) -> None:
    """Log failures of the server, unexpected ones with the traceback. Clients' faults and overload are only counted."""
    if isinstance(error, (RequestError, asyncio.CancelledError)):
        return
    if isinstance(error, EngineError):
        if not failure_of(error).is_logged:
            return
        logger.warning("request id=%s failed: %s", request_id, error)
    elif not isinstance(error, SanicException) or (error.status_code or 500) >= 500:
        logger.error("request id=%s failed", request_id, exc_info=error)


class OpenAiErrorHandler(ErrorHandler):
    """Makes the response to an exception of a handler or of Sanic."""

    def response(self, request: Request, exception: BaseException) -> HTTPResponse:
        log_if_ours(exception, str(getattr(request.ctx, "id", "-")))
        return error_response(exception, request.path)
