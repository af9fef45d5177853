"""A prefix cache that fails is off from then on; no block is lost and no token is wrong."""

from __future__ import annotations

import random

import pytest

from plugserve.core.engine.kv.guarded_prefix_cache import GuardedPrefixCache
from plugserve.core.engine.plugin_counts import PluginCounts
from plugserve.core.plugin_system.plugin_guard import PluginGuard
from plugserve.plugins.prefix_cache.lru_cache import BlockHashCache
from plugserve.testing import EngineDriver, PlainScheduler, PrefixCacheConformance

CALLS = ("match", "insert", "retain", "release", "evict")  # core answers holds and num_evictable from its own books


class TestGuarded(PrefixCacheConformance):
    def make_prefix_cache(self):
        return GuardedPrefixCache(BlockHashCache(), "mine", PluginGuard())


class FailsAfter(BlockHashCache):
    """Raises in one of its calls, from a certain one on."""

    call = ""
    left = 5

    def __getattribute__(self, name):
        if name == object.__getattribute__(self, "call"):
            self.left -= 1
            if self.left < 0:
                raise KeyError("broken")
        return super().__getattribute__(name)


@pytest.mark.parametrize("left", [0, 1, 7])
@pytest.mark.parametrize("call", CALLS)
def test_requests_go_on_when_the_plugin_fails(call, left, caplog):
    inner = FailsAfter()
    inner.call, inner.left = call, left
    guard = PluginGuard()
    cache = GuardedPrefixCache(inner, "mine", guard)
    driver = EngineDriver(PlainScheduler(), prefix_cache=cache, num_blocks=10)
    guard.watch(PluginCounts(driver.engine.stats))
    cache.count_from_zero()
    draw = random.Random(left)
    beginning = [draw.randrange(1000) for _ in range(33)]
    for _ in range(25):
        driver.send(beginning[: draw.choice([16, 33])] + [draw.randrange(1000) for _ in range(20)], 10)
        for _ in range(4):
            driver.step()
    driver.run()
    driver.assert_exact()
    driver.assert_all_memory_is_back()
    assert cache.is_switched_off
    assert driver.engine.stats.plugin_quarantines == {f"mine {call}": 1}
    assert driver.engine.stats.plugin_errors == {f"mine {call}": 1}
    assert sum("is switched off until its engine starts again" in record.message for record in caplog.records) == 1


class Lies(BlockHashCache):
    """Answers one call wrongly, from the third time on."""

    def __init__(self, call, lie):
        super().__init__()
        self.call, self.lie, self.num_calls = call, lie, 0

    def _answer(self, call, right):
        self.num_calls += call == self.call
        return self.lie(right) if call == self.call and self.num_calls > 3 else right

    def match(self, hashes):
        return self._answer("match", super().match(hashes))

    def insert(self, hash, block):
        return self._answer("insert", super().insert(hash, block))

    def evict(self, num_blocks):
        return self._answer("evict", super().evict(num_blocks))


LIES = [
    ("match", lambda right: [*right, 10**9][-1:]),
    ("match", lambda right: [-1]),
    ("match", lambda right: [block + 1 for block in right] or [0]),
    ("match", lambda right: right[::-1] if len(right) > 1 else [*right, *right, 0]),
    ("match", lambda right: [right[0]] * 2 if right else ["0"]),
    ("match", lambda right: None),
    ("match", lambda right: tuple(right)),
    ("match", lambda right: [*right] * 400),
    ("insert", lambda right: "yes"),
    ("evict", lambda right: []),
    ("evict", lambda right: [*right, *right]),
    ("evict", lambda right: [10**9] * len(right)),
    ("evict", lambda right: [block + 1 for block in right]),
    ("evict", lambda right: None),
]


@pytest.mark.parametrize(("call", "lie"), LIES)
def test_lie_is_seen_and_named_and_harms_no_request(call, lie, caplog):
    guard = PluginGuard()
    cache = GuardedPrefixCache(Lies(call, lie), "mine", guard)
    driver = EngineDriver(PlainScheduler(), prefix_cache=cache, num_blocks=10)
    draw = random.Random(1)
    beginning = [draw.randrange(1000) for _ in range(49)]
    for _ in range(30):
        driver.send(beginning[: draw.choice([16, 33, 49])] + [draw.randrange(1000) for _ in range(20)], 10)
        for _ in range(4):
            driver.step()
    driver.run()
    driver.assert_exact()
    driver.assert_all_memory_is_back()
    assert cache.is_switched_off
    assert guard.errors == {("mine", call): 1}
    assert "plugin=mine" in caplog.text
    assert "PlainScheduler" not in caplog.text


def test_time_is_counted_by_call():
    guard = PluginGuard()
    cache = GuardedPrefixCache(BlockHashCache(), "mine", guard)
    driver = EngineDriver(PlainScheduler(), prefix_cache=cache)
    guard.watch(PluginCounts(driver.engine.stats))
    cache.count_from_zero()
    driver.send(list(range(40)), 10)
    driver.run()
    seconds = driver.engine.stats.plugin_seconds
    assert set(seconds) == {"PlainScheduler schedule", "runner step", "mine match", "mine insert", "mine evict"}
    assert seconds["mine match"] > 0
    assert seconds["mine insert"] > 0
