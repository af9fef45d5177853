"""A model with several engines: which one gets a request, and what becomes of one that dies."""

import asyncio
from dataclasses import dataclass, field

import pytest
from msgspec.structs import replace

from plugserve.core.contracts.engine_facts import EngineStats
from plugserve.core.errors import EngineUnavailableError
from plugserve.core.wire.load_board import LoadBoard
from plugserve.server.balance.engine_choice import EngineChoice
from plugserve.server.worker.added_stats import added_stats
from plugserve.server.worker.replicated_client import ReplicatedClient
from tests.server.fakes import FakeEngine

INFO = replace(FakeEngine(None).info, block_size=16)


@dataclass
class Engine:
    """Records what it is told."""

    number: int
    address: str = ""
    asked: list = field(default_factory=list)
    stats_now: EngineStats = field(default_factory=EngineStats)

    def connect(self, addresses, info, num_restarts=0):
        (self.address,) = addresses

    def disconnect(self, state, reason):
        self.address = ""

    def generate(self, prompt, params, **options):
        self.asked.append(tuple(prompt))
        return self.number

    def last_stats(self):
        return self.stats_now

    async def stats(self):
        return self.stats_now


@pytest.fixture
def engines():
    return [Engine(0), Engine(1)]


@pytest.fixture
def client(engines):
    client = ReplicatedClient("m", engines, lambda place: len(engines[place].asked))
    client.connect(["ipc://a", "ipc://b"], INFO)
    return client


def hashes(*numbers):
    return b"".join(number.to_bytes(8, "little") + bytes(8) for number in numbers)


def ask(client, *blocks):
    return client.generate([1, 2], None, block_hashes=hashes(*blocks), waker=asyncio.Event())


def test_requests_go_to_the_least_busy_engine_in_turn(client, engines):
    assert [ask(client) for _ in range(4)] == [0, 1, 0, 1]
    engines[1].asked.clear()
    assert [ask(client) for _ in range(2)] == [1, 1]


def test_a_long_beginning_brings_a_request_to_the_engine_that_has_it(client, engines):
    conversation = tuple(range(100, 164))  # 1024 tokens: worth 4 sequences
    assert ask(client, *conversation) == 0
    assert [ask(client, *conversation, number) for number in range(4)] == [0, 0, 0, 0]
    assert ask(client, *conversation, 9) == 1  # engine 0 has 5 more than engine 1
    assert ask(client, 7) == 1


def test_a_short_common_beginning_does_not_keep_requests_together(client):
    assert [ask(client, 1, number) for number in (10, 20, 30, 40)] == [0, 1, 0, 1]


def test_with_equal_load_even_a_short_beginning_counts():
    choice = EngineChoice(16)
    assert choice.choose({0: 0, 1: 0}, [1, 2]) == 0
    assert choice.choose({0: 0, 1: 0}, [5, 6]) == 1
    assert [choice.choose({0: 0, 1: 0}, [1, 2, number]) for number in (3, 4)] == [0, 0]


def test_an_engine_that_is_down_gets_nothing_and_has_forgotten_what_it_knew(client, engines):
    conversation = tuple(range(64))
    assert ask(client, *conversation) == 0
    client.connect(["", "ipc://b"], INFO)
    assert (client.state, client.num_down, engines[0].address) == ("up", 1, "")
    assert [ask(client, *conversation) for _ in range(3)] == [1, 1, 1]
    client.connect(["ipc://c", "ipc://b"], INFO, 1)
    assert (client.num_down, client.num_restarts, engines[0].address) == (0, 1, "ipc://c")
    engines[0].asked.clear()
    assert ask(client, *conversation) == 1  # which has it now
    assert ask(client, 77) == 0


def test_without_engines_requests_fail(client):
    client.disconnect("dead", "killed")
    with pytest.raises(EngineUnavailableError, match="being restarted"):
        ask(client)
    assert (client.state, client.reason, client.num_down) == ("dead", "killed", 0)


async def test_counts_are_those_of_the_engines_that_are_up(client, engines):
    engines[0].stats_now = EngineStats(num_blocks=3, plugin_seconds={"a": 1.0}, num_accepted_per_position=[1])
    engines[1].stats_now = EngineStats(
        num_blocks=4, plugin_seconds={"a": 2.0, "b": 5.0}, num_accepted_per_position=[1, 2]
    )
    total = await client.stats()
    assert (total.num_blocks, total.plugin_seconds) == (7, {"a": 3.0, "b": 5.0})
    assert total.num_accepted_per_position == [2, 2]
    client.connect(["ipc://a", ""], INFO)
    assert client.last_stats() == engines[0].stats_now


def test_sums_of_one_engine_are_its_counts():
    stats = EngineStats(num_blocks=3, plugin_calls={"a": 1})
    assert added_stats([stats]) == stats


def test_a_worker_sees_the_load_of_all_workers(tmp_path):
    LoadBoard.create(tmp_path / "loads", num_engines=2, num_workers=3)
    first, second = (LoadBoard(tmp_path / "loads", 3) for _ in range(2))
    first.note(1, 0, 4)
    second.note(1, 2, 5)
    assert [second.load(engine) for engine in (0, 1)] == [0, 9]
    first.forget_worker(2)
    assert second.load(1) == 4
