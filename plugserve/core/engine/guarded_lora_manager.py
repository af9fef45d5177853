"""Wraps a LoRA manager plugin: counts its failures by call and names the plugin in the log. Torch-free.

A failure is re-raised: the caller fails the requests that it affects. AdapterError (or another UserError) of read is no
failure, but an adapter that can't be served.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from plugserve.core.contracts.lora import LoraManager
from plugserve.core.errors import UserError
from plugserve.core.plugin_system.failure_policy import STRATEGY_POLICIES
from plugserve.core.plugin_system.plugin_guard import PluginGuard

if TYPE_CHECKING:
    import torch

_POLICY: Final = STRATEGY_POLICIES["LoRA manager"]
Result = TypeVar("Result")


class GuardedLoraManager:
    """LoraManager around another, of plugin. Called from the threads that the contract names."""

    def __init__(self, inner: LoraManager, plugin: str, guard: PluginGuard) -> None:
        self.graph_safe = inner.graph_safe
        self._inner = inner
        self._plugin = plugin
        self._guard = guard

    def read(self, path: Path) -> Any:
        return self._call("read", lambda: self._inner.read(path))

    def load(self, slot: int, adapter: Any) -> None:
        self._call("load", lambda: self._inner.load(slot, adapter))

    def unload(self, slot: int) -> None:
        self._call("unload", lambda: self._inner.unload(slot))

    def plan(self, slots: Sequence[int], num_tokens: Sequence[int]) -> Any:
        return self._call("plan", lambda: self._inner.plan(slots, num_tokens))

    def apply(self, site: str, layer: int, x: torch.Tensor, y: torch.Tensor, step: Any) -> None:
        try:
            self._inner.apply(site, layer, x, y, step)
        except BaseException as error:
            self._guard.note_failure(self._plugin, "apply", error, _POLICY)
            raise

    @property
    def size_bytes(self) -> int:
        return self._inner.size_bytes

    def _call(self, call: str, work: Callable[[], Result]) -> Result:
        try:
            return work()
        except UserError:
            raise
        except BaseException as error:
            self._guard.note_failure(self._plugin, call, error, _POLICY)
            raise
