"""Serving the real model: answers, streams, many concurrent clients, clients that disconnect."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from openai import OpenAI

from tests.backends.cpu.native_models import needs_library
from tests.e2e.live_server import eventually

QUESTION = [{"role": "user", "content": "Name the capital of France."}]


@pytest.fixture(scope="module")
def client(server):
    return OpenAI(base_url=server.url + "/v1", api_key="none")


def test_chat_answers_and_counts_tokens(client):
    model = client.models.list().data[0].id
    assert model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    answer = client.chat.completions.create(model=model, messages=QUESTION, temperature=0, max_tokens=60)
    assert answer.choices[0].message.content == "The capital of France is Paris."
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (36, 8)


def test_stream_equals_plain_answer_and_ends_once(client):
    fields = {"model": "SmolLM2-135M-Instruct", "messages": QUESTION, "temperature": 0, "max_tokens": 60}
    plain = client.chat.completions.create(**fields)
    chunks = list(client.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True}))
    *content, usage = chunks
    assert usage.choices == []
    assert usage.usage.completion_tokens == plain.usage.completion_tokens
    text = "".join(chunk.choices[0].delta.content or "" for chunk in content)
    assert text == plain.choices[0].message.content
    finishes = [chunk.choices[0].finish_reason for chunk in content]
    assert finishes[-1] == "stop"
    assert set(finishes[:-1]) == {None}
    assert content[-1].choices[0].delta.content


PROMPTS = [f"{noun} number {n} is" for n in range(16) for noun in ("Planet", "The river", "A good recipe", "Chapter")]


async def stream(http, url, prompt, max_tokens, stop_after=None):
    """The streamed text; with stop_after, disconnect after that many chunks."""
    body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True, "stream": True}
    text, num_chunks = "", 0
    async with http.stream("POST", url + "/v1/completions", json=body) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                text += json.loads(line[6:])["choices"][0]["text"]
                num_chunks += 1
                if num_chunks == stop_after:
                    return text
    return text


def test_half_of_64_clients_disconnect_and_the_others_finish(server):
    expected = [server.complete(prompt, 12, ignore_eos=True) for prompt in PROMPTS[::16]]
    free, pids = server.metric("kv_blocks_free"), {child.pid for child in server.children()}

    async def everyone():
        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(timeout=120, limits=limits) as http:
            return await asyncio.gather(
                *(
                    stream(http, server.url, prompt, 12 if n % 2 == 0 else 4000, None if n % 2 == 0 else 5)
                    for n, prompt in enumerate(PROMPTS)
                )
            )

    texts = asyncio.run(everyone())
    eventually(lambda: server.metric("kv_blocks_free") == free, 1.0)
    assert texts[::16] == expected
    assert all(texts)
    eventually(lambda: server.metric("num_requests_running") == 0)
    assert server.metric("kv_integrity_errors_total") == 0
    eventually(lambda: server.metric("kv_integrity_checks_total") > 0)  # once it has been idle for a moment
    assert server.metric("engine_restarts_total") == 0
    assert pids <= {child.pid for child in server.children()}


def test_request_without_stream_is_aborted_when_its_client_disconnects(server):
    free = server.metric("kv_blocks_free")
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            server.url + "/v1/completions",
            json={"prompt": "Count:", "max_tokens": 4000, "ignore_eos": True},
            timeout=0.7,
        )
    eventually(lambda: server.metric("kv_blocks_free") == free, 2.0)
    eventually(lambda: server.metric("num_requests_running") == 0, 2.0)


@needs_library
def test_no_process_has_torch(server):
    import psutil

    for process in (psutil.Process(server.process.pid), server.worker, server.engine):
        assert not [mapping.path for mapping in process.memory_maps() if "libtorch" in mapping.path]
