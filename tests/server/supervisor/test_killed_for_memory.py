"""An engine that the system kills for lack of memory: the reason names it, with the ledger."""

from __future__ import annotations

import pytest

from plugserve.server.supervisor.engine_keeper import killed_for_memory
from tests.server.fakes import FakeEngine
from tests.server.operations.test_memory import LEDGER


@pytest.mark.parametrize("memory", [None, LEDGER])
def test_reason_has_the_ledger_where_there_is_one(memory):
    reason = killed_for_memory(FakeEngine(script=lambda call: [], memory=memory).info)
    assert reason.startswith("killed by the system, whose memory ran out (SIGKILL)")
    assert ("weights 500 B + KV cache 300 B = 800 B of 900 B host memory" in reason) == (memory is not None)
    assert "plugserve doctor" in reason


def test_engine_that_was_never_up():
    assert killed_for_memory(None).startswith("killed by the system")
