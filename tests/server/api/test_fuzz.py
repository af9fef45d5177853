"""Hostile bodies get an answer in OpenAI's shape, and nobody else notices."""

import asyncio
import json

import httpx
import pytest

from tests.server.hostile import HostileBodies


@pytest.mark.parametrize("seed", range(4))
async def test_hostile_bodies_get_clear_answers(serve, seed):
    async with serve("hello world!", max_model_len=256) as server:
        bodies = HostileBodies(seed)
        statuses = set()
        for _ in range(600):
            path, content_type, body = next(bodies)
            response = await server.client.post(path, content=body, headers={"Content-Type": content_type})
            statuses.add(response.status_code)
            if response.status_code != 200:
                error = response.json()["error"]
                assert 400 <= response.status_code < 500, (path, body, error)
                assert set(error) == {"message", "type", "param", "code"}
                assert "\n" not in error["message"]
                assert len(error["message"]) < 1000
                assert "Traceback" not in error["message"]
                assert "/plugserve/" not in error["message"]
        assert {200, 400, 415} <= statuses
        assert (await server.complete()).json()["choices"][0]["text"] == "hello world!"


async def test_bystanders_text_is_unchanged(serve):
    text = "hello world! " * 7
    async with serve(text, max_model_len=256, step_s=0.005) as server:
        expected = text
        bystander = asyncio.create_task(server.complete_events(max_tokens=200))
        bodies = HostileBodies(99)
        while not bystander.done():
            path, content_type, body = next(bodies)
            await server.client.post(path, content=body, headers={"Content-Type": content_type})
        assert "".join(event["choices"][0]["text"] for event in bystander.result()) == expected


async def test_slow_and_broken_senders_hold_nobody_up(server):
    connections = []
    for sent in (
        b"POST /v1/completions HTTP/1.1\r\n",
        b"\x00\x01\x02\r\n\r\n",
        b"POST /v1/comp",
        b"GET / HTTP/9.9\r\n\r\n",
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(sent)
        connections.append((reader, writer))
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 900\r\n\r\n"
    for part in (b"", b'{"prompt":', b"{" * 899):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(head + part)
        connections.append((reader, writer))
    for _ in range(3):
        assert (await server.complete()).json()["choices"][0]["text"] == "hello world!"
    for _, writer in connections:
        writer.close()
    assert (await server.complete()).status_code == 200


async def test_hostile_headers_get_an_answer_or_a_closed_connection(server):
    lines = [
        b"X-Request-Id: " + b"x" * 20000,
        b"Content-Length: -5",
        b"Content-Length: 9e9",
        b"Transfer-Encoding: chunked\r\n\r\nzz",
    ]
    lines += [b"Authorization: \xff\xfe\x00", b": empty", b"no colon", b"Content-Length: 1\r\nContent-Length: 2"]
    for line in lines:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + line + b"\r\n\r\n")
        writer.write_eof()
        answer = await asyncio.wait_for(reader.read(), 10)
        assert not answer or answer.startswith(b"HTTP/1.1 4"), (line, answer[:80])
        writer.close()
    async with httpx.AsyncClient() as client:
        answer = await client.post(
            f"http://127.0.0.1:{server.port}/v1/completions", content=json.dumps({"prompt": "x"}), timeout=10
        )
    assert answer.status_code == 415
