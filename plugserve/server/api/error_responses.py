"""Every error in OpenAI's shape, or in Anthropic's at its routes.

Knows which exception means which status, and keeps our insides inside.
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
from plugserve.core.errors import (
    AdapterGoneError,
    EngineError,
    EngineUnavailableError,
    GrammarError,
    QueueFullError,
    RequestError,
    RequestTimeoutError,
)
from plugserve.server.api.json_body import JSON_TYPE

logger = logging.getLogger(__name__)

_INTERNAL: Final = "The server failed to answer this request; its log says why."
_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_ANTHROPIC_TYPES: Final = _TYPES | {413: "request_too_large", 503: "overloaded_error"}


def error_type(status: int) -> str:
    """OpenAI's word for a status."""
    if status in _TYPES:
        return _TYPES[status]
    return "invalid_request_error" if status < 500 else "server_error"


def error_object(status: int, message: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": error_type(status), "param": param, "code": code}}


def anthropic_error_object(status: int, message: str) -> dict[str, Any]:
    """Anthropic's shape, with its words for a status."""
    kind = _ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}}


def _speaks_anthropic(path: str) -> bool:
    return path == "/v1/messages" or path.startswith("/v1/messages/")


def describe(error: BaseException) -> tuple[int, dict[str, Any]]:
    """Status and body for any exception; only messages written for clients are shown."""
    if isinstance(error, RequestError):
        return error.status, error_object(error.status, str(error), param=error.param, code=error.code)
    if isinstance(error, QueueFullError):
        return 503, error_object(503, str(error), code="queue_full")
    if isinstance(error, RequestTimeoutError):
        return 504, error_object(504, str(error), code="request_timeout")
    if isinstance(error, EngineUnavailableError):
        return 503, error_object(503, str(error), code="engine_unavailable")
    if isinstance(error, AdapterGoneError):
        return 404, error_object(404, str(error), param="model", code="model_not_found")
    if isinstance(error, GrammarError):
        return 400, error_object(400, str(error), code="invalid_grammar")
    if isinstance(error, EngineError):
        return 500, error_object(500, str(error), code="engine_error")
    if isinstance(error, SanicException) and 400 <= (error.status_code or 500) < 500:
        return error.status_code, error_object(error.status_code, _http_message(error))
    return 500, error_object(500, _INTERNAL, code="internal_error")


def _http_message(error: SanicException) -> str:
    if isinstance(error, NotFound):
        return "There is nothing at this path."
    if isinstance(error, MethodNotAllowed):
        return f"{error}."
    if isinstance(error, PayloadTooLarge):
        return "The request is larger than this server allows."
    return str(error) or "The request can't be read."


def error_response(error: BaseException, path: str = "") -> HTTPResponse:
    """The response for error at path, with Retry-After where trying again makes sense."""
    status, body = describe(error)
    if _speaks_anthropic(path):
        body = anthropic_error_object(status, body["error"]["message"])
    headers = dict(getattr(error, "headers", None) or {})
    if status == 503:
        headers["Retry-After"] = "1"
    return HTTPResponse(orjson.dumps(body), status=status, headers=headers, content_type=JSON_TYPE)


def refusal_response(refusal: Refusal, path: str = "") -> HTTPResponse:
    """A plugin's no at path."""
    body = error_object(refusal.status, refusal.message, code=refusal.code)
    if _speaks_anthropic(path):
        body = anthropic_error_object(refusal.status, refusal.message)
    return HTTPResponse(
        orjson.dumps(body), status=refusal.status, headers=dict(refusal.headers), content_type=JSON_TYPE
    )


def error_event(error: BaseException) -> bytes:
    """An error in the middle of a stream."""
    return b"data: " + orjson.dumps(describe(error)[1]) + b"\n\n"


def log_if_ours(error: BaseException, request_id: str) -> None:
    """The client's faults and an overload are not logged (metrics count them); our faults are, with the traceback when
    nobody foresaw them."""
    if isinstance(error, (RequestError, QueueFullError, AdapterGoneError, GrammarError, asyncio.CancelledError)):
        return
    if isinstance(error, EngineError):
        logger.warning("request id=%s failed: %s", request_id, error)
    elif not isinstance(error, SanicException) or (error.status_code or 500) >= 500:
        logger.error("request id=%s failed", request_id, exc_info=error)


class OpenAiErrorHandler(ErrorHandler):
    """What Sanic asks when a handler or Sanic itself raised."""

    def response(self, request: Request, exception: BaseException) -> HTTPResponse:
        log_if_ours(exception, str(getattr(request.ctx, "id", "-")))
        return error_response(exception, request.path)
