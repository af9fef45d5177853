"""Clients that go away, engines that fail: sequences are aborted once, everybody hears at once, the server goes on."""

import asyncio
import json

import pytest

from plugserve.server.api.error_responses import describe
from tests.server.fakes import NoHooks

CHAT = "/v1/chat/completions"


async def send_request(port, path, body):
    """A raw connection that has sent one request."""
    content = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    writer.write(head.encode() + content)
    await writer.drain()
    return reader, writer


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("size", [1, 300_000])
async def test_vanished_client_aborts_its_sequences(serve, eventually, stream, size):
    async with serve("hello world! " * 20, stops_after=3, max_model_len=400_000) as server:
        body = {"prompt": "z" * size, "max_tokens": 100, "n": 2, "stream": stream}
        reader, writer = await send_request(server.port, "/v1/completions", body)
        await eventually(lambda: [call.num_told for call in server.engine.calls] == [3, 3])
        if stream:
            await reader.readuntil(b"hello")
        writer.transport.abort()
        await eventually(lambda: sorted(server.engine.aborted) == [1, 2])


async def test_client_that_leaves_the_queue_aborts(serve, eventually):
    async with serve(stops_after=0) as server:
        _, writer = await send_request(server.port, "/v1/completions", {"prompt": "x"})
        await eventually(lambda: server.engine.calls)
        writer.close()
        await eventually(lambda: server.engine.aborted == [1])


async def test_many_cancelled_requests_leave_a_working_server(serve, eventually):
    async with serve(stops_after=2) as server:
        connections = [await send_request(server.port, "/v1/completions", {"prompt": "x"}) for _ in range(64)]
        await eventually(lambda: len(server.engine.calls) == 64)
        for _, writer in connections:
            writer.transport.abort()
        await eventually(lambda: len(server.engine.aborted) == 64)
        server.engine.stops_after = None
        assert (await server.complete()).status_code == 200


async def test_finished_sequences_are_not_aborted(server):
    await server.chat()
    await server.chat_events()
    assert server.engine.aborted == []


async def test_plugins_and_metrics_hear_of_an_abort(serve, eventually):
    hooks = NoHooks()
    async with serve(stops_after=2, state={"hooks": hooks}) as server:
        _, writer = await send_request(server.port, "/v1/completions", {"prompt": "x", "stream": True})
        await eventually(lambda: server.engine.calls and server.engine.calls[0].num_told == 2)
        writer.transport.abort()
        await eventually(lambda: hooks.told)
        name, told = hooks.told[0]
        assert (name, told["timings"].finish_reason) == ("plugserve_request_finished", "abort")
        assert told["usage"].num_generated_tokens == 2
        metrics = (await server.client.get("/metrics")).text
    assert 'plugserve_request_success_total{finished_reason="abort",model_name="fake/model"} 1.0' in metrics


async def test_sequence_that_fails_first_is_a_plain_500(serve):
    async with serve(fails_after=0) as server:
        for fields in ({}, {"stream": True}):
            response = await server.chat(**fields)
            assert response.status_code == 500
            assert response.json()["error"]["message"] == "the sampler saw NaN"
            assert response.json()["error"]["type"] == "server_error"


async def test_failure_in_mid_stream_is_an_event_after_all_text(serve):
    hooks = NoHooks()
    async with serve(fails_after=2, state={"hooks": hooks}) as server:
        events = await server.chat_events()
        assert (await server.chat()).status_code == 500
    assert events[-1] == {
        "error": {"message": "the sampler saw NaN", "type": "server_error", "param": None, "code": "engine_error"}
    }
    text = "".join(event["choices"][0]["delta"]["content"] for event in events[:-1])
    assert text == "hello world"
    assert [name for name, _ in hooks.told] == ["plugserve_error"] * 2


async def test_one_failing_choice_aborts_the_others(serve, tokenizer, eventually):
    def script(call):
        return [40] * (1 if call.id == 1 else 100)

    async with serve(script, stops_after=5) as server:
        server.engine.script = script
        task = asyncio.create_task(server.complete(n=2, max_tokens=100))
        await eventually(lambda: len(server.engine.calls) == 2 and server.engine.calls[1].num_told == 5)
        from plugserve.core.errors import RequestFailedError

        server.engine.calls[0].stream.fail(RequestFailedError("broken"))
        assert (await task).status_code == 500
        assert server.engine.aborted == [2]


async def test_engine_death_ends_everything_at_once(serve, eventually):
    async with serve(stops_after=2) as server:
        body = {"messages": [{"role": "user", "content": "x"}], "stream": True}
        stream = asyncio.create_task(server.events(CHAT, body))
        plain = asyncio.create_task(server.chat())
        await eventually(lambda: [call.num_told for call in server.engine.calls] == [2, 2])
        server.engine.die()
        assert (await stream)[-1]["error"]["code"] == "engine_unavailable"
        assert (await plain).status_code == 503
        assert (await server.client.get("/health")).status_code == 503
        server.engine.state, server.engine.stops_after = "up", None
        assert (await server.chat()).status_code == 200


async def test_stopping_server_refuses_new_requests_and_lets_others_finish(serve, eventually):
    async with serve(step_s=0.05) as server:
        running = asyncio.create_task(server.chat())
        await eventually(lambda: server.engine.calls)
        drained = asyncio.create_task(server.state.drain(10))
        await asyncio.sleep(0)
        refused = await server.chat()
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "engine_unavailable"
        assert (await server.client.get("/health")).json() == {"status": "stopping"}
        assert (await running).json()["choices"][0]["message"]["content"] == "hello world!"
        await drained


async def test_requests_cut_off_at_the_end_fail_with_an_error(serve, eventually):
    async with serve(stops_after=2) as server:
        body = {"messages": [{"role": "user", "content": "x"}], "stream": True}
        stream = asyncio.create_task(server.events(CHAT, body))
        plain = asyncio.create_task(server.chat())
        await eventually(lambda: [call.num_told for call in server.engine.calls] == [2, 2])
        await server.state.drain(0)
        server.engine.abort_all()
        *pieces, last = await stream
        assert "".join(piece["choices"][0]["delta"].get("content") or "" for piece in pieces) == "hello world"
        assert not any(piece["choices"][0]["finish_reason"] for piece in pieces)
        response = await plain
        assert response.status_code == 503
        for error in (last["error"], response.json()["error"]):
            assert error["code"] == "engine_unavailable"
            assert "shut down before this request was finished" in error["message"]


async def test_slow_reader_gets_everything(serve):
    async with serve("hello world! " * 3000, eos=None, max_model_len=20_000, tokens_per_step=50) as server:
        _, slow = await send_request(
            server.port, "/v1/completions", {"prompt": "x", "max_tokens": 9000, "stream": True}
        )
        slow.transport.pause_reading()
        assert (await server.complete(max_tokens=9)).status_code == 200
        slow.close()
        events = await server.complete_events(max_tokens=9000)
        assert "".join(event["choices"][0]["text"] for event in events) == "hello world! " * 2250


def test_unknown_exceptions_tell_clients_nothing():
    status, body = describe(KeyError("/etc/passwd"))
    assert status == 500
    assert "passwd" not in json.dumps(body)
