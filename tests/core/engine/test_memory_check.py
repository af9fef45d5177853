"""Whether all processes of a model fit into one memory, before the first of them loads."""

from types import SimpleNamespace

import pytest

from plugserve.core.contracts.memory import HOST, MemoryItem, MemoryLedger, MemoryPlace
from plugserve.core.engine.memory_check import check_together
from plugserve.core.errors import ConfigError


def check(device="cpu", needed=4, budget=10):
    place = MemoryPlace(
        name=HOST, title="", total_bytes=10, other_bytes=0, budget_bytes=budget, items=(MemoryItem("all", needed),)
    )
    ledger = MemoryLedger(
        device=device, dtype="float32", places=(place,), kv_bytes_per_token=1, num_kv_tokens=1, max_model_len=1,
        asked_model_len=None, max_num_seqs=1, max_num_batched_tokens=1,
    )  # fmt: skip
    return SimpleNamespace(name="m", ledger=lambda: ledger)


def test_engines_that_fit_alone_but_not_together_are_refused():
    expected = "m does not fit in each of 3 processes: 3 times 4 B are 12 B, 10 B of host memory can be had"
    with pytest.raises(ConfigError, match=expected):
        check_together(check(), 3)


@pytest.mark.parametrize("one", [check(), check("cuda:0", needed=9), SimpleNamespace(name="m", ledger=lambda: None)])
def test_engines_that_fit_and_those_on_devices_pass(one):
    check_together(one, 2)
