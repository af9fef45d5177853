"""A client's JSON body: read, checked against a schema, or refused with an error that names the field at fault."""

from __future__ import annotations

import gc
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from sanic import Request

from plugserve.core.errors import RequestError

JSON_TYPE: Final = "application/json"
_MAX_SHOWN: Final = 60
_LARGE_BYTES: Final = 2**20
Schema = TypeVar("Schema", bound=BaseModel)
Refusals = Mapping[str, Callable[[Any], bool]]
"""Unsupported fields of an API, each with a function that is True for values that would change the answer."""


def json_object(request: Request, known: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The request's body as a JSON object; known where it has been read. Raises RequestError (415 or 400).

    request.ctx.body_fault is why it could not be read, where that is known."""
    media_type = (request.headers.get("content-type") or "").partition(";")[0].strip().lower()
    if media_type != JSON_TYPE:
        raise RequestError(
            f"Content-Type must be application/json, got {media_type or 'none'}.",
            status=415,
            code="unsupported_media_type",
        )
    if known is not None:
        return known
    fault: RequestError | None = getattr(request.ctx, "body_fault", None)
    if fault is not None:
        raise fault
    return read_object(request.body)


def read_object(body: bytes) -> dict[str, Any]:
    """body as a JSON object. Raises RequestError (400)."""
    try:
        value = read_json(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"The body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise RequestError(f"The body must be a JSON object, got {type(value).__name__}.", code="invalid_json")
    return value


def read_json(body: bytes) -> Any:
    """A request's JSON. Raises orjson.JSONDecodeError. A large one is read without the cycle collector, which would
    walk through all values so far again and again; JSON has no cycles."""
    if len(body) < _LARGE_BYTES or not gc.isenabled():
        return orjson.loads(body)
    gc.disable()
    try:
        return orjson.loads(body)
    finally:
        gc.enable()


def model_name(body: Mapping[str, Any]) -> str | None:
    """The model that a body asks for, if any. Raises RequestError (400)."""
    name = body.get("model")
    if name is None or isinstance(name, str):
        return name
    raise RequestError(f"model: must be a string, got {type(name).__name__}", param="model")


def validated(schema: type[Schema], body: Mapping[str, Any]) -> Schema:
    """body as an object of schema. Raises RequestError (400) that names the first field at fault."""
    try:
        return schema.model_validate(dict(body))
    except ValidationError as error:
        raise _request_error(error) from None


def is_given(value: Any) -> bool:
    """True for any value except null, false and empty ones, which clients send for "not set"."""
    return value not in (None, False, "", [], {})


def refuse_unserved(body: Mapping[str, Any], unserved: Refusals, place: str = "") -> None:
    """Raises RequestError (400) for an unsupported field whose value would change the answer."""
    for name, asks_for_it in unserved.items():
        if name in body and asks_for_it(body[name]):
            raise RequestError(
                f"{name}: not supported{place} by this server, got {shown(body[name])}; leave it out.",
                code="unsupported_value",
                param=name,
            )


def _request_error(error: ValidationError) -> RequestError:
    first = error.errors(include_url=False)[0]
    path = [str(part) for part in first["loc"]]
    field = path[0] if path else None
    if first["type"] == "missing":
        return RequestError(f"{'.'.join(path)}: this field is required.", code="missing", param=field)
    message = first["msg"].removeprefix("Value error, ")
    got = "" if first["type"] == "value_error" else f", got {shown(first['input'])}"
    return RequestError(f"{'.'.join(path)}: {message}{got}", code=first["type"], param=field)


_shortener = reprlib.Repr()
_shortener.maxstring = _shortener.maxother = _shortener.maxlong = _MAX_SHOWN


def shown(value: Any) -> str:
    """A client's value, shortened for an error message, without formatting all of it."""
    text = _shortener.repr(value)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."
