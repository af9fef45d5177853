"""What is refused, and how: one clear line in OpenAI's shape that names the field."""

import gc
import json

import orjson
import pytest

from plugserve.core.contracts.requests import Refusal
from plugserve.server.api.json_body import read_json
from tests.server.fakes import FakeEngine, NoHooks, says, served

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def error_of(response, status):
    """The error object, its shape checked."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    assert "Traceback" not in error["message"]
    return error


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", "hot"),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_k", -2),
        ("min_p", 1.5),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -2.5),
        ("repetition_penalty", 0),
        ("n", 0),
        ("n", 129),
        ("n", 1.5),
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("max_tokens", True),
        ("min_tokens", -1),
        ("min_tokens", 100_000),
        ("seed", 2**63),
        ("seed", -(2**63) - 1),
        ("seed", 0.5),
        ("logit_bias", {"40": 101}),
        ("logit_bias", {"x": 1}),
        ("logit_bias", {"300": 1}),
        ("logit_bias", {"-1": 1}),
        ("stop", [""]),
        ("stop", 5),
        ("stop", ["a", 5]),
        ("stop", ["a"] * 65),
        ("stop_token_ids", [300]),
        ("stop_token_ids", ["a"]),
        ("prompt_logprobs", -1),
        ("prompt_logprobs", 21),
        ("cache_salt", ""),
        ("priority", "high"),
        ("stream", "yes"),
        ("stream_options", 5),
        ("user", 5),
        ("model", 5),
        ("request_id", "two words"),
        ("messages", []),
        ("messages", "hello"),
        ("messages", [5]),
        ("messages", None),
        ("top_logprobs", 2),
        ("top_logprobs", -1),
        ("echo", True),
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("functions", [{}]),
        ("response_format", {"type": "xml"}),
        ("best_of", 2),
        ("audio", {"voice": "x"}),
        ("modalities", ["text", "audio"]),
        ("use_beam_search", True),
        ("prompt_embeds", "abc"),
        ("guided_json", {"type": "object"}),
        ("guided_regex", "a+"),
        ("structured_outputs", {"regex": "a+", "choice": ["a"]}),
        ("suffix", "x"),
        ("store", True),
        ("bad_words", "x"),
        ("bad_words", [""]),
        ("bad_words", [5]),
        ("bad_words", ["x"] * 257),
        ("bad_words", ["x" * 257]),
        ("allowed_token_ids", []),
        ("allowed_token_ids", [300]),
        ("allowed_token_ids", [-1]),
        ("allowed_token_ids", ["a"]),
        ("truncate_prompt_tokens", 0),
        ("truncate_prompt_tokens", -2),
        ("truncate_prompt_tokens", 129),
        ("truncate_prompt_tokens", True),
        ("spaces_between_special_tokens", "yes"),
        ("metadata", "x"),
        ("kv_transfer_params", {"a": 1}),
        ("watermark", True),
        ("length_penalty", 2.0),
    ],
)
async def test_bad_values_are_named(server, field, value):
    body = {"messages": [{"role": "user", "content": "x"}], field: value}
    error = error_of(await server.client.post(CHAT, json=body), 400)
    assert error["param"] == field
    assert field in error["message"]
    assert error["type"] == "invalid_request_error"
    assert not server.engine.calls


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 2, "top_p": 1, "top_k": -1, "min_p": 0, "presence_penalty": -2, "repetition_penalty": 1},
        {"seed": -(2**63)},
        {"seed": 2**63 - 1, "n": 2},
        {"tools": [{"type": "function"}], "tool_choice": "none"},
        {"tools": [], "tool_choice": "auto", "response_format": {"type": "text"}, "modalities": ["text"]},
        {"best_of": 1, "store": False, "suffix": None, "use_beam_search": False, "parallel_tool_calls": True},
        dict.fromkeys(["temperature", "n", "stop", "seed", "logit_bias", "stream", "stream_options", "logprobs"]),
        {"stop": ["a", "b", "c", "d", "e"]},
        {"logprobs": False, "top_logprobs": 0},
        {"user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "prompt_cache_key": "k"},
        {"safety_identifier": "s", "spaces_between_special_tokens": True, "watermark": False, "priority": -5},
        {"bad_words": ["x"], "allowed_token_ids": [5, 6], "truncate_prompt_tokens": -1},
        {"bad_words": [], "truncate_prompt_tokens": 128, "logprobs": True, "top_logprobs": 0},
    ],
)
async def test_good_values_pass(server, fields):
    response = await server.chat(**fields)
    assert response.status_code == 200, response.text
    assert not response.headers.get("x-plugserve-ignored-fields")


async def test_seed_beyond_int64_names_the_rule(server):
    assert error_of(await server.chat(seed=-(2**63) - 1), 400)["code"] == "greater_than_equal"


async def test_unknown_fields_are_ignored_and_named(server, caplog):
    with caplog.at_level("INFO", "plugserve"):
        response = await server.chat(frobnicate=1, quux={"a": 1})
    assert response.status_code == 200
    assert response.headers["x-plugserve-ignored-fields"] == "frobnicate,quux"
    assert sum("frobnicate" in record.message for record in caplog.records) == 1


async def test_names_of_ignored_fields_cannot_break_the_header_or_flood_the_log(server, caplog):
    with caplog.at_level("INFO", "plugserve"):
        response = await server.chat(**{"a\r\nSet-Cookie: x": 1, "\x01\u65e5": 1, **{f"z{i}": 1 for i in range(500)}})
    assert response.status_code == 200
    assert "set-cookie" not in response.headers
    assert response.headers["x-plugserve-ignored-fields"].startswith("??,a??Set-Cookie: x,z0,")
    assert max(len(record.message) for record in caplog.records) < 2000
    assert "and 482 more" in caplog.text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"model": "m" * 100_000}),
        (CHAT, {"functions": [1] * 100_000}),
        (CHAT, {"messages": [{"role": ["r"] * 100_000, "content": "x"}]}),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "t" * 100_000}]}]}),
        (CHAT, {"messages": [{"role": "r" * 100_000}]}),
        (CHAT, {"logit_bias": {"k" * 100_000: 1}}),
        (CHAT, {"seed": "s" * 100_000}),
        (CHAT, {"stop": ["x" * 100_000]}),
        (CHAT, {f"field{number}": 1 for number in range(2000)}),
        (CHAT, {"messages": [{"role": "user", "content": "x"}] * 9_000}),
        (COMPLETIONS, {"prompt": ["x"] * 2049}),
        (COMPLETIONS, {"prompt": [[1]] * 2049}),
        (COMPLETIONS, {"prompt": [299, 300] * 50_000}),
    ],
)
async def test_outsized_values_are_refused_in_a_short_line(server, path, body):
    response = await server.client.post(path, json={"messages": [{"role": "user", "content": "x"}]} | body)
    error = error_of(response, 404 if "model" in body else 400)
    assert len(error["message"]) < 400
    assert not server.engine.calls


def test_large_json_is_read_without_the_collector_which_is_on_again_afterwards(monkeypatch):
    seen = []
    reader = orjson.loads
    monkeypatch.setattr(orjson, "loads", lambda body: (seen.append(gc.isenabled()), reader(body))[1])
    assert read_json(b"[1]") == [1]
    assert read_json(b"[" + b"[1]," * 300_000 + b"1]")[-1] == 1
    with pytest.raises(orjson.JSONDecodeError):
        read_json(b"[" * 2**20)
    assert seen == [True, False, False]
    assert gc.isenabled()


async def test_repeated_stop_token_ids_are_sent_once(server):
    assert (await server.chat(stop_token_ids=[7, 9, 7] * 1000)).status_code == 200
    assert server.engine.calls[0].params.stop_token_ids == (7, 9)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(
    "content",
    [b'"text"', b"[1]", b"42", b"null", b"", b"{", b'{"seed": NaN}', b"\xff", b"{]", b'{"prompt": "\\ud800"}'],
)
async def test_bodies_that_are_no_json_object_are_refused(server, path, content):
    response = await server.client.post(path, content=content, headers={"content-type": "application/json"})
    error_of(response, 400)


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", None])
async def test_other_content_types_are_refused(server, content_type):
    headers = {} if content_type is None else {"content-type": content_type}
    content = json.dumps({"messages": [{"role": "user", "content": "x"}]}).encode()
    error_of(await server.client.post(CHAT, content=content, headers=headers), 415)


async def test_content_type_may_carry_a_charset(server):
    content = json.dumps({"prompt": "x"}).encode()
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    assert (await server.client.post(COMPLETIONS, content=content, headers=headers)).status_code == 200


async def test_unknown_model_is_404_with_a_hint(server):
    error = error_of(await server.chat(model="modle"), 404)
    assert error["code"] == "model_not_found"
    assert error["param"] == "model"
    assert "'model'" in error["message"]


async def test_aliases_and_no_name_reach_the_model(server):
    for fields in ({"model": "fake/model"}, {"model": "model"}, {"model": None}, {}):
        assert (await server.chat(**fields)).json()["model"] == "fake/model"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("GET", CHAT, 405), ("POST", "/v1/models", 405), ("GET", "/v1/models/none/such", 404)],
)
async def test_http_errors_have_openais_shape(server, method, path, status):
    error_of(await server.client.request(method, path), status)


async def test_405_says_what_is_allowed(server):
    assert "POST" in (await server.client.get(CHAT)).headers["allow"]


async def test_too_large_bodies_are_413(server):
    body = b'{"prompt": "' + b"a" * (33 * 2**20) + b'"}'
    response = await server.client.post(COMPLETIONS, content=body, headers={"content-type": "application/json"})
    error_of(response, 413)


async def test_our_own_bug_is_a_500_that_tells_nothing(server, caplog):
    def broken(*args, **kwargs):
        raise ZeroDivisionError("/secret/path")

    server.engine.generate = broken
    error = error_of(await server.chat(), 500)
    assert error["type"] == "server_error"
    assert "secret" not in error["message"]
    assert "ZeroDivisionError" in caplog.text


async def test_request_id_is_echoed_or_made(server):
    assert (await server.chat()).headers["x-request-id"]
    response = await server.client.get("/v1/models", headers={"X-Request-Id": "abc-1"})
    assert response.headers["x-request-id"] == "abc-1"
    response = await server.client.get("/nothing", headers={"X-Request-Id": "bad id"})
    assert response.headers["x-request-id"] not in ("", "bad id")


async def test_models_are_listed_and_found(server):
    body = (await server.client.get("/v1/models")).json()
    assert [model["id"] for model in body["data"]] == ["fake/model"]
    assert body["data"][0]["max_model_len"] == 128
    for path in ("fake/model", "fake%2Fmodel"):
        assert (await server.client.get(f"/v1/models/{path}")).json() == body["data"][0]


async def test_health_follows_the_engine(server):
    assert (await server.client.get("/health")).json() == {"status": "ok"}
    assert (await server.client.get("/health/")).status_code == 200
    model = next(iter(server.state.models))
    text, model.text = model.text, None
    response = await server.client.get("/health")
    assert (response.status_code, response.json()["status"]) == (503, "loading")
    assert error_of(await server.chat(), 503)["code"] == "engine_unavailable"
    model.text, server.engine.state = text, "dead"
    response = await server.client.get("/health")
    assert (response.status_code, response.json()["status"]) == (503, "dead")
    error_of(await server.chat(), 503)


async def test_version(server):
    assert (await server.client.get("/version")).json() == {"version": "1.2.3"}


async def test_second_model_answers_to_its_own_name(tokenizer, make_state):
    from tests.server.conftest import running

    first = served(FakeEngine(says(tokenizer, "one")), tokenizer, names=("a",), aliases=())
    second = served(FakeEngine(says(tokenizer, "two"), model="b"), tokenizer, names=("b", "bee"), aliases=())
    async with running(make_state(first, second)) as server:
        assert [m["id"] for m in (await server.client.get("/v1/models")).json()["data"]] == ["a", "b", "bee"]
        for name, text in (("a", "one"), ("b", "two"), ("bee", "two"), (None, "one")):
            assert (await server.chat(model=name)).json()["choices"][0]["message"]["content"] == text


# ---------------------------------------------------------------- plugins


@pytest.fixture
def hooks():
    return NoHooks()


async def test_refusal_of_a_plugin_is_sent_before_anything_else(serve, hooks):
    hooks.refusal = Refusal(401, "who are you?", code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
    async with serve(state={"hooks": hooks}) as server:
        for method, path in (("POST", CHAT), ("GET", "/v1/models"), ("GET", "/nothing"), ("GET", "/v1/plugins")):
            response = await server.client.request(method, path, content=b"{", headers={"authorization": "x"})
            assert error_of(response, 401)["code"] == "invalid_api_key"
            assert response.headers["www-authenticate"] == "Bearer"
        for path in ("/health", "/metrics"):
            assert (await server.client.get(path)).status_code == 200
        assert not server.engine.calls
    view = hooks.authorized[0]
    assert (view.path, view.method, view.headers["authorization"], view.client) == (CHAT, "POST", "x", "127.0.0.1")


async def test_authorize_sees_model_and_body_once(serve, hooks):
    async with serve(state={"hooks": hooks}) as server:
        await server.chat(model="model")
    assert len(hooks.authorized) == 1
    assert hooks.authorized[0].model == "model"
    assert hooks.authorized[0].body["messages"]


async def test_plugin_may_replace_the_body(serve, hooks):
    hooks.replacement = lambda request: {**request.body, "max_tokens": 1}
    async with serve(state={"hooks": hooks}) as server:
        assert (await server.chat()).json()["usage"]["completion_tokens"] == 1
        hooks.replacement = lambda request: {**request.body, "max_tokens": -1}
        error_of(await server.chat(), 400)


async def test_plugins_hear_of_the_end_once(serve, hooks, eventually):
    async with serve(state={"hooks": hooks}, cached_tokens=1) as server:
        await server.chat()
        await eventually(lambda: hooks.told)
        await server.chat_events()
        await eventually(lambda: len(hooks.told) == 2)
    for name, told in hooks.told:
        assert name == "plugserve_request_finished"
        assert (told["request"].path, told["request"].model) == (CHAT, "fake/model")
        assert (told["usage"].num_generated_tokens, told["usage"].num_cached_tokens) == (4, 1)
        assert told["timings"].finish_reason == "stop"
        assert told["timings"].queue_s == 0.25
        assert told["timings"].total_s >= told["timings"].first_token_s > 0


@pytest.mark.parametrize("body", [b"{", b'{"messages": 5}', b'{"model": "none"}'])
async def test_plugins_hear_of_errors_once(serve, hooks, body):
    async with serve(state={"hooks": hooks}) as server:
        await server.client.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert [name for name, _ in hooks.told] == ["plugserve_error"]
    assert hooks.told[0][1]["error"].status in (400, 404)


async def test_real_plugin_host_fits(serve, tmp_path, eventually):
    from plugserve.core.plugin_system.plugin_host import PluginHost
    from plugserve.core.settings.selection import Selection

    (tmp_path / "guard.py").write_text(
        "import plugserve\n"
        "from sanic.response import text\n"
        "@plugserve.hookimpl\n"
        "def plugserve_authorize(request):\n"
        "    if request.headers.get('authorization') != 'Bearer key':\n"
        "        return plugserve.Refusal(401, 'no')\n"
        "@plugserve.hookimpl\n"
        "async def plugserve_request_received(request):\n"
        "    return {**request.body, 'max_tokens': 2}\n"
        "@plugserve.hookimpl\n"
        "def plugserve_request_finished(request):\n"
        "    raise ValueError('broken observer')\n"
        "@plugserve.hookimpl\n"
        "def plugserve_register_routes(app):\n"
        "    app.add_route(lambda request: text('hi'), '/extra', name='extra')\n"
    )
    host = PluginHost.load(Selection(plugin=(str(tmp_path / "guard.py"),)))
    from tests.server.conftest import running

    async with serve(state={"hooks": host}) as plain:
        state = plain.state
        async with running(state, lambda app: host.start("plugserve_register_routes", app=app, engines={})) as server:
            error_of(await server.chat(), 401)
            server.client.headers["authorization"] = "Bearer key"
            assert (await server.chat()).json()["usage"]["completion_tokens"] == 2
            assert (await server.client.get("/extra")).text == "hi"
            await eventually(lambda: sum(host.errors.values()) == 1)
            assert 'hook="plugserve_request_finished"' in (await server.client.get("/metrics")).text
            plugins = (await server.client.get("/v1/plugins")).json()["data"]
    guard = next(plugin for plugin in plugins if "guard" in plugin["name"])
    assert guard["state"] == "active"
    assert guard["hook_seconds"]["plugserve_authorize"] > 0


@pytest.mark.parametrize(
    ("path", "body"), [(CHAT, {"messages": [{"role": "user", "content": "hello"}]}), ("/v1/embeddings", {"input": "a"})]
)
async def test_model_has_to_be_named_where_the_server_says_so(server, path, body):
    server.state.models.requires_name = True
    error = error_of(await server.client.post(path, json=body), 400)
    assert error["param"] == "model"
    assert "--require-model" in error["message"]
    assert (await server.client.post(path, json={**body, "model": "fake/model"})).status_code == 200


BROKEN_GUARD = """
import sys
import plugserve

@plugserve.hookimpl
def plugserve_authorize(request):
    if "secret" not in request.headers:
        raise ValueError("no such table: keys")

@plugserve.hookimpl
def plugserve_request_received(request):
    sys.exit(3)
"""


@pytest.fixture
def broken_guard(tmp_path):
    from plugserve.core.plugin_system.plugin_host import PluginHost
    from plugserve.core.settings.selection import Selection

    (tmp_path / "broken_guard.py").write_text(BROKEN_GUARD)
    return PluginHost.load(Selection(plugin=(str(tmp_path / "broken_guard.py"),)))


async def test_guard_that_raises_refuses_every_request_of_one_id(serve, broken_guard):
    async with serve(state={"hooks": broken_guard}) as server:
        for _ in range(2):
            response = await server.client.post(
                CHAT,
                json={"messages": [{"role": "user", "content": "hello"}]},
                headers={"X-Request-Id": "chosen-by-the-client"},
            )
            assert error_of(response, 500)["code"] == "plugin_failed"
        assert not server.engine.calls


async def test_exit_in_a_request_hook_does_not_end_the_worker(serve, broken_guard, eventually):
    async with serve(state={"hooks": broken_guard}) as server:
        server.client.headers["secret"] = "yes"
        assert (await server.chat()).status_code == 200
        assert (await server.client.post(CHAT, json={"messages": 5})).status_code == 400
        assert await server.chat_events()
        assert broken_guard.errors == {("broken-guard", "plugserve_request_received"): 3}
        await eventually(lambda: not broken_guard.guard._set_aside)
