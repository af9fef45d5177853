"""Runs a router from its settings: one process with one event loop, from the first probe to the last answer."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import time
from functools import partial
from typing import Final

import plugserve
from plugserve.core.settings.settings import Settings
from plugserve.server.operations.access import Access, access_of
from plugserve.server.operations.service_limits import service_limits
from plugserve.server.operations.service_manager import ServiceManager
from plugserve.server.operations.tls import tls_context
from plugserve.server.operations.tracing.make_tracer import announce_destination, make_tracer
from plugserve.server.router.fleet import Fleet
from plugserve.server.router.policies import make_policy
from plugserve.server.router.router_app import build_router_app
from plugserve.server.router.router_state import RouterState
from plugserve.server.router.upstream import Upstream
from plugserve.server.router.upstream_address import UpstreamAddress, read_addresses
from plugserve.server.router.upstream_client import UpstreamClient
from plugserve.server.supervisor.listener import listening
from plugserve.server.supervisor.ready_lines import ServerAddress, announce_ready
from plugserve.server.worker.http.connection_limits import connection_limits
from plugserve.server.worker.http.event_loop import loop_factory
from plugserve.server.worker.http.http_server import HttpServer
from plugserve.server.worker.reload import reload_files

log = logging.getLogger(__name__)

_DESCRIPTORS: Final = 2  # of a request: the client's connection and the upstream's
_FIRST_ANSWERS_S: Final = 3.0  # for upstreams to answer before the router accepts requests
_LAST_ANSWERS_S: Final = 0.5
_LOCAL: Final = ("127.0.0.1", "::1", "localhost")


def route(settings: Settings) -> int:
    """Serve until a signal. Returns the exit code; raises UserError for faults that the user can fix."""
    addresses = read_addresses(settings.upstream, settings.upstream_key)
    access = access_of(settings)
    _warn(settings, addresses, access)
    with listening(settings) as listener, asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_RouterProcess(settings, addresses, access).serve(listener))
    return 0


def make_fleet(settings: Settings, addresses: list[UpstreamAddress]) -> Fleet:
    """The upstreams at addresses. Needs a running event loop."""
    return Fleet(
        [
            Upstream(
                address,
                UpstreamClient(
                    address, connect_s=settings.upstream_connect_timeout, silence_s=settings.upstream_timeout
                ),
                probe_interval_s=settings.probe_interval,
            )
            for address in addresses
        ]
    )


def _warn(settings: Settings, addresses: list[UpstreamAddress], access: Access) -> None:
    log.info("plugserve %s: router, policy %s", plugserve.__version__, settings.policy)
    for address in addresses:
        log.info("upstream %s at %s%s", address.name, address.url, ", with a key" if address.key else "")
    if any(address.key for address in addresses) and not access.has_keys and settings.host not in _LOCAL:
        log.warning(
            "anyone who reaches %s:%d uses the key of --upstream-key: set --api-key, or listen on --host 127.0.0.1",
            settings.host,
            settings.port,
        )


class _RouterProcess:
    """One router's objects and tasks."""

    def __init__(self, settings: Settings, addresses: list[UpstreamAddress], access: Access) -> None:
        self._settings = settings
        self._addresses = addresses
        self._access = access
        self._began_s = time.monotonic()

    async def serve(self, listener: socket.socket) -> None:
        """Serve from listening to shutdown."""
        settings = self._settings
        self._stop, self._hurry = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._note_signal)
        announce_destination(settings, os.environ)
        tracer = make_tracer(settings, os.environ, part="router")
        state = RouterState(
            fleet=make_fleet(settings, self._addresses),
            policy=make_policy(settings.policy, settings.affinity_slack),
            version=plugserve.__version__,
            access=self._access,
            limits=service_limits(settings),
            logs_requests=not settings.disable_log_requests,
            tracer=tracer,
        )
        server = HttpServer(
            build_router_app(state),
            listener,
            limits=connection_limits(settings, _DESCRIPTORS),
            tls=tls_context(settings),
            root_path=settings.root_path,
        )
        await self._ask_first(state)
        probes = [asyncio.create_task(probes.run()) for probes in state.probes.values()]
        await server.start()
        service = ServiceManager.of(os.environ)
        loop.add_signal_handler(signal.SIGHUP, partial(self._reload, server, service))
        gc.collect()
        gc.freeze()  # modules live on: exclude them from garbage collection
        address = ServerAddress.of(settings, listener.getsockname(), needs_key=self._access.has_keys)
        announce_ready(address, time.monotonic() - self._began_s)
        service.ready(f"routing on {address.url}")
        probes.append(asyncio.create_task(service.watch(lambda: True)))
        await self._stop.wait()
        service.stopping()
        await self._leave(state, server)
        for task in probes:
            task.cancel()
        await asyncio.gather(*probes, return_exceptions=True)
        await asyncio.to_thread(tracer.shutdown)

    def _reload(self, server: HttpServer, service: ServiceManager) -> None:
        service.reloading()
        reload_files(self._settings, self._access, server)
        service.ready("routing")

    async def _ask_first(self, state: RouterState) -> None:
        """Learn the models before requests come; an upstream that doesn't answer in time is waited for no longer."""
        try:
            async with asyncio.timeout(_FIRST_ANSWERS_S):
                await state.ask_upstreams()
        except TimeoutError:
            log.warning("not all upstreams have answered in %.0f s", _FIRST_ANSWERS_S)

    def _note_signal(self) -> None:
        """The first signal lets requests in flight finish; a second one ends them."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    async def _leave(self, state: RouterState, server: HttpServer) -> None:
        log.info("stopping; %d requests in flight", state.num_in_flight)
        drained = asyncio.create_task(state.drain(self._settings.shutdown_timeout))
        hurried = asyncio.create_task(self._hurry.wait())
        await asyncio.wait({drained, hurried}, return_when=asyncio.FIRST_COMPLETED)
        for task in (drained, hurried):
            task.cancel()
        await asyncio.gather(drained, hurried, return_exceptions=True)
        for upstream in state.fleet:
            upstream.client.fail_all("the router is shutting down")
        await state.drain(_LAST_ANSWERS_S)
        server.stop_accepting()
        await server.close_connections()
