"""Finds upstreams for names that no list of models has: servers also know short names of their models.

A name that no upstream knows is not asked for again for a while, and few names are asked for at a time, so that
requests with made-up names cost upstreams little.
"""

from __future__ import annotations

import asyncio
from typing import Final
from urllib.parse import quote

from plugserve.server.router.fleet import Fleet
from plugserve.server.router.upstream import Upstream
from plugserve.server.router.upstream_client import NotTaken
from plugserve.server.router.upstream_connection import UpstreamLost

_UNKNOWN_S: Final = 5.0
_MOST_UNKNOWN: Final = 1024
_MOST_AT_A_TIME: Final = 8
_MOST_CHARACTERS: Final = 256
_ASKED_S: Final = 5.0


class NameLookup:
    """Asks the upstreams of a fleet."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._unknown: dict[str, float] = {}  # until when, the oldest first
        self._num_running = 0

    async def look_up(self, name: str) -> None:
        """Ask every upstream that is up whether it serves name, unless that was asked a moment ago; those that do note
        it."""
        now_s = asyncio.get_running_loop().time()
        is_known_as_unknown = self._unknown.get(name, 0.0) > now_s
        if is_known_as_unknown or len(name) > _MOST_CHARACTERS or self._num_running >= _MOST_AT_A_TIME:
            return
        self._num_running += 1
        try:
            asked = [upstream for upstream in self._fleet if upstream.is_up]
            found = await asyncio.gather(*(_serves(upstream, name) for upstream in asked))
        finally:
            self._num_running -= 1
        for upstream, is_serving in zip(asked, found, strict=True):
            if is_serving:
                upstream.note_name(name)
        if not any(found):
            self._unknown.pop(name, None)
            self._unknown[name] = now_s + _UNKNOWN_S
            if len(self._unknown) > _MOST_UNKNOWN:
                del self._unknown[next(iter(self._unknown))]


async def _serves(upstream: Upstream, name: str) -> bool:
    path = f"/v1/models/{quote(name, safe='/')}"
    try:
        answer = await upstream.client.send("GET", path, upstream.address.probe_fields, silence_s=_ASKED_S)
    except (NotTaken, UpstreamLost):
        return False
    answer.close()
    return answer.status == 200
