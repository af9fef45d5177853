"""The conformance kit: subclass a class, give it a factory, and pytest runs the cases of that contract.

    from plugserve.testing import SchedulerConformance

    class TestMine(SchedulerConformance):
        def make_scheduler(self):
            return MyScheduler()

Built-in plugins run the same classes. Modules are imported at the first use of a name, so that a fake needs
neither pytest nor torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plugserve.testing.attention_batches import PagedSequences as PagedSequences
    from plugserve.testing.attention_batches import attention_batch as attention_batch
    from plugserve.testing.attention_conformance import AttentionConformance as AttentionConformance
    from plugserve.testing.contexts import attention_context as attention_context
    from plugserve.testing.contexts import lora_context as lora_context
    from plugserve.testing.contexts import prefix_cache_context as prefix_cache_context
    from plugserve.testing.contexts import scheduler_context as scheduler_context
    from plugserve.testing.contexts import settings_view as settings_view
    from plugserve.testing.engine_driver import EngineDriver as EngineDriver
    from plugserve.testing.fake_runner import FakeRunner as FakeRunner
    from plugserve.testing.fake_runner import expected_tokens as expected_tokens
    from plugserve.testing.lora_conformance import LoraConformance as LoraConformance
    from plugserve.testing.lora_conformance import SavedAdapter as SavedAdapter
    from plugserve.testing.plain_scheduler import PlainScheduler as PlainScheduler
    from plugserve.testing.prefix_cache_conformance import PrefixCacheConformance as PrefixCacheConformance
    from plugserve.testing.proposer_conformance import FakeDraftRunner as FakeDraftRunner
    from plugserve.testing.proposer_conformance import ProposerConformance as ProposerConformance
    from plugserve.testing.reasoning_parser_conformance import ReasoningExample as ReasoningExample
    from plugserve.testing.reasoning_parser_conformance import (
        ReasoningParserConformance as ReasoningParserConformance,
    )
    from plugserve.testing.runner_conformance import RunnerConformance as RunnerConformance
    from plugserve.testing.runner_driver import RunnerDriver as RunnerDriver
    from plugserve.testing.scheduler_conformance import SchedulerConformance as SchedulerConformance
    from plugserve.testing.server_plugin_conformance import ServerPluginConformance as ServerPluginConformance
    from plugserve.testing.server_plugin_conformance import load_plugin as load_plugin
    from plugserve.testing.tool_parser_conformance import ToolExample as ToolExample
    from plugserve.testing.tool_parser_conformance import ToolParserConformance as ToolParserConformance

_MODULES = {
    "AttentionConformance": "attention_conformance",
    "EngineDriver": "engine_driver",
    "FakeDraftRunner": "proposer_conformance",
    "FakeRunner": "fake_runner",
    "LoraConformance": "lora_conformance",
    "PagedSequences": "attention_batches",
    "PlainScheduler": "plain_scheduler",
    "PrefixCacheConformance": "prefix_cache_conformance",
    "ProposerConformance": "proposer_conformance",
    "ReasoningExample": "reasoning_parser_conformance",
    "ReasoningParserConformance": "reasoning_parser_conformance",
    "RunnerConformance": "runner_conformance",
    "RunnerDriver": "runner_driver",
    "SavedAdapter": "lora_conformance",
    "SchedulerConformance": "scheduler_conformance",
    "ServerPluginConformance": "server_plugin_conformance",
    "ToolExample": "tool_parser_conformance",
    "ToolParserConformance": "tool_parser_conformance",
    "attention_batch": "attention_batches",
    "expected_tokens": "fake_runner",
    "load_plugin": "server_plugin_conformance",
    "attention_context": "contexts",
    "lora_context": "contexts",
    "prefix_cache_context": "contexts",
    "scheduler_context": "contexts",
    "settings_view": "contexts",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"plugserve.testing has no {name!r}; it has {', '.join(sorted(_MODULES))}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_MODULES)
