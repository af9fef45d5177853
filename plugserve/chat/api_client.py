"""The client's side of the OpenAI API: models, and one streamed answer at a time."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from plugserve.core.errors import PlugserveError, one_line

_CONNECT_S: Final = 10.0
_MOST_BYTES: Final = 2**22
_LONGEST_SHOWN: Final = 500
_BROKEN: Final = (OSError, http.client.HTTPException)


class ChatError(PlugserveError):
    """The server can't be reached, or answered with an error. The message is one line."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer: text, reasoning, or the reason of its end."""

    text: str = ""
    reasoning: str = ""
    finish_reason: str | None = None


class ApiClient:
    """A server's API at url. Closing a stream early ends the answer on the server."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self.url = url
        self._parts = urlsplit(url)
        self._headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def models(self) -> list[str]:
        """The names of the server's models. Raises ChatError."""
        with self._request("GET", "/v1/models") as response:
            try:
                return [str(entry["id"]) for entry in json.loads(response.read(_MOST_BYTES))["data"]]
            except (ValueError, KeyError, TypeError):
                raise ChatError(f"{self.url}/v1/models is no list of models; is this an OpenAI API?") from None

    def answer(
        self, model: str, messages: Sequence[Mapping[str, str]], fields: Mapping[str, Any]
    ) -> Generator[Piece, None, None]:
        """The pieces of a streamed answer. Raises ChatError."""
        body = {**fields, "model": model, "messages": list(messages), "stream": True}
        with self._request("POST", "/v1/chat/completions", json.dumps(body).encode()) as response:
            is_finished = False
            for data in _events(response):
                if data == b"[DONE]":
                    return
                for piece in _pieces(data):
                    is_finished = is_finished or piece.finish_reason is not None
                    yield piece
        if not is_finished:
            raise ChatError("the answer broke off: the server closed the connection")

    @contextmanager
    def _request(self, method: str, path: str, body: bytes | None = None) -> Iterator[http.client.HTTPResponse]:
        connection = self._connection()
        try:
            connection.connect()
            assert connection.sock is not None
            connection.sock.settimeout(None)  # an answer may take long to begin
            connection.request(method, self._parts.path + path, body, self._headers)
            with connection.getresponse() as response:  # owns the socket where the server closes the connection
                if response.status != 200:
                    raise ChatError(_error_message(response))
                yield response
        except _BROKEN as error:
            raise ChatError(f"{self.url}: {_reason(error)}") from None
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        host, port = self._parts.hostname or "", self._parts.port
        if self._parts.scheme == "https":
            return http.client.HTTPSConnection(host, port, timeout=_CONNECT_S, context=ssl.create_default_context())
        return http.client.HTTPConnection(host, port, timeout=_CONNECT_S)


def _events(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """The data of server-sent events; each of an OpenAI API is one line."""
    while line := response.readline():
        if line.startswith(b"data:"):
            yield line[len(b"data:") :].strip()


def _pieces(data: bytes) -> Iterator[Piece]:
    try:
        event = json.loads(data)
    except ValueError:
        raise ChatError("the server sent an event that is no JSON") from None
    if not isinstance(event, dict):
        return
    if event.get("error"):
        raise ChatError(_message_of(event))
    for choice in event.get("choices") or []:
        delta = choice.get("delta") or {}
        reasoning = delta.get("reasoning") or delta.get("reasoning_content") or ""
        yield Piece(delta.get("content") or "", reasoning, choice.get("finish_reason"))


def _error_message(response: http.client.HTTPResponse) -> str:
    body = response.read(_MOST_BYTES)
    try:
        return _message_of(json.loads(body))
    except ValueError:
        text = body[:_LONGEST_SHOWN].decode(errors="replace").strip()
        return f"the server answered {response.status}: {' '.join(text.split()) or response.reason}"


def _message_of(body: Any) -> str:
    error = body.get("error") if isinstance(body, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return " ".join(str(message or body).split())[:_LONGEST_SHOWN]


def _reason(error: BaseException) -> str:
    if isinstance(error, socket.gaierror):
        return "there is no such host"
    if isinstance(error, TimeoutError):
        return f"no connection in {_CONNECT_S:.0f} s"
    if isinstance(error, ConnectionRefusedError):
        return "no server listens there"
    return one_line(error)
