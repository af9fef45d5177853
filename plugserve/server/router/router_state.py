"""The shared state of a router's routes, at app.ctx.state."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import TypeVar, cast

from sanic import Request

from plugserve.server.operations.access import Access
from plugserve.server.operations.requests_in_flight import RequestsInFlight
from plugserve.server.operations.service_limits import ServiceLimits
from plugserve.server.operations.tracing.tracer import NullTracer, Tracer
from plugserve.server.router.fleet import Fleet
from plugserve.server.router.name_lookup import NameLookup
from plugserve.server.router.policies import Policy
from plugserve.server.router.probes import Probes
from plugserve.server.router.router_metrics import RouterMetrics
from plugserve.server.router.stored_ids import StoredIds
from plugserve.server.router.upstream import Upstream

Result = TypeVar("Result")


class RouterState:
    """Everything that requests share, and the count of those in flight."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        policy: Policy,
        version: str,
        access: Access | None = None,
        limits: ServiceLimits | None = None,
        logs_requests: bool = True,
        tracer: Tracer | None = None,
    ) -> None:
        self.fleet = fleet
        self.probes = {upstream.name: Probes(upstream) for upstream in fleet}
        self.names = NameLookup(fleet)
        self.policy = policy
        self.access = access if access is not None else Access()
        self.limits = limits if limits is not None else ServiceLimits()
        self.version = version
        self.logs_requests = logs_requests
        self.tracer: Tracer = tracer if tracer is not None else NullTracer()
        self.metrics = RouterMetrics()
        self.stored_ids = StoredIds()
        self.requests = RequestsInFlight("router")

    async def ask_upstreams(self, upstreams: Iterable[Upstream] | None = None) -> None:
        """Ask upstreams (all of them for None) now whether they are well and what they serve, and wait for that."""
        asked = self.fleet if upstreams is None else upstreams
        await asyncio.gather(*(self.probes[upstream.name].ask() for upstream in asked))

    @property
    def num_in_flight(self) -> int:
        return self.requests.count

    @property
    def is_stopping(self) -> bool:
        return self.requests.is_stopping

    def in_flight(self) -> AbstractContextManager[None]:
        """Count a request while it is served. Raises EngineUnavailableError (503) once the router is stopping."""
        return self.requests.counted()

    async def drain(self, grace_s: float) -> None:
        """Refuse new requests and wait for those in flight, for at most grace_s."""
        try:
            async with asyncio.timeout(grace_s):
                await self.requests.ended()
        except TimeoutError:
            return

    async def in_pool(self, work: Callable[[], Result]) -> Result:
        """Run work() in a thread, off the event loop."""
        return await asyncio.to_thread(work)


def router_state_of(request: Request) -> RouterState:
    return cast(RouterState, request.app.ctx.state)
