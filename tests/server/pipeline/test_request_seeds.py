"""Requests without a seed: random draws, or a sequence that --seed repeats."""

import pytest

from plugserve.server.pipeline.request_seeds import RequestSeeds

CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}


async def seeds_of(serve, seeds, *bodies):
    """The seeds of the sequences that the engine gets."""
    async with serve(state={"seeds": seeds}) as server:
        for path, body in bodies:
            answer = await server.client.post(path, json=body)
            assert answer.status_code == 200
        return [call.params.seed for call in server.engine.calls]


COMPLETION = ("/v1/completions", {"prompt": "a", "max_tokens": 1})
CHATS = ("/v1/chat/completions", CHAT)


async def test_requests_in_the_same_order_get_the_same_seeds_after_each_start(serve):
    first = await seeds_of(serve, RequestSeeds(7), CHATS, COMPLETION, CHATS)
    assert first == await seeds_of(serve, RequestSeeds(7), CHATS, COMPLETION, CHATS)
    assert len(set(first)) == 3
    assert all(0 <= seed < 2**63 for seed in first)


async def test_another_seed_and_another_worker_have_sequences_of_their_own(serve):
    sequences = [
        await seeds_of(serve, seeds, CHATS) for seeds in (RequestSeeds(7), RequestSeeds(8), RequestSeeds(7, 1))
    ]
    assert len({seeds[0] for seeds in sequences}) == 3


async def test_a_requests_own_seed_is_kept_and_takes_none_of_the_sequence(serve):
    path, body = COMPLETION
    own = (path, body | {"seed": 0})
    plain = await seeds_of(serve, RequestSeeds(7), COMPLETION, COMPLETION)
    assert await seeds_of(serve, RequestSeeds(7), COMPLETION, own, COMPLETION) == [plain[0], 0, plain[1]]


async def test_without_a_seed_draws_differ(serve):
    assert len({*await seeds_of(serve, RequestSeeds(), CHATS), *await seeds_of(serve, RequestSeeds(), CHATS)}) == 2


@pytest.mark.parametrize("count", [3])
async def test_choices_of_a_request_count_on_from_its_seed(serve, count):
    path, body = COMPLETION
    (seed,) = await seeds_of(serve, RequestSeeds(7), COMPLETION)
    assert await seeds_of(serve, RequestSeeds(7), (path, body | {"n": count})) == [seed + i for i in range(count)]
