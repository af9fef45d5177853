"""Finds the upstream that has stored a response, a file or a batch."""

from __future__ import annotations

import asyncio

from sanic import Request

from plugserve.core.errors import EngineUnavailableError, RequestError
from plugserve.server.api.json_body import shown
from plugserve.server.router.proxy_fields import key_fields, request_fields
from plugserve.server.router.router_state import RouterState
from plugserve.server.router.stored_ids import StoredId
from plugserve.server.router.upstream import Upstream
from plugserve.server.router.upstream_client import NotTaken
from plugserve.server.router.upstream_connection import UpstreamLost

_ASKED_S = 5.0


async def find_holder(request: Request, stored: StoredId, state: RouterState) -> Upstream | None:
    """The upstream that has it; None when no upstream that is up knows it.

    Raises EngineUnavailableError (503) while that upstream is down, RequestError (404) for an id that the router didn't
    see, where several keys share the router: it can't tell whose it is.
    """
    name = state.stored_ids.find(request.ctx.owner, stored.id)
    if name is None:
        if state.access.num_keys > 1:
            raise RequestError(f"Nothing is stored under the id {shown(stored.id)}.", status=404, code="not_found")
        return await _search(request, stored, state)
    upstream = state.fleet.named(name)
    if upstream is None or not upstream.is_up:
        raise EngineUnavailableError(f"The server that stored {shown(stored.id)} is not up; try again in a moment.")
    return upstream


async def _search(request: Request, stored: StoredId, state: RouterState) -> Upstream | None:
    """Ask every upstream for it, as after a restart of the router."""
    asked = [upstream for upstream in state.fleet if upstream.is_up]
    if len(asked) == 1:
        return asked[0]
    found = await asyncio.gather(*(_has(request, stored, upstream, state) for upstream in asked))
    holder = next((upstream for upstream, has in zip(asked, found, strict=True) if has), None)
    if holder is not None:
        state.stored_ids.note(request.ctx.owner, stored.id, holder.name)
    return holder


async def _has(request: Request, stored: StoredId, upstream: Upstream, state: RouterState) -> bool:
    keys = key_fields(request, upstream.address, has_own_keys=state.access.has_keys)
    fields = [*request_fields(request, is_decoded=True), *keys]
    try:
        answer = await upstream.client.send("GET", stored.path, fields, silence_s=_ASKED_S)
    except (NotTaken, UpstreamLost):
        return False
    answer.close()
    return answer.status == 200
