"""Which upstream is chosen."""

import random
from collections import Counter
from types import SimpleNamespace

import pytest

from plugserve.server.balance.prefix_table import PrefixTable
from plugserve.server.router.policies import LeastLoaded, PrefixAffinity, RoundRobin
from plugserve.server.router.prefix_blocks import BLOCK_BYTES, MAX_BLOCKS, prefix_blocks


def upstreams(*names):
    return [SimpleNamespace(name=name, owner=number, num_in_flight=0) for number, name in enumerate(names, 1)]


def chat(*texts):
    return {"messages": [{"role": "user", "content": text} for text in texts]}


def blocks_of(body, path="/v1/chat/completions", model="m"):
    return prefix_blocks(path, model, body)


def test_round_robin_takes_turns_also_when_candidates_change():
    one, two, three = upstreams("a", "b", "c")
    policy = RoundRobin()
    assert [policy.choose([one, two, three], []).upstream.name for _ in range(4)] == ["a", "b", "c", "a"]
    assert policy.choose([one, three], []).upstream.name == "c"
    assert policy.choose([one, two, three], []).upstream.name == "b"


def test_least_loaded_takes_the_least_loaded_and_shares_ties():
    candidates = upstreams("a", "b", "c")
    candidates[0].num_in_flight = 3
    chosen = Counter(LeastLoaded().choose(candidates, []).upstream.name for _ in range(200))
    assert set(chosen) == {"b", "c"}
    candidates[2].num_in_flight = 1
    assert LeastLoaded().choose(candidates, []).upstream.name == "b"


def test_turns_of_a_conversation_go_to_one_upstream():
    candidates = upstreams("a", "b", "c")
    policy = PrefixAffinity(8)
    texts = [f"{number} " * 300 for number in range(12)]
    first = policy.choose(candidates, blocks_of(chat(texts[0])))
    assert first.reason == "miss"
    for length in range(2, 12):
        choice = policy.choose(candidates, blocks_of(chat(*texts[:length])))
        assert (choice.upstream, choice.reason) == (first.upstream, "hit")
        assert choice.num_matched > 0


def test_a_turn_after_a_long_answer_is_still_a_hit():
    candidates = upstreams("a", "b")
    policy = PrefixAffinity(8)
    first = policy.choose(candidates, blocks_of(chat("question " * 50)))
    choice = policy.choose(candidates, blocks_of(chat("question " * 50, "answer " * 5000, "more")))
    assert (choice.upstream, choice.reason) == (first.upstream, "hit")


def test_new_conversations_are_spread_evenly():
    candidates = upstreams("a", "b", "c")
    policy = PrefixAffinity(8)
    chosen = Counter(policy.choose(candidates, blocks_of(chat(f"{n} " * 400))).upstream.name for n in range(30))
    assert set(chosen.values()) == {10}


def test_a_common_beginning_stays_on_one_upstream_until_many_share_it():
    candidates = upstreams("a", "b", "c")
    policy = PrefixAffinity(8)
    system = "You are a helpful assistant. " * 100
    chosen = [policy.choose(candidates, blocks_of(chat(system, f"{n} " * 200))) for n in range(200)]
    assert {choice.reason for choice in chosen[1:6]} == {"branch"}
    assert len({choice.upstream.name for choice in chosen[:6]}) == 1
    counts = Counter(choice.upstream.name for choice in chosen)
    assert set(counts) == {"a", "b", "c"}
    assert min(counts.values()) > 40


def test_a_loaded_upstream_loses_its_requests_to_another_which_then_has_the_beginning():
    candidates = upstreams("a", "b")
    policy = PrefixAffinity(2)
    blocks = blocks_of(chat("text " * 500))
    first = policy.choose(candidates, blocks).upstream
    first.num_in_flight = 2
    assert policy.choose(candidates, blocks).upstream is first
    first.num_in_flight = 3
    moved = policy.choose(candidates, blocks)
    assert (moved.upstream is first, moved.reason) == (False, "overflow")
    moved.upstream.num_in_flight = 1
    again = policy.choose(candidates, blocks)
    assert (again.upstream, again.reason) == (moved.upstream, "hit")


def test_an_upstream_that_came_back_holds_nothing():
    candidates = upstreams("a", "b")
    policy = PrefixAffinity(8)
    blocks = blocks_of(chat("text " * 500))
    policy.choose(candidates, blocks).upstream.owner = 99
    assert policy.choose(candidates, blocks).reason == "miss"


def test_an_upstream_that_is_not_a_candidate_is_not_chosen():
    candidates = upstreams("a", "b")
    policy = PrefixAffinity(8)
    blocks = blocks_of(chat("text " * 500))
    first = policy.choose(candidates, blocks).upstream
    (other,) = (one for one in candidates if one is not first)
    assert policy.choose([other], blocks).upstream is other


def test_the_table_forgets_the_oldest_blocks():
    table = PrefixTable(max_entries=100)
    random.seed(1)
    for number in range(50):
        table.note([random.getrandbits(64) for _ in range(10)], number % 3)
        assert len(table) <= 100
    assert sum(table.num_owned(owner) for owner in range(3)) == 100
    kept = [1, 2, 3]
    table.note(kept, 7)
    for _ in range(20):
        table.note([random.getrandbits(64) for _ in range(10)], 8)
        table.note(kept, 7)
    assert table.match(kept, [7]).num_blocks == 3


def test_owners_of_a_block_are_bounded():
    table = PrefixTable()
    for owner in range(1000):
        table.note([1, 2], owner)
    assert len(table.match([1, 2], range(1000)).holders) == 64
    assert sum(table.num_owned(owner) for owner in range(1000)) == 128


# ---- blocks


def test_equal_beginnings_have_equal_blocks():
    short, long = blocks_of(chat("a" * 3000)), blocks_of(chat("a" * 3000, "b" * 3000))
    assert len(long) > len(short) >= 3000 // BLOCK_BYTES - 1
    assert long[: len(short)] == short
    assert blocks_of(chat("b" + "a" * 3000))[:3] != short[:3]


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "text " * 200},
        {"prompt": list(range(1000))},
        {"input": "text " * 200},
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": "text " * 200}]}]},
        {"system": [{"type": "text", "text": "text " * 200}], "messages": []},
        {"tools": [{"type": "function", "function": {"name": "f", "description": "text " * 200}}], "messages": []},
    ],
)
def test_every_api_has_blocks(body):
    path = "/v1/responses" if "input" in body else "/v1/messages" if "system" in body else "/v1/completions"
    assert len(blocks_of(body, path)) > 2


def test_models_and_salts_have_blocks_of_their_own():
    body = {"prompt": "text " * 200}
    assert blocks_of(body)[0] != blocks_of(body, model="n")[0]
    assert blocks_of(body)[0] != blocks_of({**body, "cache_salt": "x"})[0]


def test_requests_that_generate_nothing_have_no_blocks():
    assert blocks_of({"input": "text " * 500}, "/v1/embeddings") == []
    assert prefix_blocks("/v1/completions", "m", None) == []
    assert blocks_of({"prompt": "short"}) == []


def test_huge_and_deep_bodies_are_read_up_to_a_limit():
    deep = "x"
    for _ in range(100_000):
        deep = [deep]
    for body in ({"prompt": "x" * 10**7}, {"prompt": [1] * 10**6}, {"messages": [{"content": ""}] * 10**5}):
        assert len(blocks_of(body)) <= MAX_BLOCKS
    assert blocks_of({"messages": deep}) == []
    assert blocks_of({"prompt": "\ud800" * 1000})
