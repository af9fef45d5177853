"""A real Sanic server on a free port, in the test's own event loop."""

import asyncio
import json
import socket
from contextlib import asynccontextmanager

import httpx
import pytest
import sanic

from plugserve.server.operations.metrics import Metrics
from plugserve.server.worker.app import build_app
from plugserve.server.worker.http.http_server import HttpServer
from plugserve.server.worker.served_models import ServedModels
from plugserve.server.worker.server_state import ServerState
from tests.server.fakes import FakeEngine, NoHooks, byte_level_tokenizer, says, served


class Running:
    """A served app: client speaks HTTP to it."""

    def __init__(self, state, client, port, http):
        self.http = http
        self.state = state
        self.client = client
        self.port = port

    @property
    def engine(self):
        return next(iter(self.state.models)).client

    @property
    def template(self):
        return next(iter(self.state.models)).text.template

    async def chat(self, content="hello", **fields):
        body = {"messages": [{"role": "user", "content": content}], **fields}
        return await self.client.post("/v1/chat/completions", json=body)

    async def complete(self, prompt="hello", **fields):
        return await self.client.post("/v1/completions", json={"prompt": prompt, **fields})

    async def events(self, path, body):
        """The data of a stream's events, JSON decoded; the end mark must come last and is left out."""
        async with self.client.stream("POST", path, json={**body, "stream": True}) as response:
            assert response.status_code == 200, await response.aread()
            assert response.headers["content-type"].startswith("text/event-stream")
            lines = [line async for line in response.aiter_lines() if line]
        assert all(line.startswith("data: ") for line in lines)
        assert lines[-1] == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]

    async def chat_events(self, content="hello", **fields):
        return await self.events("/v1/chat/completions", {"messages": [{"role": "user", "content": content}], **fields})

    async def complete_events(self, prompt="hello", **fields):
        return await self.events("/v1/completions", {"prompt": prompt, **fields})


@asynccontextmanager
async def running(state, extra_routes=None, limits=None, tls=None, listener=None, root_path=""):
    app = build_app(state, is_optimised=False)
    if extra_routes is not None:
        extra_routes(app)
    listener = listener or socket.create_server(("127.0.0.1", 0))
    turned_away = state.metrics.connection_refused
    server = HttpServer(app, listener, limits=limits, tls=tls, root_path=root_path, on_turned_away=turned_away)
    await server.start()
    name = listener.getsockname()
    port, transport = (None, httpx.AsyncHTTPTransport(uds=name)) if isinstance(name, str) else (name[1], None)
    base_url = "http://localhost" if port is None else f"http://127.0.0.1:{port}"
    try:
        async with httpx.AsyncClient(base_url=base_url, timeout=20, verify=False, transport=transport) as client:
            yield Running(state, client, port, server)
    finally:
        for model in state.models:
            await model.client.close()
            if model.text is not None:
                await model.text.close()
        server.stop_accepting()
        for connection in list(server.connections):
            connection.abort()
        listener.close()
        sanic.Sanic.unregister_app(app)


@pytest.fixture(scope="session")
def tokenizer():
    return byte_level_tokenizer()


@pytest.fixture
def make_state():
    def make(*models, **options):
        return ServerState(
            models=ServedModels(models),
            hooks=options.pop("hooks", NoHooks()),
            version="1.2.3",
            metrics=Metrics(),
            **options,
        )

    return make


@pytest.fixture
async def server(tokenizer, make_state):
    """One model that answers "hello world!" and stops."""
    engine = FakeEngine(says(tokenizer, "hello world!"))
    async with running(make_state(served(engine, tokenizer))) as server:
        yield server


@pytest.fixture
def serve(tokenizer, make_state):
    """serve(text or script, engine options) -> an async context manager with a running server."""

    def start(script="hello world!", *, eos=1, state=None, model=None, **options):
        if isinstance(script, str):
            script = says(tokenizer, script, eos=eos)
        engine = FakeEngine(script, **options)
        return running(make_state(served(engine, tokenizer, **(model or {})), **(state or {})))

    return start


@pytest.fixture
def eventually():
    async def wait(claim):
        """Wait until claim() holds; a test that never sees it fails by its time limit."""
        async with asyncio.timeout(60):
            while not claim():
                await asyncio.sleep(0.005)

    return wait
