"""The conformance kit fails each LoRA manager that has a planted bug."""

from __future__ import annotations

import dataclasses
import json

import pytest

from plugserve.plugins.lora.gathered import GatheredLora
from plugserve.testing import LoraConformance
from tests.testing.kit_runner import catches


def scaled(weights, factor):
    parts = {
        key: tuple(dataclasses.replace(part, b=part.b * factor) for part in parts)
        for key, parts in weights.parts.items()
    }
    return dataclasses.replace(weights, parts=parts)


class ScaleForgotten(GatheredLora):
    def read(self, path):
        return scaled(super().read(path), 0.5)


class ScaleOfTheRanksSquareRoot(GatheredLora):
    def read(self, path):
        config = json.loads((path / "adapter_config.json").read_text())
        return scaled(super().read(path), config["r"] ** -0.5 if not config["use_rslora"] else 1.0)


class KeepsLoadedWeights(GatheredLora):
    """Keeps every adapter that was ever loaded."""

    def load(self, slot, adapter):
        self.__dict__.setdefault("history", []).append(scaled(adapter, 1.0))
        super().load(slot, adapter)


class UnloadDoesNothing(GatheredLora):
    def unload(self, slot):
        pass


class KeepsUnloadedWeights(GatheredLora):
    """Reports size_bytes 0 while it holds unloaded adapters."""

    size_bytes = 0

    def unload(self, slot):
        self.__dict__.setdefault("unloaded", []).append(self._slots[slot])
        super().unload(slot)


class CountsUnloadedBytes(GatheredLora):
    def load(self, slot, adapter):
        super().load(slot, adapter)
        self.total = getattr(self, "total", 0) + adapter.size_bytes

    @property
    def size_bytes(self):
        return getattr(self, "total", 0)


class MergesWithTheOldAdapter(GatheredLora):
    """Merges a new adapter into the slot's old one, module by module."""

    def load(self, slot, adapter):
        old = self._slots[slot]
        super().load(slot, dataclasses.replace(adapter, parts={**(old.parts if old else {}), **adapter.parts}))


class UnloadEmptiesAnotherSlot(GatheredLora):
    def unload(self, slot):
        self._slots[(slot + 1) % 3] = None


class RowsWithoutAdapterGetOne(GatheredLora):
    def plan(self, slots, num_tokens):
        return super().plan([max(slot, 0) if any(slot >= 0 for slot in slots) else slot for slot in slots], num_tokens)


class WrongRows(GatheredLora):
    def plan(self, slots, num_tokens):
        return super().plan(slots[::-1], num_tokens)


class WrongSlice(GatheredLora):
    """Swaps the output slices of keys and values."""

    def read(self, path):
        weights = super().read(path)
        swap = {32: 48, 48: 32}
        parts = {
            key: tuple(dataclasses.replace(part, start=swap.get(part.start, part.start)) for part in parts)
            if key[0] == "qkv"
            else parts
            for key, parts in weights.parts.items()
        }
        return dataclasses.replace(weights, parts=parts)


class ServesDora(GatheredLora):
    def read(self, path):
        file = path / "adapter_config.json"
        if file.is_file() and '"use_dora": true' in file.read_text():
            file.write_text(file.read_text().replace('"use_dora": true', '"use_dora": false'))
        return super().read(path)


class RaisesJsonErrors(GatheredLora):
    def read(self, path):
        json.loads((path / "adapter_config.json").read_text())
        return super().read(path)


LORA_BUGS = [
    (ScaleForgotten, "is off by"),
    (ScaleOfTheRanksSquareRoot, "is off by"),
    (KeepsLoadedWeights, "a slot leaks"),
    (CountsUnloadedBytes, "size_bytes"),
    (UnloadDoesNothing, "a slot leaks"),
    (KeepsUnloadedWeights, "a slot leaks"),
    (MergesWithTheOldAdapter, "is off by"),
    (UnloadEmptiesAnotherSlot, "Error"),
    (RowsWithoutAdapterGetOne, "without an adapter was changed"),
    (WrongRows, "Error"),
    (WrongSlice, "is off by"),
    (ServesDora, "DID NOT RAISE"),
    (RaisesJsonErrors, "Error"),
]


@pytest.mark.parametrize(("manager", "word"), LORA_BUGS, ids=lambda value: getattr(value, "__name__", ""))
def test_lora_bug_is_caught(manager, word, tmp_path):
    class Case(LoraConformance):
        def make_lora_manager(self, context):
            return manager(context.lora_spec)

    assert catches(Case, word, tmp_path=tmp_path)
