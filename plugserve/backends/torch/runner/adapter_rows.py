"""The LoRA adapter of each device row, and the contents of the slots."""

from __future__ import annotations

from plugserve.backends.torch.models.lora_sites import ManagedLora
from plugserve.backends.torch.models.step_context import NO_LORA, LoraStep
from plugserve.core.contracts.lora import LoraManager
from plugserve.core.contracts.runner import StepInput
from plugserve.core.plugin_system.failure_policy import is_shutdown


class AdapterRows:
    """The runner's side of adapters. Used from the runner's thread. first_layer is the number in the model of layer 0
    here."""

    def __init__(self, manager: LoraManager, first_layer: int = 0) -> None:
        self._manager = manager
        self._first_layer = first_layer
        self._slots: dict[int, int] = {}  # by row
        self._broken: dict[int, str] = {}  # by slot: why its adapter can't be used
        self._plan_fault = ""  # why no adapter can be used in this step

    def apply(self, step: StepInput) -> None:
        """Carry out the step's deltas. An adapter that can't be loaded into its slot fails only its own rows."""
        for row in step.freed_rows:
            self._slots.pop(row, None)
        for new in step.new_rows:
            if new.adapter_slot >= 0:
                self._slots[new.row] = new.adapter_slot
        for slot, adapter in step.adapters:
            self._fill(slot, adapter)

    def _fill(self, slot: int, adapter: object) -> None:
        try:
            if adapter is None:
                self._manager.unload(slot)
            else:
                self._manager.load(slot, adapter)
            self._broken.pop(slot, None)
        except BaseException as error:
            if is_shutdown(error):
                raise
            self._broken[slot] = f"the LoRA adapter can't be put on the device: {type(error).__name__}"

    def plan(self, step: StepInput) -> LoraStep:
        """The adapters of this step's rows, for the forward pass. If planning fails, only rows with adapters do."""
        self._plan_fault = ""
        if not step.has_adapters:
            return NO_LORA
        slots = [self._slots.get(row, -1) for row in step.rows]
        if self._broken:
            slots = [-1 if slot in self._broken else slot for slot in slots]
        if max(slots) < 0:
            return NO_LORA
        try:
            return ManagedLora(self._manager, self._manager.plan(slots, step.num_tokens), self._first_layer)
        except BaseException as error:
            if is_shutdown(error):
                raise
            self._plan_fault = f"the LoRA manager failed: {type(error).__name__}"
            return NO_LORA

    def failures(self, step: StepInput) -> dict[int, str]:
        """Errors by entry, for entries whose adapter can't be used."""
        if not self._broken and not self._plan_fault:
            return {}
        slots = ((b, self._slots.get(row, -1)) for b, row in enumerate(step.rows))
        reasons = ((b, self._broken.get(slot, self._plan_fault)) for b, slot in slots if slot >= 0)
        return {b: reason for b, reason in reasons if reason}
