"""A plain entry is confirmed at once; whatever brings more than a token is left, and results are equal."""

from __future__ import annotations

from array import array
from typing import Any

import pytest
from msgspec.structs import replace

from plugserve.core.contracts.engine_facts import EngineStats
from plugserve.core.contracts.runner import StepResult
from plugserve.core.contracts.sampling import SamplingParams, TokenLogprobs
from plugserve.core.engine import engine as engine_module
from plugserve.core.engine.batch import Batch
from plugserve.core.engine.delivery import Delivery
from plugserve.core.engine.kv.kv_manager import KVManager
from plugserve.core.engine.plain_entries import advance_plain
from plugserve.core.engine.sequence import Sequence
from plugserve.plugins.schedulers.fcfs import make_fcfs
from plugserve.testing import EngineDriver, FakeRunner, scheduler_context

PARAMS = SamplingParams(max_tokens=10, seed=0)


def decoding(**changes: Any) -> Sequence:
    """A sequence of four tokens, one of them generated, whose fourth is in flight."""
    params = changes.pop("params", PARAMS)
    info = FakeRunner().info
    sequence = Sequence(
        1, (b"worker", 7), params, array("i", [3, 4, 5, 6]), 3, 0.0, frozenset({9}), KVManager(info, EngineStats()), 16
    )
    sequence.num_computed, sequence.num_in_flight, sequence.num_sampling = 3, 1, 1
    sequence.is_running, sequence.num_delivered = True, 1
    for name, value in changes.items():
        setattr(sequence, name, value)
    return sequence


def step_of(sequence: Sequence, token: int = 8, **result: Any) -> tuple[Batch, StepResult]:
    return Batch(1, [sequence], [1], [True]), StepResult(1, [[token]], **result)


def test_a_plain_entry_is_confirmed_and_delivered() -> None:
    sequence, delivery = decoding(), Delivery()
    assert list(advance_plain(*step_of(sequence), delivery)) == []
    assert list(sequence.tokens) == [3, 4, 5, 6, 8]
    assert (sequence.num_computed, sequence.num_in_flight, sequence.num_sampling) == (4, 0, 0)
    ((worker, message),) = delivery.take()
    assert worker == b"worker"
    assert (message.ids, message.num_tokens, message.finish, array("i", message.tokens)[0]) == ([7], [1], [0], 8)


@pytest.mark.parametrize(
    "sequence",
    [
        decoding(num_delivered=0),
        decoding(is_finished=True),
        decoding(constraint=object()),
        decoding(params=replace(PARAMS, num_prompt_logprobs=1)),
        decoding(params=replace(PARAMS, pooling="mean")),
        decoding(params=replace(PARAMS, max_tokens=2)),
    ],
    ids=["first token", "ended", "constrained", "prompt logprobs", "pooling", "last token"],
)
def test_other_entries_are_left_untouched(sequence: Sequence) -> None:
    delivery = Delivery()
    assert list(advance_plain(*step_of(sequence), delivery)) == [0]
    assert list(sequence.tokens) == [3, 4, 5, 6]
    assert sequence.num_in_flight == 1
    assert delivery.take() == []


@pytest.mark.parametrize(
    ("token", "result"),
    [(9, {}), (8, {"failed": {0: "no"}}), (8, {"logprobs": {0: [TokenLogprobs(8, -1.0, 1, [], [])]}})],
    ids=["stop token", "failed", "logprobs"],
)
def test_results_with_more_than_a_token_are_left(token: int, result: dict[str, Any]) -> None:
    sequence = decoding()
    assert list(advance_plain(*step_of(sequence, token, **result), Delivery())) == [0]
    assert list(sequence.tokens) == [3, 4, 5, 6]


def test_a_plain_entry_leaves_what_is_pending_as_settling_would(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole engine, with and without the short way: the same steps and tokens."""

    def run() -> tuple[list[list[int]], list[int], int]:
        driver = EngineDriver(make_fcfs(scheduler_context()), num_blocks=12, max_num_tokens=24, max_num_seqs=5)
        for number in range(9):
            driver.send([number + 1] * (5 + 7 * number % 23), 11 + number)
        driver.run()
        return [one.tokens for one in driver.requests], driver.runner.num_launched_tokens, driver.num_steps

    short = run()
    monkeypatch.setattr(engine_module, "advance_plain", lambda batch, result, delivery: range(len(batch.sequences)))
    assert run() == short
