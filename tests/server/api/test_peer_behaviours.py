"""What servers get wrong that were written in a hurry: each check passes here and fails on what such a server sends.

A check asks through a Client. With a spoiler, the client shows the check what a naive server would have answered.
"""

import json
from pathlib import Path

import pytest

import plugserve
from plugserve.plugins.tool_parsers.hermes import hermes
from plugserve.server.operations.access import Access
from tests.server.api.test_tools import TOOLS

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "hello"}]
CHECKS = {}


def check(name, **options):
    def register(function):
        CHECKS[name] = (function, options)
        return function

    return register


class Client:
    """Answers as (status, JSON); streams as lists of events. spoil may change either."""

    def __init__(self, server, spoil=None):
        self.server = server
        self._spoil = spoil or (lambda answer, path, body: answer)

    async def send(self, method, path, body=None, **arguments):
        response = await self.server.client.request(method, path, json=body, **arguments)
        is_json = "json" in response.headers.get("content-type", "") and response.content
        answer = (response.status_code, json.loads(response.text) if is_json else response.text)
        return self._spoil(answer, path, body)

    async def chat(self, **fields):
        return await self.send("POST", CHAT, {"messages": HELLO, **fields})

    async def complete(self, prompt="hello", **fields):
        return await self.send("POST", COMPLETIONS, {"prompt": prompt, **fields})

    async def stream(self, path, **fields):
        body = {"messages": HELLO} if path == CHAT else {"prompt": "hello"}
        return self._spoil(await self.server.events(path, {**body, **fields}), path, {**body, **fields})


def text_of(choice):
    return choice["text"] if "text" in choice else choice["delta"].get("content") or ""


# ---------------------------------------------------------------- the checks


@check("1 stream_options")
async def stream_options(client):
    for path in (CHAT, COMPLETIONS):
        events = await client.stream(path, stream_options={"include_usage": True})
        assert all(event.get("usage", 0) is None and event["choices"] for event in events[:-1])
        assert events[-1]["choices"] == []
        usage = events[-1]["usage"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        both = {"include_usage": True, "continuous_usage_stats": True}
        told = [event["usage"]["completion_tokens"] for event in await client.stream(path, stream_options=both)]
        assert told == sorted(told)
        events = await client.stream(path, stream_options={"continuous_usage_stats": True, "include_usage": False})
        assert not any(event.get("usage") for event in events)
    for options in ({}, {"include_usage": None}, {"include_usage": False}):
        assert (await client.chat(stream_options=options))[0] == 400


@check("2 finish_reason")
async def finish_reason(client):
    for path in (CHAT, COMPLETIONS):
        for fields in ({}, {"max_tokens": 2}, {"stop": "wor"}):
            events = await client.stream(path, **fields)
            choices = [event["choices"][0] for event in events]
            assert [bool(choice["finish_reason"]) for choice in choices] == [False] * (len(choices) - 1) + [True]
            assert text_of(choices[-1])
            plain = (await client.chat(**fields) if path == CHAT else await client.complete(**fields))[1]["choices"][0]
            assert "".join(map(text_of, choices)) == (plain["text"] if "text" in plain else plain["message"]["content"])


@check("3 logprobs 0")
async def logprobs_zero(client):
    logprobs = (await client.complete(logprobs=0))[1]["choices"][0]["logprobs"]
    assert logprobs is not None
    assert [len(tops) for tops in logprobs["top_logprobs"]] == [1] * 4
    assert (await client.complete())[1]["choices"][0]["logprobs"] is None
    content = (await client.chat(logprobs=True, top_logprobs=0))[1]["choices"][0]["logprobs"]["content"]
    assert [entry["top_logprobs"] for entry in content] == [[]] * 4
    for stream in (False, True):
        assert (await client.chat(logprobs=True, top_logprobs=21, stream=stream))[0] == 400
        assert (await client.complete(logprobs=21, stream=stream))[0] == 400
    assert (await client.chat())[0] == 200


@check("4 echo and offsets")
async def echo_and_offsets(client):
    logprobs = (await client.complete("hello world", echo=True, logprobs=1))[1]["choices"][0]["logprobs"]
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    assert logprobs["text_offset"] == [0, 0, 5, 11, 16, 22, 23]
    fields = {"logprobs": 0, "stop": "world!!"}  # the text lags behind the tokens
    plain = (await client.complete(**fields))[1]["choices"][0]["logprobs"]["text_offset"]
    events = await client.stream(COMPLETIONS, **fields)
    assert [offset for event in events for offset in event["choices"][0]["logprobs"]["text_offset"]] == plain


@check("5 prompts times n")
async def prompts_times_n(client):
    for prompts in (["hello", "world"], [[5, 6], [7]]):
        start = len(client.server.engine.calls)
        choices = (await client.complete(prompts, n=2))[1]["choices"]
        assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
        asked = [call.prompt for call in client.server.engine.calls[start:]]
        assert asked[0] == asked[1] != asked[2] == asked[3]
        events = await client.stream(COMPLETIONS, prompt=prompts, n=2)
        assert all(len(event["choices"]) == 1 for event in events)
        assert {event["choices"][0]["index"] for event in events} == {0, 1, 2, 3}
    assert len((await client.complete([5, 6, 7]))[1]["choices"]) == 1


@check("9 bodies")
async def bodies(client):
    for path in (CHAT, COMPLETIONS, "/v1/responses", "/v1/messages", "/v1/embeddings", "/tokenize"):
        for body in ('"str"', "[1]", "42", "null"):
            headers = {"content-type": "application/json"}
            assert 400 <= (await client.send("POST", path, content=body, headers=headers))[0] < 500
        assert (await client.send("POST", path, content="{}", headers={"content-type": "text/plain"}))[0] == 415
    status, body = await client.chat(seed=-(2**63) - 1)
    assert (status, body["error"]["code"]) == (400, "greater_than_equal")
    assert (await client.chat(cache_salt=""))[0] == 400
    parts = [{"role": "user", "content": [{"type": "text", "text": "hello"}], "colour": "red"}]
    assert (await client.chat(messages=parts))[0] == (await client.chat())[0] == 200
    assert client.server.engine.calls[-1].prompt == client.server.engine.calls[-2].prompt
    assert (await client.chat(messages=[{"role": "critic", "content": "hm"}]))[0] == 200


CALLS = '<tool_call>{"name": "get_weather", "arguments": {"city": "Rome"}}</tool_call>'


@check("10 deltas of tool calls", script=CALLS, model={"tool_parser": hermes}, max_model_len=512)
async def tool_call_deltas(client):
    events = await client.stream(CHAT, tools=TOOLS)
    first, *later = [call for event in events for call in event["choices"][0]["delta"].get("tool_calls", [])]
    assert set(first) == {"index", "id", "type", "function"}
    assert set(first["function"]) == {"name", "arguments"}
    assert len(later) > 3
    for call in later:
        assert set(call) == {"index", "function"}
        assert set(call["function"]) == {"arguments"}
    assert json.loads("".join(call["function"]["arguments"] for call in (first, *later))) == {"city": "Rome"}


@check("11 structured output errors")
async def structured_output_errors(client):
    for name, value in (("regex", "[.*"), ("regex", 5), ("grammar", "root ::= ((("), ("json", {"type": "foo"})):
        assert (await client.chat(structured_outputs={name: value}))[0] == 400
    assert (await client.chat(structured_outputs={"regex": "a+"}))[0] == 200
    tops = (await client.complete(logprobs=5))[1]["choices"][0]["logprobs"]["top_logprobs"][0]
    assert min(tops.values()) == -9999.0


@check("12 keys", state={"access": Access(keys=["secret"])})
async def keys(client):
    for path in ("/health", "/health/", "/ping", "/version", "/load"):
        assert (await client.send("GET", path))[0] == 200
    paths = ("/v1/models", "/v1/models/", "/invocations", "/tokenize", "/nothing")
    for method, path in ((method, path) for method in ("GET", "POST") for path in paths):
        assert (await client.send(method, path))[0] == 401
        assert (await client.send("OPTIONS", path))[0] == 401  # without an Origin it is no preflight
    assert (await client.send("GET", "/v1/models", headers={"authorization": "Bearer secret"}))[0] == 200


@check("13 load, version, health, usage")
async def load_version_health_usage(client):
    assert (await client.send("GET", "/version"))[1] == {"version": client.server.state.version}
    usage = (await client.complete("hello"))[1]["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (2, 4)  # BOS counts, and so does EOS
    engine = client.server.engine
    engine.step_s = 0.02
    body = {"prompt": "hello", "stream": True}
    async with client.server.client.stream("POST", COMPLETIONS, json=body) as response:
        assert (await client.send("GET", "/load"))[1] == {"server_load": 1}
        await response.aread()
    assert (await client.send("GET", "/load"))[1] == {"server_load": 0}
    engine.state = "dead"
    assert (await client.send("GET", "/health"))[0] == 503


@check("14 invocations")
async def invocations(client):
    expected, told = await client.chat(), await client.send("POST", "/invocations", {"messages": HELLO})
    assert told[0] == expected[0] == 200
    assert set(told[1]) == set(expected[1])
    assert told[1]["choices"] == expected[1]["choices"]


# ---------------------------------------------------------------- what naive servers send


def each_event(change):
    """A spoiler that changes a stream's events one by one (in place)."""

    def spoil(answer, path, body):
        if isinstance(answer, list):
            for number, event in enumerate(answer):
                change(event, number == len(answer) - 1)
        return answer

    return spoil


def each_answer(change):
    """A spoiler that changes plain answers: change(status, answer, path, body) -> (status, answer)."""

    def spoil(answer, path, body):
        return answer if isinstance(answer, list) else change(*answer, path, body or {})

    return spoil


def accepting(field):
    """A server that doesn't look at a field."""
    return each_answer(lambda status, answer, path, body: (200 if field in body else status, answer))


def without_usage_null(event, is_last):
    if event.get("usage", 0) is None:
        del event["usage"]


def usage_in_the_last_chunk(answer, path, body):
    if isinstance(answer, list) and answer[-1].get("choices") == []:
        answer[-2]["usage"] = answer.pop()["usage"]
    return answer


def usage_although_not_asked_for(event, is_last):
    event.setdefault("usage", {"completion_tokens": 1})


def empty_last_chunk(answer, path, body):
    if isinstance(answer, list) and answer[-1]["choices"]:
        choice = answer[-1]["choices"][0]
        last = {**choice, "text": "", "delta": {}} if "text" in choice else {**choice, "delta": {}}
        answer.append({**answer[-1], "choices": [last]})
        choice["finish_reason"] = None
    return answer


def reason_in_every_chunk(event, is_last):
    for choice in event["choices"]:
        choice["finish_reason"] = "stop"


def held_text_lost(event, is_last):
    if is_last and event["choices"] and "text" in event["choices"][0]:
        event["choices"][0]["text"] = event["choices"][0]["text"][:-1]


def zero_is_none(status, answer, path, body):
    if body.get("logprobs") == 0:
        answer["choices"][0]["logprobs"] = None
    return status, answer


def tops_of_one(status, answer, path, body):
    if body.get("top_logprobs") == 0 and status == 200:
        for entry in answer["choices"][0]["logprobs"]["content"]:
            entry["top_logprobs"] = [{"token": entry["token"]}]
    return status, answer


def limit_unchecked_when_streaming(status, answer, path, body):
    return (200, answer) if body.get("stream") else (status, answer)


def first_token_likely(status, answer, path, body):
    if body.get("echo"):
        answer["choices"][0]["logprobs"]["token_logprobs"][0] = 0.0
    return status, answer


def offsets_from_the_answer(status, answer, path, body):
    if body.get("echo"):
        logprobs = answer["choices"][0]["logprobs"]
        logprobs["text_offset"] = [max(0, offset - 11) for offset in logprobs["text_offset"]]
    return status, answer


def offsets_that_lag(answer, path, body):
    if isinstance(answer, list):
        shown = 0
        for event in answer:
            choice = event["choices"][0]
            choice["logprobs"]["text_offset"] = [shown] * len(choice["logprobs"]["text_offset"])
            shown += len(choice["text"])
    return answer


def index_restarts(status, answer, path, body):
    for choice in answer.get("choices", []):
        choice["index"] %= 2
    return status, answer


def ids_are_prompts(status, answer, path, body):
    if isinstance(body.get("prompt"), list) and isinstance(body["prompt"][0], int):
        answer["choices"] *= len(body["prompt"])
    return status, answer


def crashes_on_what_is_no_object(status, answer, path, body):
    return (500, answer) if not body and status == 400 else (status, answer)


def reads_any_content_type(status, answer, path, body):
    return (200, answer) if status == 415 else (status, answer)


def knows_four_roles(status, answer, path, body):
    roles = {message["role"] for message in body.get("messages", [])}
    return (400, answer) if "critic" in roles else (status, answer)


def null_names_in_later_deltas(event, is_last):
    for call in event["choices"][0]["delta"].get("tool_calls", []):
        for name in ("id", "type"):
            call.setdefault(name, None)
        call["function"].setdefault("name", None)


def all_at_the_end(answer, path, body):
    if isinstance(answer, list):
        with_calls = [event for event in answer if event["choices"][0]["delta"].get("tool_calls")]
        first, *later = with_calls
        function = first["choices"][0]["delta"]["tool_calls"][0]["function"]
        for event in later:
            function["arguments"] += event["choices"][0]["delta"].pop("tool_calls")[0]["function"]["arguments"]
    return answer


def engine_meets_the_grammar(status, answer, path, body):
    return (500, answer) if status == 400 else (status, answer)


def infinity_is_null(status, answer, path, body):
    if body.get("logprobs"):
        tops = answer["choices"][0]["logprobs"]["top_logprobs"][0]
        tops |= {token: float("-inf") for token, value in tops.items() if value == -9999.0}
    return status, answer


def guards_v1_only(status, answer, path, body):
    return (status, answer) if path.startswith("/v1") else (200, answer)


def guards_exact_paths(status, answer, path, body):
    return (200, answer) if path == "/v1/models/" else (status, answer)


def guards_health_with_slash(status, answer, path, body):
    return (401, answer) if path == "/health/" else (status, answer)


def always_healthy(status, answer, path, body):
    return (200, answer) if path == "/health" else (status, answer)


def never_busy(status, answer, path, body):
    return status, {"server_load": 0} if path == "/load" else answer


def forgets_bos(status, answer, path, body):
    if "usage" in answer:
        answer["usage"]["prompt_tokens"] -= 1
    return status, answer


def bare_choices(status, answer, path, body):
    return status, {"choices": answer["choices"]} if path == "/invocations" else answer


NAIVE = {
    "1 stream_options": [
        each_event(without_usage_null),
        usage_in_the_last_chunk,
        each_event(usage_although_not_asked_for),
        accepting("stream_options"),
    ],
    "2 finish_reason": [empty_last_chunk, each_event(reason_in_every_chunk), each_event(held_text_lost)],
    "3 logprobs 0": [each_answer(zero_is_none), each_answer(tops_of_one), each_answer(limit_unchecked_when_streaming)],
    "4 echo and offsets": [each_answer(first_token_likely), each_answer(offsets_from_the_answer), offsets_that_lag],
    "5 prompts times n": [each_answer(index_restarts), each_answer(ids_are_prompts)],
    "9 bodies": [
        each_answer(crashes_on_what_is_no_object),
        each_answer(reads_any_content_type),
        each_answer(knows_four_roles),
        accepting("seed"),
        accepting("cache_salt"),
    ],
    "10 deltas of tool calls": [each_event(null_names_in_later_deltas), all_at_the_end],
    "11 structured output errors": [
        each_answer(engine_meets_the_grammar),
        accepting("structured_outputs"),
        each_answer(infinity_is_null),
    ],
    "12 keys": [each_answer(guards_v1_only), each_answer(guards_exact_paths), each_answer(guards_health_with_slash)],
    "13 load, version, health, usage": [each_answer(always_healthy), each_answer(never_busy), each_answer(forgets_bos)],
    "14 invocations": [each_answer(bare_choices)],
}
ELSEWHERE = {
    "6 cancellation": {
        "tests/server/pipeline/test_disconnects.py": [
            "test_vanished_client_aborts_its_sequences",
            "test_many_cancelled_requests_leave_a_working_server",
        ],
        "tests/e2e/test_serving.py": ["test_request_without_stream_is_aborted_when_its_client_disconnects"],
    },
    "7 shutdown": {
        "tests/e2e/test_failures.py": [
            "test_sigterm_during_a_stream_ends_all_processes",
            "test_sigterm_waits_for_requests_up_to_shutdown_timeout",
            "test_second_signal_ends_the_shutdown_wait",
        ],
        "tests/server/worker/test_worker.py": ["test_stop_with_grace_lets_requests_finish_and_refuses_new_ones"],
    },
}
"""Behaviours that need processes, and the tests that have them."""


def test_every_check_has_naive_answers():
    assert set(NAIVE) == set(CHECKS)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_behaviours_of_processes_are_tested(name):
    for path, tests in ELSEWHERE[name].items():
        source = (Path(__file__).parents[3] / path).read_text()
        for test in tests:
            assert f"def {test}(" in source, f"{path} has no {test}"


@pytest.mark.parametrize("name", CHECKS)
async def test_behaviour(serve, name):
    function, options = CHECKS[name]
    async with serve(**options) as server:
        await function(Client(server))


@pytest.mark.parametrize(("name", "number"), [(name, n) for name, naive in NAIVE.items() for n in range(len(naive))])
async def test_naive_server_fails(serve, name, number):
    function, options = CHECKS[name]
    async with serve(**options) as server:
        with pytest.raises(AssertionError):
            await function(Client(server, NAIVE[name][number]))


def test_version_is_the_packages():
    from importlib.metadata import version

    assert plugserve.__version__ == version("plugserve")
