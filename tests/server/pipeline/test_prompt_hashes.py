"""Prompts are hashed in the server exactly as the engine would hash them, and only for an engine that caches."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from plugserve.core.wire.block_hash import hash_blocks, salt_of, split_hashes
from plugserve.server.pipeline.prompt_hashes import hash_prompts
from plugserve.server.pipeline.prompts import Prompt
from tests.server.engine_socket import INFO

PROMPT = [7] * 40  # two full blocks of 16 and a part of one


def engine_hashes(token_ids, model="model", cache_salt=""):
    return hash_blocks(salt_of(model, "", cache_salt), token_ids, 16)


@pytest.mark.parametrize("fields", [{}, {"cache_salt": "tenant"}])
async def test_request_carries_the_hashes_that_the_engine_would_make(serve, fields):
    async with serve(prefix_salt="model") as server:
        assert (await server.complete(PROMPT, **fields)).status_code == 200
        await server.chat("x" * 50, **fields)
        for call in server.engine.calls:
            assert split_hashes(call.block_hashes) == engine_hashes(call.prompt, **fields)
            assert len(call.block_hashes) == len(call.prompt) // 16 * 16


async def test_truncated_prompt_is_hashed_as_it_was_cut(serve):
    async with serve(prefix_salt="model") as server:
        await server.complete("abcdefgh" * 8, truncate_prompt_tokens=20)
        (call,) = server.engine.calls
        assert len(call.prompt) == 20
        assert split_hashes(call.block_hashes) == engine_hashes(call.prompt)


async def test_every_prompt_and_choice_has_its_own_hashes(serve):
    async with serve(prefix_salt="model") as server:
        await server.complete([[1] * 16, [2] * 16], n=2)
        hashes = [call.block_hashes for call in server.engine.calls]
        assert [split_hashes(raw) for raw in hashes] == [engine_hashes([token] * 16) for token in (1, 1, 2, 2)]


async def test_nothing_is_hashed_for_an_engine_without_a_prefix_cache(serve):
    async with serve() as server:
        await server.complete(PROMPT)
        assert server.engine.calls[0].block_hashes == b""


@pytest.mark.parametrize("num_tokens", [2048, 2049, 100_000])
async def test_long_prompts_are_hashed_in_a_thread_with_the_same_result(num_tokens):
    class Pool(ThreadPoolExecutor):
        num_calls = 0

        def submit(self, *args):
            self.num_calls += 1
            return super().submit(*args)

    info = msgspec.structs.replace(INFO, prefix_salt="model")
    token_ids = list(range(num_tokens))
    with Pool(1) as pool:
        (prompt,) = await hash_prompts([Prompt(token_ids)], info, "", pool)
        assert pool.num_calls == (num_tokens > 2048)
    assert split_hashes(prompt.block_hashes) == engine_hashes(token_ids)


async def test_choices_of_a_cold_prompt_do_not_count_as_cached(serve):
    """The second choice finds what the first one has computed: the prompt was computed all the same."""
    async with serve(cached_tokens=[0, 32, 16, 32]) as server:
        usage = (await server.complete([PROMPT, [8] * 40], n=2)).json()["usage"]
        assert usage["prompt_tokens_details"] == {"cached_tokens": 0 + 16}


async def test_continuous_usage_tells_cached_tokens(serve):
    async with serve(cached_tokens=32) as server:
        options = {"include_usage": True, "continuous_usage_stats": True}
        events = await server.complete_events(PROMPT, stream_options=options)
        assert [event["usage"]["prompt_tokens_details"] for event in events] == [{"cached_tokens": 32}] * len(events)
