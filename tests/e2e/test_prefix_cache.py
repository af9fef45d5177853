"""The prefix cache as clients see it, in a real server: cached tokens in every API's usage, equal answers, metrics."""

from __future__ import annotations

import json

import httpx
import pytest

from tests.backends.cpu.native_models import needs_library
from tests.e2e.live_server import LiveServer

LONG = "The ferry to the island leaves at nine, at noon and at four, but never on Sundays. " * 5
CHAT = {"messages": [{"role": "user", "content": LONG}], "max_tokens": 8, "temperature": 0}
ENDPOINTS = {
    "/v1/chat/completions": (CHAT, lambda usage: (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)),
    "/v1/completions": (
        {"prompt": "Completions: " + LONG, "max_tokens": 8, "temperature": 0},
        lambda usage: (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0),
    ),
    "/v1/responses": (
        {"input": "Responses: " + LONG, "max_output_tokens": 8, "temperature": 0},
        lambda usage: usage["input_tokens_details"]["cached_tokens"],
    ),
    "/v1/messages": (
        {"messages": [{"role": "user", "content": "Messages: " + LONG}], "max_tokens": 8, "temperature": 0},
        lambda usage: usage["cache_read_input_tokens"],
    ),
}


SMALL = ("--load-format", "dummy", "--hf-overrides", '{"num_hidden_layers": 2}')  # equal texts, whichever


@pytest.fixture(scope="module")
def caching():
    with LiveServer(*SMALL, "--enable-prefix-caching", "--max-model-len", "2k") as server:
        yield server


def post(server, path, body):
    response = httpx.post(server.url + path, json=body, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()


def streamed_usages(server, path, body):
    """Every usage object in a stream's events."""
    found = []
    if path in ("/v1/chat/completions", "/v1/completions"):
        body = body | {"stream_options": {"include_usage": True}}
    with httpx.stream("POST", server.url + path, json=body | {"stream": True}, timeout=60) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                parts = (event, event.get("response") or {}, event.get("message") or {})
                found += [part["usage"] for part in parts if part.get("usage")]
    return found


def prompt_tokens(usage):
    return usage.get("prompt_tokens") or usage["input_tokens"] + usage.get("cache_read_input_tokens", 0)


@pytest.mark.parametrize("path", ENDPOINTS)
def test_usage_counts_cached_tokens(caching, path):
    body, cached_of = ENDPOINTS[path]
    cold, warm = (post(caching, path, body)["usage"] for _ in range(2))
    expected = (prompt_tokens(warm) - 1) // 16 * 16
    assert cached_of(cold) < 48  # what the templates begin with may be there already
    assert cached_of(warm) == expected > 90
    usages = streamed_usages(caching, path, body)
    assert usages
    assert cached_of(usages[-1]) == expected


def test_requests_with_different_salts_share_nothing(caching):
    body = {"prompt": "Salted: " + LONG, "max_tokens": 1}
    cached = [
        (post(caching, "/v1/completions", body | salt)["usage"].get("prompt_tokens_details") or {"cached_tokens": 0})
        for salt in ({}, {"cache_salt": "a"}, {"cache_salt": "b"}, {"cache_salt": "a"})
    ]
    assert [details["cached_tokens"] > 90 for details in cached] == [False, False, False, True]


def test_warm_answer_equals_the_cold_one_and_metrics_count_hits(caching):
    body = {"prompt": "Metered: " + LONG, "max_tokens": 24, "temperature": 0, "ignore_eos": True}

    def counts():
        return [caching.metric(f"prefix_cache_{name}_total") for name in ("queries", "hits")]

    before = counts()
    cold, warm = (post(caching, "/v1/completions", body) for _ in range(2))
    assert cold["choices"][0]["text"] == warm["choices"][0]["text"]
    length = cold["usage"]["prompt_tokens"]
    after = counts()
    grown = [later - earlier for earlier, later in zip(before, after, strict=True)]
    assert grown == [2 * length, (length - 1) // 16 * 16]


@needs_library
def test_evicted_prefixes_are_restored_from_host_memory(smollm2_gguf):
    """20 blocks hold two of these prompts; four alternate."""
    arguments = ("--enable-prefix-caching", "--swap-space", "0.25", "--num-gpu-blocks-override", "20")
    with LiveServer(*SMALL, *arguments, "--max-model-len", "160") as server:
        bodies = [
            {"prompt": f"{noun}: {LONG}", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
            for noun in ("Ferry", "Train", "Coach", "Plane")
        ]
        cold, warm = ([post(server, "/v1/completions", body) for body in bodies] for _ in range(2))
        assert [answer["choices"] for answer in warm] == [answer["choices"] for answer in cold]
        expected = sum((answer["usage"]["prompt_tokens"] - 1) // 16 * 16 for answer in warm)
        assert sum(answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in warm) == expected
        assert server.metric("prefix_cache_hits_total") == expected
        on_host = server.metric(r'prompt_tokens_cached_by_source_total\{[^}]*source="host"\}')
        assert 0 < on_host <= expected
        assert server.metric("kv_host_blocks_used") > 0
        assert server.metric("kv_offload_load_bytes_total") == on_host // 16 * 16 * 2 * 2 * 3 * 64 * 2
        assert "host memory blocks=" in server.log
