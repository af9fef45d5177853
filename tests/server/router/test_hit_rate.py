"""Prefix affinity raises the hit rate of the upstreams' prefix caches, with the load of benchmarks/routing.py."""

import argparse
import json

from benchmarks.routing import POLICIES, converse
from tests.server.router.stub_upstream import streams

BLOCK_WORDS = 16


class CachingAnswers:
    """Answers as a server with a prefix cache of so many blocks; a word is a token."""

    def __init__(self, num_blocks):
        self.num_blocks, self.cached = num_blocks, {}

    async def __call__(self, seen, writer):
        words = " ".join(message["content"] for message in seen.json["messages"]).split()
        num_cached, is_hit = 0, True
        for end in range(BLOCK_WORDS, len(words), BLOCK_WORDS):
            block = tuple(words[:end])
            is_hit = is_hit and block in self.cached
            num_cached += BLOCK_WORDS if is_hit else 0
            self.cached.pop(block, None)
            self.cached[block] = True
        while len(self.cached) > self.num_blocks:
            del self.cached[next(iter(self.cached))]
        usage = {"prompt_tokens": len(words), "prompt_tokens_details": {"cached_tokens": num_cached}}
        events = [{"choices": [{"delta": {"content": f"answer {len(words)} "}}]}, {"choices": [], "usage": usage}]
        await streams(*(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events))(seen, writer)


async def test_prefix_affinity_raises_the_hit_rate_over_other_policies(route, stubs):
    options = argparse.Namespace(conversations=12, turns=5, words=60, max_tokens=8)
    hit_rates = {}
    for policy in POLICIES:
        one, two = await stubs("a", "b")
        for stub in (one, two):
            stub.answer = CachingAnswers(125)  # all conversations have about 228
        async with route(one, two, policy=policy) as router:
            talked = await converse(str(router.client.base_url), options)
        assert sum(len(talk.first_token_s) for talk in talked) == 12 * 5
        assert min(len(one.seen), len(two.seen)) > 20  # the load is shared
        hit_rates[policy] = sum(talk.cached_tokens for talk in talked) / sum(talk.prompt_tokens for talk in talked)
    assert hit_rates["prefix"] > 0.6, hit_rates  # of 0.67 that are possible
    assert hit_rates["prefix"] > 1.3 * max(hit_rates["round-robin"], hit_rates["least-loaded"]), hit_rates
