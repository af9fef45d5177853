"""Rows and their adapters' slots, and a manager that fails."""

from __future__ import annotations

import pytest

from plugserve.backends.torch.models.step_context import NO_LORA
from plugserve.backends.torch.runner.adapter_rows import AdapterRows
from plugserve.backends.torch.runner.switched_off import NoAdapterRows
from plugserve.core.contracts.runner import NewRow, StepInput
from plugserve.core.contracts.sampling import SamplingParams


class Manager:
    """Notes what it is asked; refuses adapters that are called "bad"."""

    graph_safe = False
    size_bytes = 0

    def __init__(self):
        self.slots = {}
        self.planned = []

    def load(self, slot, adapter):
        if adapter == "bad":
            raise MemoryError
        self.slots[slot] = adapter

    def unload(self, slot):
        self.slots[slot] = None

    def plan(self, slots, num_tokens):
        self.planned.append((list(slots), list(num_tokens)))
        return len(self.planned)

    def apply(self, site, layer, x, y, step):
        raise NotImplementedError


def step(rows, *, new=(), freed=(), adapters=(), has_adapters=True):
    params = SamplingParams(max_tokens=1, seed=0)
    return StepInput(
        step_id=1,
        new_rows=[NewRow(row, [1], 1, 0, [], params, (), adapter_slot=slot) for row, slot in new],
        freed_rows=list(freed),
        new_blocks=[],
        rows=list(rows),
        num_tokens=[2] * len(rows),
        samples=[True] * len(rows),
        adapters=list(adapters),
        has_adapters=has_adapters,
    )


@pytest.fixture
def rows():
    return AdapterRows(Manager())


def planned(rows, one):
    rows.apply(one)
    return rows.plan(one), rows._manager.planned[-1:] and rows._manager.planned[-1]


def test_rows_keep_their_slots_until_they_are_freed(rows):
    _, told = planned(rows, step([4, 7, 2], new=[(4, 1), (7, -1), (2, 0)], adapters=[(0, "a"), (1, "b")]))
    assert told == ([1, -1, 0], [2, 2, 2])
    _, told = planned(rows, step([7, 4]))
    assert told == ([-1, 1], [2, 2])
    _, told = planned(rows, step([4, 2], new=[(4, -1)], freed=[4], adapters=[(1, None)]))
    assert told == ([-1, 0], [2, 2])
    assert rows._manager.slots == {0: "a", 1: None}


def test_steps_without_adapters_cost_nothing(rows):
    assert planned(rows, step([1], new=[(1, -1)], has_adapters=False)) == (NO_LORA, [])
    none = NoAdapterRows()
    one = step([1], has_adapters=False)
    none.apply(one)
    assert none.plan(one) is NO_LORA


def test_a_manager_that_fails_to_load_fails_that_adapters_rows_alone(rows):
    one = step([1, 2], new=[(1, 0), (2, 1)], adapters=[(0, "bad"), (1, "good")])
    _, told = planned(rows, one)
    assert told == ([-1, 1], [2, 2])
    assert rows.failures(one) == {0: "the LoRA adapter can't be put on the device: MemoryError"}
    later = step([1, 2], adapters=[(0, "another")])
    assert planned(rows, later)[1] == ([0, 1], [2, 2])
    assert rows.failures(later) == {}


def test_a_manager_that_fails_to_plan_fails_the_rows_with_adapters_alone(rows, monkeypatch):
    one = step([1, 2, 3], new=[(1, 0), (2, -1), (3, 1)], adapters=[(0, "a"), (1, "b")])

    def broken(slots, num_tokens):
        raise SystemExit(3)

    with monkeypatch.context() as patched:
        patched.setattr(rows._manager, "plan", broken)
        rows.apply(one)
        assert rows.plan(one) is NO_LORA
        reason = "the LoRA manager failed: SystemExit"
        assert rows.failures(one) == {0: reason, 2: reason}
    assert planned(rows, step([1, 2, 3]))[1] == ([0, -1, 1], [2, 2, 2])
    assert rows.failures(one) == {}
