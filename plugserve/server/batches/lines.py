"""The lines of a batch file, and of the file of its results (OpenAI's formats)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

import orjson

from plugserve.server.api.json_body import shown

ENDPOINTS: Final = (
    "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/rerank", "/v1/score"
)  # fmt: skip
_ID_BYTES: Final = 12
_MAX_ID: Final = 256


@dataclass(frozen=True, slots=True)
class LineFault:
    """Why a line can't be sent. message is one line for its author."""

    code: str
    message: str
    param: str | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """One line: a request, unless fault is given. number counts from 1. id names its result; it changes with the line's
    text, that of a line with a fault also with its place. custom_id is the author's, None where it can't be read."""

    number: int
    id: str
    custom_id: str | None = None
    url: str = ""
    body: Mapping[str, Any] | None = None
    fault: LineFault | None = None


def result_id(text: bytes, batch: str = "", number: int = 0) -> str:
    """The id of a line's result; equal for the same line of the same batch in every run. number is the line's where
    texts may be equal."""
    digest = hashlib.blake2b(f"{batch}\n{number}\n".encode() + text, digest_size=_ID_BYTES)
    return f"batch_req_{digest.hexdigest()}"


def texts_of(file: BinaryIO, max_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Number and text of each line that isn't blank. Of a longer line than max_bytes one byte more is given, and the
    rest is read past."""
    number = 0
    while text := file.readline(max_bytes + 2):
        number += 1
        is_whole = text.endswith(b"\n")
        while not is_whole and len(text) > max_bytes and (rest := file.readline(2**20)):
            is_whole = rest.endswith(b"\n")
        if text := text.strip():
            yield number, text[: max_bytes + 1]


def read_line(number: int, text: bytes, *, max_bytes: int, batch: str = "", endpoint: str | None = None) -> Line:
    """A line's request, or what is wrong with it. endpoint: the only one that the batch may call."""
    id = result_id(text, batch, number)

    def bad(code: str, message: str, param: str | None = None, custom_id: str | None = None) -> Line:
        return Line(number, id, custom_id, fault=LineFault(code, message, param))

    if len(text) > max_bytes:
        return bad("line_too_long", f"The line is longer than {max_bytes} bytes, the largest body of a request.")
    try:
        fields = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        return bad("invalid_json", f"The line is not valid JSON: {error}")
    if not isinstance(fields, dict):
        return bad("invalid_line", f"The line must be a JSON object, got {type(fields).__name__}.")
    custom_id = fields.get("custom_id")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= _MAX_ID:
        return bad(
            "invalid_custom_id",
            f"custom_id: must be a text of 1 to {_MAX_ID} characters, got {shown(custom_id)}",
            "custom_id",
        )
    fault = _fault_of(fields, endpoint)
    if fault is not None:
        return Line(number, id, custom_id, fault=fault)
    return Line(number, result_id(text, batch), custom_id, fields["url"], fields["body"])


def _fault_of(fields: Mapping[str, Any], endpoint: str | None) -> LineFault | None:
    """What is wrong with a line's method, url and body."""
    method, url, body = fields.get("method"), fields.get("url"), fields.get("body")
    if method != "POST":
        return LineFault("invalid_method", f"method: must be POST, got {shown(method)}", "method")
    if url not in ENDPOINTS:
        return LineFault("invalid_url", f"url: must be one of {', '.join(ENDPOINTS)}, got {shown(url)}", "url")
    if endpoint is not None and url != endpoint:
        return LineFault("mismatched_url", f"url: must be {endpoint}, the batch's endpoint, got {shown(url)}", "url")
    if not isinstance(body, dict):
        return LineFault("invalid_body", f"body: must be a JSON object, got {type(body).__name__}", "body")
    if body.get("stream"):
        message = "body.stream: answers of a batch are not streamed; leave it out"
        return LineFault("unsupported_value", message, "stream")
    return None


def duplicate(line: Line, first: int) -> Line:
    """line with the fault that an earlier one has its custom_id."""
    message = f"custom_id: line {first} has {shown(line.custom_id)}, too; give each line its own"
    id = result_id(line.id.encode(), number=line.number)
    return Line(line.number, id, line.custom_id, fault=LineFault("duplicate_custom_id", message, "custom_id"))


def answered(line: Line, status: int, request_id: str, body: bytes) -> bytes:
    """The result of a line that was answered; body is JSON."""
    response = {"status_code": status, "request_id": request_id, "body": orjson.Fragment(body)}
    return orjson.dumps({"id": line.id, "custom_id": line.custom_id, "response": response, "error": None}) + b"\n"


def failed(line: Line, fault: LineFault) -> bytes:
    """The result of a line that could not be sent."""
    error = {"code": fault.code, "message": fault.message, "param": fault.param, "line": line.number}
    return orjson.dumps({"id": line.id, "custom_id": line.custom_id, "response": None, "error": error}) + b"\n"
