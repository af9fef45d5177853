"""No request takes more of the server than it may: time, memory, places in the queue."""

import asyncio
import threading

import pytest

from plugserve.core.errors import QueueFullError, RequestError
from plugserve.server.api.json_size import count_exactly
from plugserve.server.operations.service_limits import ServiceLimits
from plugserve.server.text.chat_template import ChatTemplate

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
TEMPLATE = "{% for m in messages %}[{{ m.content }}]{% endfor %}"


def limited(**limits):
    return {"state": {"limits": ServiceLimits(**limits)}}


# ---------------------------------------------------------------- time


async def test_plain_request_that_takes_too_long_ends_with_504_and_is_aborted(serve):
    async with serve(stops_after=2, **limited(timeout_s=0.05)) as server:
        response = await server.complete(n=2, max_tokens=50)
        assert response.status_code == 504
        assert response.json()["error"]["code"] == "request_timeout"
        assert "0.05 s" in response.json()["error"]["message"]
        assert sorted(server.engine.aborted) == [1, 2]


async def test_stream_that_takes_too_long_ends_with_an_error_event_after_its_text(serve):
    async with serve(stops_after=3, **limited(timeout_s=0.1)) as server:
        events = await server.complete_events(max_tokens=50)
        assert events[-1]["error"]["code"] == "request_timeout"
        assert "".join(event["choices"][0]["text"] for event in events[:-1])
        assert server.engine.aborted == [1]


async def test_stream_that_waits_too_long_is_refused_before_it_starts(serve):
    async with serve(stops_after=0, **limited(timeout_s=0.05)) as server:
        response = await server.complete(stream=True)
        assert response.status_code == 504
        assert server.engine.aborted == [1]


async def test_memory_comes_back_in_time_although_nobody_reads(serve, eventually):
    async with serve("a" * 100, stops_after=50, **limited(timeout_s=0.5)) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        body = b'{"prompt":"x","stream":true,"max_tokens":100}'
        head = (
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        )
        writer.write(head % len(body) + body)
        await eventually(lambda: server.engine.aborted == [1])
        writer.close()


async def test_request_that_is_quick_enough_is_not_disturbed(serve):
    async with serve(**limited(timeout_s=30)) as server:
        response = await server.complete()
        assert response.json()["choices"][0]["text"] == "hello world!"
        assert not server.engine.aborted


# ---------------------------------------------------------------- sizes


async def test_body_size_is_limited(serve):
    async with serve(**limited(max_body_bytes=400)) as server:
        assert (await server.complete("x" * 100)).status_code == 200
        response = await server.complete("x" * 500)
        assert response.status_code == 413
        assert response.json()["error"]["type"] == "invalid_request_error"
        assert (await server.complete()).status_code == 200


@pytest.mark.parametrize("prompt", ["x" * 20, [5] * 20, ["x", "x" * 20]])
async def test_prompt_length_is_limited(serve, prompt):
    async with serve(**limited(max_prompt_tokens=10)) as server:
        response = await server.complete(prompt)
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["param"] == "prompt"
        assert "at most 10 tokens" in error["message"]
        assert not server.engine.calls
        assert (await server.complete([5] * 10)).status_code == 200


async def test_text_that_can_only_be_too_long_is_not_tokenised(serve):
    async with serve(**limited(max_prompt_tokens=10)) as server:
        model = next(iter(server.state.models))

        def encode(text, **options):
            raise AssertionError("tokenised")

        object.__setattr__(model.text, "encode", encode)
        response = await server.complete("x" * 3000)
        assert response.status_code == 400
        assert "3000 characters" in response.json()["error"]["message"]
        assert (await server.chat("x" * 3000)).status_code == 400


# ---------------------------------------------------------------- queue


async def test_full_queue_is_503_with_retry_after(serve):
    async with serve() as server:

        def refuse(*arguments, **options):
            stream = start(*arguments, **options)
            stream.fail(QueueFullError("The server is busy: 3 requests wait already; try again in a moment."))
            return stream

        start, server.engine.generate = server.engine.generate, refuse
        for stream in (False, True):
            response = await server.complete(stream=stream)
            assert response.status_code == 503
            assert response.headers["retry-after"] == "1"
            assert response.json()["error"] == {
                "message": "The server is busy: 3 requests wait already; try again in a moment.",
                "type": "server_error",
                "param": None,
                "code": "queue_full",
            }


# ---------------------------------------------------------------- ids


async def test_request_id_comes_back_from_header_or_body(server):
    body = {"prompt": "x", "request_id": "from-body"}
    for stream in (False, True):
        response = await server.client.post(COMPLETIONS, json={**body, "stream": stream})
        assert response.headers["x-request-id"] == "from-body"
        named = {"X-Request-Id": "from-header"}
        response = await server.client.post(COMPLETIONS, json={**body, "stream": stream}, headers=named)
        assert response.headers["x-request-id"] == "from-header"
    assert (await server.client.get("/nothing", headers=named)).headers["x-request-id"] == "from-header"


@pytest.mark.parametrize("given", [b"two words", b"x" * 129, b"a\xc3\xa9", b"\xff", b"a\tb"])
async def test_harmful_request_id_is_replaced(server, given):
    response = await server.client.get("/v1/models", headers={"X-Request-Id": given})
    assert len(response.headers["x-request-id"]) == 32
    assert response.headers["x-request-id"].isalnum()


@pytest.mark.parametrize("given", ["a\r\nSet-Cookie: x=1", "", 5, "é", None, ["x"]])
async def test_harmful_request_id_in_the_body_never_reaches_a_header(server, given):
    response = await server.complete(request_id=given)
    assert response.headers["x-request-id"].isalnum()
    assert "set-cookie" not in response.headers


# ---------------------------------------------------------------- templates


async def test_chat_template_of_a_request_is_refused_by_default(server):
    response = await server.chat(chat_template=TEMPLATE)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == "chat_template"
    assert "--trust-request-chat-template" in error["message"]
    assert not server.engine.calls
    assert (await server.chat(chat_template=None)).status_code == 200
    hidden = await server.chat(chat_template_kwargs={"chat_template": TEMPLATE})
    assert hidden.status_code in (200, 400)
    assert not server.engine.calls[1:] or TEMPLATE not in str(server.engine.calls)


async def test_trusted_chat_template_of_a_request_is_used(serve):
    async with serve(**limited(trusts_templates=True)) as server:
        response = await server.chat(chat_template="ab")
        assert response.status_code == 200
        plain = await server.chat()
        extra = response.json()["usage"]["prompt_tokens"] - plain.json()["usage"]["prompt_tokens"]
        assert extra == 2


async def test_template_of_a_request_renders_in_its_own_process():
    own = ChatTemplate("own", {"bos_token": "<s>"}, timeout_s=1.0)
    messages = [{"role": "user", "content": "hi"}]
    try:
        assert await own.render_with("{{ bos_token }}" + TEMPLATE, messages, add_generation_prompt=True) == "<s>[hi]"
        for template in ("{% for", "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ raise_exception('no') }}"):
            with pytest.raises(RequestError):
                await own.render_with(template, messages)
        with pytest.raises(RequestError):
            await own.render_with(
                "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", messages
            )
        assert await own.render(messages) == "own"
    finally:
        await own.close()


# ---------------------------------------------------------------- values of a body


@pytest.mark.parametrize(
    "fields",
    [{"logit_bias": {str(i): 1 for i in range(2000)}}, {"stop_token_ids": [1] * 20_000}, {"unknown": [[[]]] * 10_000}],
)
async def test_body_of_too_many_values_is_refused_before_it_is_parsed(serve, monkeypatch, fields):
    parsed = []
    monkeypatch.setattr("plugserve.server.api.json_body.read_json", parsed.append)
    async with serve(**limited(max_body_values=10_000)) as server:
        response = await server.complete(**fields)
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "too_many_values"
        assert "10000 values" in response.json()["error"]["message"]
        assert parsed == []


async def test_separators_in_texts_are_no_values_and_are_counted_off_the_event_loop(serve, monkeypatch):
    threads = []

    def counted(body):
        threads.append(threading.current_thread())
        return count_exactly(body)

    monkeypatch.setattr("plugserve.server.api.json_size.count_exactly", counted)
    async with serve(**limited(max_body_values=10_000)) as server:
        response = await server.complete(unknown='a, b: [c], "d"' * 10_000)
        assert response.status_code == 200
        assert len(threads) == 1
        assert threads[0] is not threading.main_thread()
