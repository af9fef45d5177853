"""What passes a router unchanged, and what is tried at another upstream."""

import asyncio
import gzip
import json

import httpx
import pytest

from plugserve.server.operations.access import Access
from plugserve.server.operations.service_limits import ServiceLimits
from tests.server.router.stub_upstream import answers, chunk, plain, streams

EVENTS = (b'data: {"n": 1}\n\n', b": ping\n\n", b'data: {"n": 2}\n\n', b"data: [DONE]\n\n")


async def test_bodies_and_headers_pass_unchanged(route, stubs):
    (stub,) = await stubs("a")
    stub.answer = answers(b'{"x" :  1}', 201, x_own="yes", set_cookie="a=1", connection="x-hop", x_hop="no")
    body = b'{ "model":"m",  "messages": [] }'
    async with route(stub) as router:
        response = await router.client.post(
            "/v1/chat/completions?trace=1&x=%20",
            content=body,
            headers={"content-type": "application/json", "x-request-id": "mine", "traceparent": "00-a-b-01", "te": "x"},
        )
    seen = stub.seen[0]
    assert (seen.body, seen.target) == (body, "/v1/chat/completions?trace=1&x=%20")
    assert seen.headers["x-request-id"] == "mine"
    assert seen.headers["traceparent"] == "00-a-b-01"
    assert seen.headers["x-forwarded-for"] == "127.0.0.1"
    assert seen.headers["host"] == f"localhost:{stub.port}"
    assert "te" not in seen.headers
    assert (response.status_code, response.content) == (201, b'{"x" :  1}')
    assert response.headers["x-own"] == "yes"
    assert response.headers["set-cookie"] == "a=1"
    assert response.headers["x-plugserve-upstream"] == "a"
    assert "x-hop" not in response.headers


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"])
async def test_every_method_passes(route, stubs, method):
    (stub,) = await stubs("a")
    async with route(stub) as router:
        for _ in range(2):  # the second one on a kept connection
            response = await router.client.request(method, "/v1/anything/else")
            assert response.status_code == 200
    assert [seen.method for seen in stub.seen] == [method, method]


async def test_a_form_with_a_file_passes_to_the_model_it_names(route, stubs):
    one, other = await stubs("a", "b")
    other.models = ("whisper",)
    async with route(one, other) as router:
        await router.client.post(
            "/v1/audio/transcriptions", data={"model": "whisper"}, files={"file": ("x.wav", b"\x00\xff" * 5000)}
        )
    assert not one.seen
    assert b"\x00\xff" * 5000 in other.seen[0].body


async def test_events_pass_as_they_come(route, stubs):
    (stub,) = await stubs("a")
    goes_on = asyncio.Event()

    async def then(writer):
        await goes_on.wait()
        writer.write(chunk(EVENTS[3]) + chunk(b""))

    stub.answer = streams(*EVENTS[:3], then=then)
    async with (
        route(stub) as router,
        router.client.stream("POST", "/v1/chat/completions", json={"model": "m", "stream": True}) as response,
    ):
        received = b""
        async for piece in response.aiter_raw():
            received += piece
            if received == b"".join(EVENTS[:3]):
                goes_on.set()  # nothing waits for the end
    assert received == b"".join(EVENTS)


async def test_a_large_answer_without_a_length_passes(route, stubs):
    (stub,) = await stubs("a")
    data = bytes(range(256)) * 8192

    async def answer(seen, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: x/y\r\nconnection: close\r\n\r\n" + data)
        await writer.drain()
        writer.close()

    stub.answer = answer
    async with route(stub) as router:
        response = await router.client.get("/v1/files/x/content")
    assert response.content == data


async def test_a_compressed_body_is_decoded_for_the_upstream(route, stubs):
    (stub,) = await stubs("a")
    body = json.dumps({"model": "m", "prompt": "x"}).encode()
    async with route(stub) as router:
        headers = {"content-type": "application/json", "content-encoding": "gzip"}
        await router.client.post("/v1/completions", content=gzip.compress(body), headers=headers)
    assert stub.seen[0].body == body
    assert "content-encoding" not in stub.seen[0].headers


async def test_connections_are_kept_between_requests(route, stubs):
    (stub,) = await stubs("a")
    async with route(stub) as router:
        for _ in range(5):
            await router.chat()
        assert stub.num_connections == 1


async def test_a_read_on_a_closed_kept_connection_is_repeated(route, stubs):
    (stub,) = await stubs("a")
    calls = []

    async def answer(seen, writer):
        calls.append(seen)
        if len(calls) == 2:
            writer.transport.abort()
        else:
            writer.write(plain({}))

    stub.answer = answer
    async with route(stub) as router:
        assert [(await router.client.get("/v1/x")).status_code for _ in range(2)] == [200, 200]
    assert len(calls) == 3


# ---- further tries


async def test_an_upstream_that_refuses_connections_is_left_for_another(route, stubs):
    one, other = await stubs("a", "b")
    async with route(one, other) as router:
        one.die()
        answered = [(await router.chat()).json()["from"] for _ in range(4)]
        assert answered == ["b"] * 4
        assert not router.upstream("a").is_up
        assert await router.metric("retries_total", reason="connect") == 1


@pytest.mark.parametrize("status", [502, 503])
async def test_an_upstream_that_is_draining_is_left_for_another(route, stubs, status):
    one, other = await stubs("a", "b")
    one.answer = answers({"error": {"message": "stopping"}}, status, retry_after="1")
    async with route(one, other) as router:
        assert [(await router.chat()).json()["from"] for _ in range(2)] == ["b", "b"]
        assert await router.metric("retries_total", reason="busy") == 2


async def test_the_last_refusal_is_answered_when_no_upstream_is_left(route, stubs):
    one, other = await stubs("a", "b")
    for stub in (one, other):
        stub.answer = answers({"error": {"message": "full"}}, 503, retry_after="7")
    async with route(one, other) as router:
        response = await router.chat()
    assert (response.status_code, response.headers["retry-after"]) == (503, "7")
    assert response.json()["error"]["message"] == "full"
    assert len(one.seen) == len(other.seen) == 1


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
async def test_other_failures_are_answers(route, stubs, status):
    one, other = await stubs("a", "b")
    one.answer = other.answer = answers({"error": {"message": "no"}}, status)
    async with route(one, other) as router:
        assert (await router.chat()).status_code == status
    assert len(one.seen) + len(other.seen) == 1


async def test_a_request_that_was_taken_up_is_not_sent_twice(route, stubs):
    one, other = await stubs("a", "b")

    async def dies(seen, writer):
        writer.transport.abort()

    one.answer = dies
    async with route(one, other) as router:
        response = await router.chat()
    assert response.status_code == 502
    assert response.json()["error"]["code"] == "upstream_failed"
    assert len(one.seen) == 1
    assert not other.seen


async def test_a_request_that_was_reset_unread_is_sent_to_another(route, stubs):
    one, other = await stubs("a", "b")
    async with route(one, other) as router:
        one.resets = True  # as connections that wait to be accepted when a process ends
        router.upstream("a").client.close_idle()
        assert (await router.chat("x" * 100_000)).json()["from"] == "b"
        assert await router.metric("retries_total", reason="connect") == 1


async def test_a_kept_connection_that_the_upstream_closed_meanwhile_is_not_used(route, stubs):
    (stub,) = await stubs("a")

    async def answers_and_closes(seen, writer):
        writer.write(plain({}))
        await writer.drain()
        writer.close()

    stub.answer = answers_and_closes
    async with route(stub) as router:
        for _ in range(20):
            assert (await router.chat()).status_code == 200


async def test_killing_one_of_two_under_fifty_streams(route, stubs):
    one, other = await stubs("a", "b")

    async def goes_on(writer):
        for _ in range(60):
            await asyncio.sleep(0.01)
            writer.write(chunk(EVENTS[2]))
            await writer.drain()
        writer.write(chunk(EVENTS[3]) + chunk(b""))

    one.answer = other.answer = streams(EVENTS[0], then=goes_on)
    async with route(one, other, policy="least-loaded", probes=True) as router:
        running = [asyncio.create_task(router.chat(f"{number}", stream=True)) for number in range(50)]
        while len(one.seen) + len(other.seen) < 50:
            await asyncio.sleep(0.01)
        one.die()
        later = [asyncio.create_task(router.chat(f"{number}", stream=True)) for number in range(20)]
        answered = await asyncio.gather(*running, *later)
    ends = [answer.content for answer in answered[:50]]
    assert all(end.endswith(b"data: [DONE]\n\n") for end in ends)
    assert sum(b'"code":"upstream_failed"' in end for end in ends) == len(one.seen) == 25
    assert {answer.headers["x-plugserve-upstream"] for answer in answered[50:]} == {"b"}
    assert not any(b'"error"' in answer.content for answer in answered[50:])


async def test_no_upstream_up_is_503_with_retry_after(route, stubs):
    one, other = await stubs("a", "b")
    async with route(one, other) as router:
        one.die()
        other.die()
        for _ in range(2):
            response = await router.chat()
            assert (response.status_code, response.headers["retry-after"]) == (503, "1")
            assert response.json()["error"]["type"] == "server_error"
        assert (await router.client.get("/health")).status_code == 503


# ---- the end of streams


@pytest.mark.parametrize(
    ("path", "ending"),
    [
        ("/v1/chat/completions", b'data: {"error":{"message":"The server of this request failed'),
        ("/v1/completions", b'data: {"error":{"message":"The server of this request failed'),
        ("/v1/messages", b'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"The server'),
        ("/v1/responses", b'event: error\ndata: {"type":"error","sequence_number":5,"code":"upstream_failed","mess'),
    ],
)
async def test_a_stream_that_breaks_off_ends_with_an_error_event(route, stubs, path, ending):
    (stub,) = await stubs("a")

    async def then(writer):
        writer.write(chunk(b'data: {"half": '))
        await writer.drain()
        writer.transport.abort()

    whole = b'event: x\ndata: {"type":"x", "sequence_number": 4}\n\n'
    stub.answer = streams(whole, then=then)
    async with route(stub) as router:
        response = await router.client.post(path, json={"model": "m", "stream": True})
    assert response.status_code == 200
    assert response.content.startswith(whole + ending), response.content
    assert response.content.endswith(b"\n\n")


async def test_an_answer_that_breaks_off_is_not_taken_for_whole(route, stubs):
    (stub,) = await stubs("a")

    async def answer(seen, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: a/b\r\ncontent-length: 900000\r\n\r\n" + b"x" * 1000)
        await writer.drain()
        writer.transport.abort()

    stub.answer = answer
    async with route(stub) as router:
        with pytest.raises(httpx.RemoteProtocolError):
            await router.client.get("/v1/files/x/content")


async def test_a_client_that_leaves_ends_the_request_upstream(route, stubs, eventually):
    (stub,) = await stubs("a")

    async def then(writer):
        await asyncio.sleep(30)

    stub.answer = streams(EVENTS[0], then=then)
    async with route(stub) as router:
        num_open = stub.num_open
        request = {"model": "m", "stream": True}
        async with router.client.stream("POST", "/v1/chat/completions", json=request) as response:
            async for _ in response.aiter_raw():
                break
        await eventually(lambda: router.upstream("a").num_in_flight == 0)
        await eventually(lambda: router.upstream("a").client.num_connections == 0)
    assert num_open == 1


async def test_an_upstream_that_sends_nothing_times_out(route, stubs):
    (stub,) = await stubs("a")

    async def silent(seen, writer):
        await asyncio.sleep(30)

    stub.answer = silent
    async with route(stub, upstream_timeout=0.1) as router:
        response = await router.chat()
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "request_timeout"


async def test_a_stream_beyond_the_time_limit_ends_with_an_error_event(route, stubs):
    (stub,) = await stubs("a")

    async def then(writer):
        await asyncio.sleep(30)

    stub.answer = streams(EVENTS[0], then=then)
    async with route(stub, limits=ServiceLimits(timeout_s=0.1)) as router:
        response = await router.chat(stream=True)
    assert b'"code":"request_timeout"' in response.content
    assert response.content.endswith(b"data: [DONE]\n\n")


async def test_a_slow_client_holds_its_upstream_back(route, stubs):
    (stub,) = await stubs("a")
    sent = []

    async def answer(seen, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: a/b\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(400):
            writer.write(chunk(b"x" * 65536))
            await writer.drain()
            sent.append(65536)
        writer.write(chunk(b""))

    stub.answer = answer
    async with route(stub) as router, router.client.stream("GET", "/v1/files/x/content") as response:
        pieces = response.aiter_raw()
        await anext(pieces)
        await asyncio.sleep(0.3)
        assert sum(sent) < 400 * 65536
        assert sum([len(piece) async for piece in pieces]) > 300 * 65536


# ---- limits and keys


async def test_a_body_over_the_limit_is_refused_here(route, stubs):
    (stub,) = await stubs("a")
    async with route(stub, limits=ServiceLimits(max_body_bytes=1000)) as router:
        response = await router.chat("x" * 2000)
    assert response.status_code == 413
    assert not stub.seen


async def test_dot_segments_are_refused(route, stubs):
    (stub,) = await stubs("a")
    async with route(stub) as router:
        for path in (b"/v1/../admin", b"/v1/%2e%2E/admin", b"/v1/."):
            reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
            writer.write(b"GET " + path + b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 400")
            writer.close()
    assert not stub.seen


async def test_own_keys_are_checked_and_replaced(route, stubs):
    one, other = await stubs("a", "b")
    async with route(one, other, access=Access(keys=["own"]), keys=["a=secret"]) as router:
        assert (await router.chat()).status_code == 401
        assert not one.seen
        router.client.headers["authorization"] = "Bearer own"
        for _ in range(2):
            assert (await router.chat()).status_code == 200
        assert (await router.client.get("/v1/models")).status_code == 200
        assert (await router.client.get("/metrics")).status_code == 200
    assert one.seen[0].headers["authorization"] == "Bearer secret"
    assert "authorization" not in other.seen[0].headers


async def test_clients_keys_pass_where_the_router_has_none(route, stubs):
    (stub,) = await stubs("a")
    async with route(stub, keys=["secret"]) as router:
        await router.client.post("/v1/x", headers={"x-api-key": "theirs"})
        await router.client.post("/v1/x")
    assert stub.seen[0].headers["x-api-key"] == "theirs"
    assert "authorization" not in stub.seen[0].headers
    assert stub.seen[1].headers["authorization"] == "Bearer secret"


async def test_open_paths_without_a_route_are_not_passed_on(route, stubs):
    (stub,) = await stubs("a")
    async with route(stub, access=Access(keys=["own"]), keys=["secret"]) as router:
        assert (await router.client.post("/version")).status_code in (404, 405)
        assert (await router.client.delete("/health")).status_code in (404, 405)
    assert not stub.seen


async def test_a_router_that_stops_refuses_new_requests(route, stubs):
    (stub,) = await stubs("a")
    async with route(stub) as router:
        await router.state.drain(0)
        response = await router.chat()
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert (await router.client.get("/ready")).status_code == 503
