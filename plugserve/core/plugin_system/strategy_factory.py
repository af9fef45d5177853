"""Calls the factory of a strategy, and checks that its result has the methods of the slot's contract."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from plugserve.core.contracts.answers import ReasoningParser, ToolParser
from plugserve.core.contracts.attention import AttentionBackend
from plugserve.core.contracts.drafting import DraftProposer
from plugserve.core.contracts.encoding import EncoderRunner
from plugserve.core.contracts.executor import Executor
from plugserve.core.contracts.lora import LoraManager
from plugserve.core.contracts.prefix_cache import PrefixCache
from plugserve.core.contracts.runner import ModelRunner
from plugserve.core.contracts.scheduling import Scheduler
from plugserve.core.contracts.weights import WeightFormat
from plugserve.core.errors import PluginError, UserError, one_line
from plugserve.core.plugin_system.failure_policy import is_shutdown

CONTRACTS: Final[Mapping[str, Any]] = {
    "runner": ModelRunner,
    "encoder runner": EncoderRunner,
    "scheduler": Scheduler,
    "prefix cache": PrefixCache,
    "draft proposer": DraftProposer,
    "LoRA manager": LoraManager,
    "attention": AttentionBackend,
    "executor": Executor,
    "weight format": WeightFormat,
    "tool parser": ToolParser,
    "reasoning parser": ReasoningParser,
}
"""Contracts by slot, or by kind for strategies without a slot."""


def make_strategy(plugin: str, slot: str, name: str, make: Callable[[], Any]) -> Any:
    """The result of make, which has the methods of the slot's contract. A failure raises PluginError (a UserError keeps
    its type and text), which stops the start."""
    try:
        made = make()
    except UserError:
        raise
    except BaseException as error:
        if is_shutdown(error):
            raise
        raise PluginError(f"plugin {plugin!r}: its {slot} {name!r} can't be made: {one_line(error)}") from error
    contract = CONTRACTS[slot]
    if not isinstance(made, contract):
        parts = sorted({*vars(contract), *contract.__annotations__})
        missing = [part for part in parts if not part.startswith("_") and not hasattr(made, part)]
        raise PluginError(
            f"plugin {plugin!r}: its {slot} {name!r} is a {type(made).__name__} without {', '.join(missing)}; "
            f"the contract {contract.__name__} requires it"
        )
    return made
