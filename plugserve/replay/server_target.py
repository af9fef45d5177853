"""Replays on a running server, through /v1/completions with token ids; a thread for each request."""

from __future__ import annotations

import http.client
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import orjson

from plugserve.core.errors import ConfigError, one_line
from plugserve.core.wire.server_address import ServerAddress, key_header
from plugserve.replay.local_target import Outcome, measured
from plugserve.replay.recording import ReplayRequest

_TIMEOUT_S: Final = 3600.0
_LISTING_TIMEOUT_S: Final = 30.0
_MOST_THREADS: Final = 1024
_MOST_BYTES: Final = 1 << 22
_LARGEST_SEED: Final = (1 << 63) - 1


class ServerTarget:
    """url is a server's, with or without /v1. model "" is its first one. Raises ConfigError for a server that is not
    there, or doesn't serve the model."""

    def __init__(self, url: str, api_key: str, model: str = "") -> None:
        self._address = ServerAddress.read(url)
        self._url = url
        self._headers = {"Content-Type": "application/json"} | key_header(api_key)
        listed = self._models()
        found = next((one for one in listed if not model or one["id"] == model), None)
        if found is None:
            raise ConfigError(f"{url} serves no model {model!r}; it serves {', '.join(one['id'] for one in listed)}")
        self._model = str(found["id"])
        self.max_model_len: int | None = found.get("max_model_len")
        self.vocab_size: int | None = None

    def run(self, requests: Sequence[ReplayRequest], rate: float) -> list[Outcome]:
        """Send each request at its time; returns when all have ended."""
        started_s = time.perf_counter()
        with ThreadPoolExecutor(min(len(requests), _MOST_THREADS), thread_name_prefix="replay") as threads:
            return list(threads.map(lambda one: self._one(one, started_s + one.offset_s / rate), requests))

    def close(self) -> None:
        """Nothing is kept between requests."""

    def _models(self) -> list[dict[str, Any]]:
        try:
            status, data = self._get("/v1/models")
        except (OSError, http.client.HTTPException) as error:
            raise ConfigError(f"--url {self._url} can't be reached: {one_line(error)}") from None
        if status != 200:
            raise ConfigError(f"{self._url}/v1/models answered {status}: {_message(data)}")
        listed: list[dict[str, Any]] = orjson.loads(data)["data"]
        return listed

    def _get(self, path: str) -> tuple[int, bytes]:
        connection = self._address.connection(_LISTING_TIMEOUT_S)
        try:
            connection.request("GET", self._address.prefix + path, headers=self._headers)
            response = connection.getresponse()
            return response.status, response.read(_MOST_BYTES)
        finally:
            connection.close()

    def _one(self, request: ReplayRequest, at_s: float) -> Outcome:
        time.sleep(max(0.0, at_s - time.perf_counter()))
        connection = self._address.connection(_TIMEOUT_S)
        sent_s = time.perf_counter()
        first_s, num_tokens = 0.0, 0
        try:
            body = orjson.dumps(_body(request, self._model))
            connection.request("POST", f"{self._address.prefix}/v1/completions", body, self._headers)
            response = connection.getresponse()
            if response.status != 200:
                return f"the server answered {response.status}: {_message(response.read(_MOST_BYTES))}"
            while line := response.readline():
                if not line.startswith(b"data: {"):
                    continue
                event = orjson.loads(line[len(b"data: ") :])
                if "error" in event:
                    return str(event["error"].get("message", event["error"]))
                first_s = first_s or time.perf_counter()
                num_tokens = (event.get("usage") or {}).get("completion_tokens", num_tokens)
        except (OSError, http.client.HTTPException, ValueError) as error:
            return one_line(error)
        finally:
            connection.close()
        return measured(sent_s, first_s or time.perf_counter(), time.perf_counter(), num_tokens)


def _body(request: ReplayRequest, model: str) -> dict[str, Any]:
    params = request.params
    body: dict[str, Any] = {
        "model": model,
        "prompt": request.prompt,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": params.max_tokens,
        "min_tokens": params.min_tokens,
        "ignore_eos": True,
        "seed": params.seed & _LARGEST_SEED,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "min_p": params.min_p,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "repetition_penalty": params.repetition_penalty,
        "priority": request.priority,
    }
    if params.top_k:
        body["top_k"] = params.top_k
    if params.num_logprobs is not None:
        body["logprobs"] = params.num_logprobs
    return body


def _message(data: bytes) -> str:
    try:
        return str(orjson.loads(data)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return data[:200].decode(errors="replace")
