"""Nothing answers without a key but what is meant to; browsers get what their origin may have."""

import re

import pytest
from sanic.response import text

from plugserve.server.operations.access import OPEN_PATHS, Access, key_name
from plugserve.server.operations.service_limits import ServiceLimits
from plugserve.server.worker.app import build_app
from tests.server.conftest import running
from tests.server.fakes import FakeEngine, NoHooks, says, served

KEYS = ("first-key", "zweiter Schlüssel")
PAGE = "https://page.example"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def plugin_routes(app):
    async def answer(request):
        return text("from a plugin")

    app.add_route(answer, "/plugin/data", methods=["GET", "POST", "OPTIONS"], name="plugin_data")
    app.add_route(answer, "/plugin/page", name="plugin_page", ctx_without_key=True)


@pytest.fixture
def start(tokenizer, make_state):
    """start(Access arguments) -> an async context manager with a running server and a plugin's routes."""

    def start(*, limits=None, hooks=None, **rules):
        engine = FakeEngine(says(tokenizer, "hello world!"))
        state = make_state(served(engine, tokenizer), access=Access(**rules), limits=limits, hooks=hooks or NoHooks())
        return running(state, plugin_routes)

    return start


def discovered_paths(make_state):
    """Every route of the app with something in place of its parameters."""
    app = build_app(make_state(), is_optimised=False)
    plugin_routes(app)
    paths = {"/" + re.sub(r"<[^>]*>", "x", route.path) for route in app.router.routes}
    assert len(paths) > 6
    return sorted(paths)


async def test_every_route_but_the_open_ones_needs_a_key(start, make_state):
    paths = discovered_paths(make_state)
    guarded = [path for path in paths if path not in OPEN_PATHS | {"/plugin/page", "/docs", "/ui/x"}]
    guarded += [path + "/" for path in guarded] + ["/", "/nothing", "/v1", "//v1/models", "/health/../v1/models"]
    guarded += ["/HEALTH", "/health/x", "/version%2f..", "/plugin", "/metrics"]
    async with start(keys=KEYS) as server:
        for path in guarded:
            for method in METHODS:
                response = await server.client.request(method, path)
                assert response.status_code == 401, (method, path, response.status_code)
                assert response.headers["www-authenticate"] == "Bearer"
                if method != "HEAD":
                    error = response.json()["error"]
                    assert set(error) == {"message", "type", "param", "code"}
                    assert error["code"] == "invalid_api_key"
        assert not server.state.hooks.authorized
        for path in [*(OPEN_PATHS & set(paths)), "/health/", "/plugin/page", "/docs", "/ui/app.js"]:
            assert (await server.client.get(path)).status_code == 200, path


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("spelling", ["Authorization: Bearer {}", "authorization: bEaReR   {}", "X-Api-Key: {}"])
async def test_each_key_opens_every_route(start, key, spelling):
    name, _, value = spelling.format(key).partition(": ")
    headers = {name: value.encode()}
    async with start(keys=KEYS) as server:
        for path in ("/v1/models", "/v1/memory", "/v1/plugins/", "/v1/plugins", "/metrics", "/plugin/data"):
            assert (await server.client.get(path, headers=headers)).status_code == 200, path
        answer = await server.client.post("/v1/completions", json={"prompt": "hi"}, headers=headers)
        assert answer.status_code == 200
        assert (await server.client.get("/nothing", headers=headers)).status_code == 404


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "first-key"},
        {"Authorization": "Basic first-key"},
        {"Authorization": "Bearer first-ke"},
        {"Authorization": "Bearer first-key2"},
        {"Authorization": "Bearer FIRST-KEY"},
        {"Authorization": b"Bearer \xff\xfe"},
        {"x-api-key": ""},
        {"x-api-key": "Bearer first-key"},
        {"Cookie": "api_key=first-key"},
        {"Authorization": "Bearer " + "x" * 5000},
    ],
)
async def test_nothing_else_opens_a_route(start, headers):
    async with start(keys=KEYS) as server:
        for path in ("/v1/models", "/v1/models?api_key=first-key", "/plugin/data"):
            assert (await server.client.get(path, headers=headers)).status_code == 401


async def test_request_without_key_reaches_neither_engine_nor_plugins(start):
    async with start(keys=KEYS, hooks=NoHooks()) as server:
        response = await server.client.post("/v1/completions", json={"prompt": "hi", "stream": True})
        assert response.status_code == 401
        assert response.headers["x-request-id"]
        assert not server.engine.calls
        assert not server.state.hooks.authorized
        assert not server.state.hooks.told


async def test_large_body_without_key_is_not_kept(start):
    async with start(keys=KEYS, limits=ServiceLimits(max_body_bytes=1000)) as server:
        for size in (900, 2000):
            response = await server.client.post("/v1/completions", content=b"x" * size)
            assert response.status_code == 401
        headers = {"x-api-key": "first-key"}
        assert (await server.client.post("/v1/completions", content=b"x" * 2000, headers=headers)).status_code == 413


async def test_metrics_without_key_only_where_asked_for(start):
    async with start(keys=KEYS, metrics_without_key=True) as server:
        assert (await server.client.get("/metrics")).status_code == 200
        assert (await server.client.get("/v1/plugins")).status_code == 401


async def test_server_without_keys_asks_for_none(start):
    async with start() as server:
        assert (await server.client.get("/v1/models")).status_code == 200
        assert (await server.client.get("/v1/models", headers={"x-api-key": "any"})).status_code == 200


# ---------------------------------------------------------------- other pages


def preflight(origin=PAGE, method="POST", headers="authorization, content-type"):
    return {"Origin": origin, "Access-Control-Request-Method": method, "Access-Control-Request-Headers": headers}


async def test_preflight_needs_no_key_and_the_real_request_does(start):
    async with start(keys=KEYS, origins=[PAGE]) as server:
        for path in ("/v1/chat/completions", "/v1/completions/", "/plugin/data"):
            asked = await server.client.options(path, headers=preflight())
            assert asked.status_code == 204
            assert asked.headers["access-control-allow-origin"] == PAGE
            assert "POST" in asked.headers["access-control-allow-methods"]
            assert asked.headers["access-control-allow-headers"] == "authorization, content-type"
            assert "Origin" in asked.headers["vary"]
            assert "access-control-allow-credentials" not in asked.headers
        refused = await server.client.post("/v1/completions", json={"prompt": "hi"}, headers={"Origin": PAGE})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == PAGE  # so that the page can read why


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": PAGE},
        {"Access-Control-Request-Method": "POST"},
        preflight("https://page.example.evil"),
        preflight("http://page.example"),
        preflight("null"),
        preflight(""),
    ],
)
async def test_options_that_is_no_preflight_of_an_allowed_page_needs_a_key(start, headers):
    async with start(keys=KEYS, origins=[PAGE]) as server:
        response = await server.client.options("/v1/completions", headers=headers)
        assert response.status_code == 401
        if headers.get("Origin") != PAGE:
            assert "access-control-allow-origin" not in response.headers


async def test_no_page_is_allowed_by_default(start):
    async with start(keys=KEYS) as server:
        assert (await server.client.options("/v1/completions", headers=preflight())).status_code == 401
    async with start() as server:
        assert (await server.client.options("/v1/completions", headers=preflight())).status_code == 405
        response = await server.client.get("/v1/models", headers={"Origin": PAGE})
        assert not [name for name in response.headers if name.startswith("access-control")]


async def test_streams_and_errors_carry_the_pages_permission(start):
    async with start(origins=["*"]) as server:
        for path, body in (("/v1/completions", {"prompt": "hi", "stream": True}), ("/v1/completions", {}), ("/x", {})):
            response = await server.client.post(path, json=body, headers={"Origin": PAGE})
            assert response.headers["access-control-allow-origin"] == "*"
            assert "X-Request-Id" in response.headers["access-control-expose-headers"]
            assert "vary" not in response.headers


async def test_methods_headers_and_credentials_are_as_set(start):
    rules = {"methods": ["GET", "POST"], "headers": ["X-Mine"], "allows_credentials": True}
    async with start(origins=[PAGE], **rules) as server:
        asked = await server.client.options("/v1/models", headers=preflight())
        assert asked.headers["access-control-allow-methods"] == "GET, POST"
        assert asked.headers["access-control-allow-headers"] == "X-Mine"
        assert asked.headers["access-control-allow-credentials"] == "true"


# ---------------------------------------------------------------- who asks


async def test_engine_learns_the_keys_name_and_the_user_and_never_the_key(start):
    async with start(keys=KEYS) as server:
        for body in ({}, {"user": "ada"}):
            await server.client.post(
                "/v1/completions",
                json={"prompt": "hi", "max_tokens": 1} | body,
                headers={"Authorization": b"Bearer " + KEYS[0].encode()},
            )
        await server.client.post(
            "/v1/embeddings", json={"input": "hi", "user": "bob"}, headers={"X-Api-Key": KEYS[1].encode()}
        )
        users = [call.user for call in server.engine.calls]
    first, second = key_name(KEYS[0]), key_name(KEYS[1])
    assert users == [first, f"{first}/ada", f"{second}/bob"]
    assert re.fullmatch("key-[0-9a-f]{8}", first)
    assert first != second


async def test_without_keys_the_user_field_says_who_asks(start):
    async with start() as server:
        for body in ({}, {"user": "ada"}):
            await server.client.post(
                "/v1/chat/completions",
                json={"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1, "priority": -7} | body,
                headers={"Authorization": "Bearer none"},
            )
        calls = server.engine.calls
    assert [call.user for call in calls] == ["", "ada"]
    assert [call.priority for call in calls] == [-7, -7]
