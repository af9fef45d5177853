"""Failures of a LoRA manager are counted and logged under its plugin's name, and reach the caller."""

from __future__ import annotations

from pathlib import Path

import pytest

from plugserve.core.contracts.lora import LoraManager
from plugserve.core.engine.guarded_lora_manager import GuardedLoraManager
from plugserve.core.errors import AdapterError
from plugserve.core.plugin_system.plugin_guard import PluginGuard

CALLS = {
    "read": (Path("/adapters/a"),),
    "load": (0, "weights"),
    "unload": (0,),
    "plan": ([0], [1]),
    "apply": ("qkv", 0, None, None, None),
}


class Manager:
    """Answers each call with its name and arguments, or raises error."""

    graph_safe = True
    size_bytes = 7

    def __init__(self, error=None):
        self.error = error

    def __getattr__(self, name):
        def call(*arguments):
            if self.error is not None:
                raise self.error
            return name, arguments

        return call


@pytest.fixture
def guard():
    return PluginGuard()


def test_results_and_facts_are_the_managers(guard):
    manager = GuardedLoraManager(Manager(), "mine", guard)
    assert isinstance(manager, LoraManager)
    assert (manager.graph_safe, manager.size_bytes) == (True, 7)
    assert manager.read(Path("/a")) == ("read", (Path("/a"),))
    assert manager.plan([0], [1]) == ("plan", ([0], [1]))
    assert not guard.errors


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("error", [KeyError("x"), SystemExit(3)])
def test_failure_is_counted_under_the_plugin_logged_once_and_raised(guard, caplog, call, error):
    manager = GuardedLoraManager(Manager(error), "mine", guard)
    for _ in range(2):
        with pytest.raises(type(error)):
            getattr(manager, call)(*CALLS[call])
    assert guard.errors == {("mine", call): 2}
    assert len(caplog.records) == 1
    assert f"plugin=mine hook={call} raised" in caplog.text


def test_adapter_that_can_not_be_served_is_no_failure_of_the_plugin(guard):
    manager = GuardedLoraManager(Manager(AdapterError("DoRA is not supported")), "mine", guard)
    with pytest.raises(AdapterError):
        manager.read(Path("/a"))
    assert not guard.errors
