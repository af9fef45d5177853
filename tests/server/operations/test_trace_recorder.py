"""--record-trace in a worker: one line a sequence, however it ended, without prompts, names or keys."""

from __future__ import annotations

import json
import re

import pytest

from plugserve.core.wire.trace_file import read_trace
from plugserve.server.operations.access import Access, key_name
from plugserve.server.operations.trace_recorder import FileTraceRecorder
from tests.server.conftest import running
from tests.server.fakes import FakeEngine, says, served

KEY = b"0123456789abcdef"


@pytest.fixture
def start(tokenizer, make_state, tmp_path):
    """start(engine options) -> an async context manager with a server that records to tmp_path/trace.jsonl."""

    def start(*, access=None, **options):
        engine = FakeEngine(says(tokenizer, "hello world!"), max_model_len=1000, **options)
        recorder = FileTraceRecorder(str(tmp_path / "trace.jsonl"), KEY)
        state = make_state(served(engine, tokenizer), recorder=recorder, access=access)
        return running(state)

    return start


def recorded(tmp_path):
    return read_trace(str(tmp_path / "trace.jsonl")).requests


async def test_every_sequence_of_a_request_is_a_line(start, tmp_path):
    async with start() as server:
        answer = await server.client.post(
            "/v1/completions", json={"prompt": ["hello", "hello world"], "n": 2, "max_tokens": 5, "priority": 3}
        )
        usage = answer.json()["usage"]
    lines = recorded(tmp_path)
    assert sorted(line.prompt_tokens for line in lines) == sorted(
        2 * [len(call.prompt) for call in server.engine.calls[::2]]
    )
    assert sum(line.output_tokens for line in lines) == usage["completion_tokens"]
    assert {(line.max_tokens, line.priority, line.model, line.finish) for line in lines} == {
        (5, 3, "fake/model", "stop")
    }
    assert all(0 < line.ttft_s <= line.total_s for line in lines)


async def test_streams_chats_and_vectors_are_recorded_too(start, tmp_path):
    async with start() as server:
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "stream": True}
        await server.client.post("/v1/chat/completions", json=body)
        await server.client.post("/v1/embeddings", json={"input": ["a", "b"]})
    outputs = [(line.output_tokens, line.finish) for line in recorded(tmp_path)]
    assert outputs == [(4, "stop"), (0, "stop"), (0, "stop")]


async def test_failed_request_is_recorded_with_what_it_got_and_a_refused_one_is_not(start, tmp_path):
    async with start(fails_after=2) as server:
        assert (await server.client.post("/v1/completions", json={"prompt": "hi", "max_tokens": 9})).status_code == 500
        assert (await server.client.post("/v1/completions", json={"prompt": "hi", "max_tokens": -1})).status_code == 400
    (line,) = recorded(tmp_path)
    assert (line.output_tokens, line.finish) == (2, "error")


async def test_nothing_that_was_said_and_nobodys_name_or_key_is_in_the_trace(start, tmp_path):
    async with start(access=Access(keys=["my-secret-key"])) as server:
        headers = {"Authorization": "Bearer my-secret-key"}
        for user in ({}, {"user": "ada@example.org"}, {"user": "ada@example.org"}, {"user": "bob"}):
            body = {"prompt": "hello world " * 40, "max_tokens": 3} | user
            await server.client.post("/v1/completions", json=body, headers=headers)
    text = (tmp_path / "trace.jsonl").read_text()
    for secret in ("secret", "ada", "bob", "example", "hello"):
        assert secret not in text
    entries = [json.loads(line) for line in text.splitlines()]
    name = key_name("my-secret-key")
    users = [entry["user"] for entry in entries]
    assert users[0] == name
    assert users[1] == users[2] != users[3]
    assert all(re.fullmatch(f"{name}/user-[0-9a-f]{{8}}", user) for user in users[1:])
    assert len({tuple(entry["hash_ids"]) for entry in entries}) == 1
    assert set(entries[0]) <= {
        "arrival_s", "prompt_tokens", "output_tokens", "max_tokens", "user", "model", "hash_ids", "ttft_s", "total_s",
        "finish",
    }  # fmt: skip


async def test_full_disk_costs_lines_and_one_message_but_no_request(start, tmp_path, caplog, monkeypatch):
    def full(descriptor, data):
        raise OSError(28, "No space left on device")

    async with start() as server:
        monkeypatch.setattr("plugserve.core.wire.trace_file.os.write", full)
        for _ in range(2):
            answer = await server.client.post("/v1/completions", json={"prompt": "hi", "max_tokens": 3})
            assert answer.status_code == 200
    assert caplog.text.count("No space left on device") == 1
