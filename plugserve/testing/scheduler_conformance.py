"""Pytest cases for schedulers: subclass SchedulerConformance and override make_scheduler.

The scheduler runs in the real engine on a fake runner, which gives wrong tokens if a block is shared, freed or written
wrongly. Its calls and views are watched, so breaches whose exception the plugin catches are reported too.
"""

from __future__ import annotations

import gc
import random
from dataclasses import dataclass

import pytest

from plugserve.core.contracts.prefix_cache import PrefixCache
from plugserve.core.contracts.scheduling import Scheduler
from plugserve.testing.engine_driver import EngineDriver
from plugserve.testing.reference_prefix_cache import ReferencePrefixCache
from plugserve.testing.watched_scheduler import WatchedScheduler


@dataclass(frozen=True, slots=True)
class _StarvationCase:
    """A request that a scheduler may delay, and the crowd: other requests that keep arriving meanwhile."""

    prompt_len: int = 20
    max_tokens: int = 6
    priority: int = 0
    user: str = "crowd"
    crowd_prompt_len: int = 8
    crowd_users: tuple[str, ...] = ("crowd",)
    num_blocks: int = 64


STARVATION_CASES = {
    "an ordinary request": _StarvationCase(),
    "a long prompt": _StarvationCase(prompt_len=200),
    "a long answer": _StarvationCase(max_tokens=60),
    "a low priority": _StarvationCase(priority=5),
    "one that needs most of the memory": _StarvationCase(
        prompt_len=200, max_tokens=30, crowd_prompt_len=40, num_blocks=18
    ),
    "one user among many": _StarvationCase(user="alone", crowd_users=tuple(f"user {n}" for n in range(12))),
    "a user beside a flood": _StarvationCase(user="alone", crowd_users=("flood",)),
    "an unknown user": _StarvationCase(user="", crowd_users=("known",)),
}


class SchedulerConformance:
    """Subclass it, name the subclass Test..., and override make_scheduler.

    starvation_limit_s is the longest time, on the engine's clock, of a request while others keep arriving.
    """

    starvation_limit_s: float = 300.0

    def make_scheduler(self) -> Scheduler:
        """Returns a new scheduler, as the plugin's factory does."""
        raise NotImplementedError("override make_scheduler: return a new scheduler")

    # ------------------------------------------------ tokens

    def test_it_is_a_scheduler(self) -> None:
        scheduler = self.make_scheduler()
        assert isinstance(scheduler, Scheduler), f"{type(scheduler).__name__} lacks add, remove or schedule"

    @pytest.mark.parametrize("max_num_tokens", [1, 3, 16, 64, 500])
    @pytest.mark.parametrize("max_num_seqs", [1, 3, 8])
    def test_requests_get_their_tokens(self, max_num_tokens: int, max_num_seqs: int) -> None:
        driver, watched = self._drive(max_num_tokens=max_num_tokens, max_num_seqs=max_num_seqs, num_blocks=200)
        for prompt in _prompts(10, longest=70):
            driver.send(prompt, 12)
        _run(driver, watched)

    @pytest.mark.parametrize("num_blocks", [8, 11, 14, 20])
    @pytest.mark.parametrize("num_host_slots", [0, 9, 200])
    def test_requests_get_their_tokens_when_memory_is_short(self, num_blocks: int, num_host_slots: int) -> None:
        """With host memory, preempted sequences continue where they were, and have few tokens left to schedule."""
        driver, watched = self._drive(num_blocks=num_blocks, num_host_slots=num_host_slots, max_num_tokens=32)
        for prompt in _prompts(14, longest=60, seed=num_blocks):
            driver.send(prompt, 60)
        _run(driver, watched)

    @pytest.mark.parametrize("seed", range(6))
    def test_requests_may_arrive_and_abort_at_any_step(self, seed: int) -> None:
        draw = random.Random(seed)
        driver, watched = self._drive(
            num_blocks=draw.choice([9, 16, 40]), max_num_tokens=draw.choice([7, 32]), max_num_seqs=draw.choice([2, 6])
        )
        for prompt in _prompts(40, longest=50, seed=seed):
            number = driver.send(
                prompt, draw.randint(1, 40), priority=draw.randint(-2, 3), user=draw.choice(["", "ada", "bob"])
            )
            if draw.random() < 0.1:
                driver.abort(number)  # before its first step
            for _ in range(draw.choice([0, 0, 1, 3, 10])):
                driver.step()
            live = [n for n, request in enumerate(driver.requests) if not request.is_done]
            if live and draw.random() < 0.3:
                driver.abort(draw.choice(live))
        _run(driver, watched)

    def test_aborted_requests_are_removed_in_any_state(self) -> None:
        driver, watched = self._drive(num_blocks=8, max_num_tokens=16, max_num_seqs=4)
        for prompt in _prompts(12, longest=40, seed=3):
            driver.send(prompt, 60)
        for step in range(60):
            driver.step()
            live = [n for n, request in enumerate(driver.requests) if not request.is_done]
            if step % 5 == 4 and live:
                driver.abort(live[0] if step % 2 else live[-1])
        _run(driver, watched)

    def test_budget_may_change_with_every_step(self) -> None:
        driver, watched = self._drive(num_blocks=30, shrinks_budget=True)
        for prompt in _prompts(12, longest=90, seed=4):
            driver.send(prompt, 20)
        _run(driver, watched)

    def test_cached_prefixes_are_not_recomputed(self) -> None:
        driver, watched = self._drive(num_blocks=24, prefix_cache=ReferencePrefixCache())
        shared = _prompts(1, longest=1, seed=5)[0] * 64
        for tail in _prompts(12, longest=20, seed=6):
            driver.send(shared + tail, 10)
            driver.step()
        _run(driver, watched)
        assert driver.engine.stats.num_prefix_hit_tokens > 0, "no request reused a cached prefix"

    # ------------------------------------------------ fairness, memory

    @pytest.mark.parametrize("name", STARVATION_CASES)
    def test_no_request_starves(self, name: str) -> None:
        """An old request is served while short requests keep arriving faster than they can be served."""
        case, step_s = STARVATION_CASES[name], 0.25
        driver, watched = self._drive(
            num_blocks=case.num_blocks, max_num_tokens=32, max_num_seqs=4, step_s=step_s
        )  # fmt: skip
        draw = random.Random(1)

        def top_up(count: int) -> None:
            while sum(not request.is_done for request in driver.requests) < count:
                driver.send(
                    [draw.randrange(1000) for _ in range(case.crowd_prompt_len)],
                    6,
                    user=draw.choice(case.crowd_users),
                )

        top_up(10)
        for _ in range(4):
            driver.step()
        number = driver.send([draw.randrange(1000) for _ in range(case.prompt_len)], case.max_tokens,
                             priority=case.priority, user=case.user)  # fmt: skip
        for _ in range(round(self.starvation_limit_s / step_s)):
            top_up(12)
            driver.step()
            if driver.requests[number].is_done:
                break
        request = driver.requests[number]
        assert request.is_done, (
            f"starvation: {name} got {len(request.tokens)} of {request.max_tokens} tokens in "
            f"{self.starvation_limit_s:g} s while {len(driver.requests)} younger requests arrived"
        )
        _assert_no_breach(driver, watched)

    def test_running_requests_are_not_delayed_by_new_prompts(self) -> None:
        """A decoding request is finished while long prompts keep arriving."""
        driver, watched = self._drive(num_blocks=120, max_num_tokens=32, max_num_seqs=6, step_s=0.25)
        draw = random.Random(2)
        first = driver.send([1, 2, 3], 40)
        for _ in range(round(self.starvation_limit_s / 0.25)):
            while sum(not request.is_done for request in driver.requests) < 8:
                driver.send([draw.randrange(1000) for _ in range(150)], 4)
            driver.step()
            if driver.requests[first].is_done:
                break
        assert driver.requests[first].is_done, "starvation: new prompts stop a decoding request"
        _assert_no_breach(driver, watched)

    def test_removed_views_are_released(self) -> None:
        driver, watched = self._drive(num_blocks=12, max_num_tokens=32)
        numbers = [driver.send(prompt, 20) for prompt in _prompts(12, longest=40, seed=7)]
        driver.step()
        driver.abort(numbers[0])
        driver.abort(numbers[-1])
        _run(driver, watched)
        gc.collect()
        kept = sum(view() is not None for view in watched.views)
        assert not kept, f"the scheduler still holds {kept} of {len(watched.views)} views after all were removed"

    # ------------------------------------------------ helpers

    def _drive(
        self,
        *,
        shrinks_budget: bool = False,
        prefix_cache: PrefixCache | None = None,
        max_num_tokens: int = 64,
        max_num_seqs: int = 8,
        num_blocks: int = 64,
        num_host_slots: int = 0,
        step_s: float = 0.01,
    ) -> tuple[EngineDriver, WatchedScheduler]:
        watched = WatchedScheduler(self.make_scheduler(), shrinks_budget=shrinks_budget)
        driver = EngineDriver(
            watched,
            prefix_cache=prefix_cache,
            max_num_tokens=max_num_tokens,
            max_num_seqs=max_num_seqs,
            num_blocks=num_blocks,
            num_host_slots=num_host_slots,
            step_s=step_s,
        )
        return driver, watched


def _prompts(count: int, *, longest: int, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(1000) for _ in range(draw.randint(1, longest))] for _ in range(count)]


def _run(driver: EngineDriver, watched: WatchedScheduler) -> None:
    """Run all requests to their end, then check tokens, memory and breaches."""
    try:
        driver.run()
    except AssertionError:
        _assert_no_breach(driver, watched)
        raise
    _assert_no_breach(driver, watched)
    driver.assert_exact()
    driver.assert_all_memory_is_back()


def _assert_no_breach(driver: EngineDriver, watched: WatchedScheduler) -> None:
    breaches = "; ".join(dict.fromkeys(watched.breaches[:3]))
    assert not watched.breaches, f"the scheduler broke its contract {len(watched.breaches)} times: {breaches}"
    errors = [request.error for request in driver.requests if request.error]
    assert not errors, f"{len(errors)} requests failed: {errors[0]}"
    assert not driver.engine.stats.num_plan_errors, "the scheduler raised (see the log)"
