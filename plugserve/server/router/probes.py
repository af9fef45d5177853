"""Asks one upstream again and again whether it is well and which models it serves."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Mapping
from typing import Any, Final

import orjson

from plugserve.server.router.upstream import Upstream
from plugserve.server.router.upstream_client import ConnectFailed, NotTaken
from plugserve.server.router.upstream_connection import UpstreamLost, UpstreamSilent

logger = logging.getLogger(__name__)

_PROBE_S: Final = 5.0
_MOST_SILENT_PROBES: Final = 2  # a server that is busy for a moment may miss one
_GIVE_UP_S: Final = 20.0  # without a byte from an upstream that is down
_MOST_BYTES: Final = 2 * 2**20
_NO_SUCH_PATH: Final = (404, 405, 501)


class Probes:
    """The probes of one upstream. run() goes on for ever."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._num_silent = 0
        self._has_health = True

    async def run(self) -> None:
        upstream = self._upstream
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(upstream.next_pause_s() * random.uniform(0.9, 1.1)):
                    await upstream.wakes_probe.wait()
            upstream.wakes_probe.clear()
            try:
                await self.ask()
            except Exception:  # a fault of this code must not end the probes
                logger.exception("a probe of upstream %s failed", upstream.name)

    async def ask(self) -> None:
        """Ask once, and note what the upstream says."""
        upstream, clock = self._upstream, asyncio.get_running_loop().time
        try:
            models = await self._models()
        except NotTaken as failure:
            if not (isinstance(failure, ConnectFailed) and failure.is_own_fault):
                upstream.note_down(str(failure), clock())
        except UpstreamSilent as failure:
            self._num_silent += 1
            if self._num_silent >= _MOST_SILENT_PROBES or not upstream.is_up:
                upstream.note_down(str(failure), clock())
            else:
                upstream.wakes_probe.set()
        except (UpstreamLost, _Unwell) as failure:
            upstream.note_down(str(failure), clock())
        else:
            self._num_silent = 0
            upstream.note_well(models, clock())
        self._end_silent_exchanges()

    async def _models(self) -> Mapping[str, Mapping[str, Any]]:
        if self._has_health:
            status, _ = await self._get("/health")
            self._has_health = status not in _NO_SUCH_PATH
            if self._has_health and not 200 <= status < 300:
                raise _Unwell(f"its /health answers {status}")
        status, body = await self._get("/v1/models")
        if status in (401, 403):
            raise _Unwell(f"its /v1/models answers {status}: give its key with --upstream-key")
        if status != 200:
            raise _Unwell(f"its /v1/models answers {status}")
        return _read_models(body)

    async def _get(self, path: str) -> tuple[int, bytes]:
        upstream = self._upstream
        answer = await upstream.client.send("GET", path, upstream.address.probe_fields, silence_s=_PROBE_S)
        try:
            return answer.status, await answer.read(_MOST_BYTES)
        finally:
            answer.close()

    def _end_silent_exchanges(self) -> None:
        """Fail the requests of an upstream that stays down and sends nothing, such as a stopped process."""
        since_s = self._upstream.down_since_s
        if since_s is None or asyncio.get_running_loop().time() - since_s < _GIVE_UP_S:
            return
        num_ended = self._upstream.client.fail_silent(_GIVE_UP_S, f"it sent nothing for {_GIVE_UP_S:g} s and is down")
        if num_ended:
            logger.warning("upstream %s: %d requests without news are ended", self._upstream.name, num_ended)


class _Unwell(Exception):
    """The upstream answers a probe, but can't serve."""


def _read_models(body: bytes) -> dict[str, Mapping[str, Any]]:
    """The entries of a list of models by id."""
    try:
        entries = orjson.loads(body)["data"]
        return {entry["id"]: entry for entry in entries if isinstance(entry["id"], str)}
    except (orjson.JSONDecodeError, TypeError, KeyError):
        raise _Unwell("its /v1/models answers no list of models") from None
