"""A router on a free port before stub upstreams, in the test's own event loop."""

import asyncio
import socket
from contextlib import asynccontextmanager

import httpx
import pytest
import sanic

from plugserve.core.settings.settings import Settings
from plugserve.server.router.main import make_fleet
from plugserve.server.router.policies import make_policy
from plugserve.server.router.router_app import build_router_app
from plugserve.server.router.router_state import RouterState
from plugserve.server.router.upstream_address import read_addresses
from plugserve.server.worker.http.http_server import HttpServer
from tests.server.router.stub_upstream import StubUpstream


class Routed:
    """A router that serves; client speaks HTTP to it."""

    def __init__(self, state, client, port):
        self.state, self.client, self.port = state, client, port

    def upstream(self, name):
        return self.state.fleet.named(name)

    async def chat(self, content="hello", model="m", **fields):
        body = {"model": model, "messages": [{"role": "user", "content": content}], **fields}
        return await self.client.post("/v1/chat/completions", json=body)

    async def metric(self, name, **labels):
        """The value of one sample, 0 where there is none."""
        wanted = {f'{label}="{value}"' for label, value in labels.items()}
        for line in (await self.client.get("/metrics")).text.splitlines():
            sample, _, value = line.rpartition(" ")
            found, _, given = sample.partition("{")
            if found == f"plugserve_router_{name}" and wanted <= set(given.rstrip("}").split(",")):
                return float(value)
        return 0.0


@pytest.fixture
async def route():
    """route(stubs, access=..., limits=..., settings=...) -> an async context manager with a router before them."""

    @asynccontextmanager
    async def start(*stubs, policy="round-robin", keys=(), probes=False, access=None, limits=None, **settings):
        for stub in stubs:
            if not hasattr(stub, "port"):
                await stub.start()
        given = Settings(
            upstream=[f"{stub.name}={stub.url}" for stub in stubs], upstream_key=list(keys), policy=policy, **settings
        )
        state = RouterState(
            fleet=make_fleet(given, read_addresses(given.upstream, given.upstream_key)),
            policy=make_policy(policy, given.affinity_slack),
            version="1.2.3",
            access=access,
            limits=limits,
        )
        await state.ask_upstreams()
        app = build_router_app(state, is_optimised=False)
        listener = socket.create_server(("127.0.0.1", 0))
        server = HttpServer(app, listener)
        await server.start()
        tasks = [asyncio.create_task(one.run()) for one in state.probes.values()] if probes else []
        port = listener.getsockname()[1]
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
                yield Routed(state, client, port)
        finally:
            for task in tasks:
                task.cancel()
            server.stop_accepting()
            for connection in list(server.connections):
                connection.abort()
            listener.close()
            for upstream in state.fleet:
                upstream.client.fail_all("the test is over")
            sanic.Sanic.unregister_app(app)

    return start


@pytest.fixture
async def stubs():
    """stubs("a", "b") -> upstreams that are stopped at the end."""
    made = []

    async def make(*names, **options):
        for name in names:
            made.append(await StubUpstream(name, **options).start())
        return made[-len(names) :]

    yield make
    for stub in made:
        stub.die()
