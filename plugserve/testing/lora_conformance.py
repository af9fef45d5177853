"""Pytest cases for LoRA managers: subclass LoraConformance and override make_lora_manager.

The cases write adapters in PEFT's format and compare a manager's update with B A x in float64.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from plugserve.core.contracts.factories import LoraContext
from plugserve.core.contracts.lora import LoraManager, LoraSite, LoraSlice, LoraSpec
from plugserve.core.errors import AdapterError
from plugserve.testing.contexts import lora_context

if TYPE_CHECKING:
    import torch

SITES = (
    LoraSite(
        "qkv",
        32,
        (
            LoraSlice("self_attn.q_proj", 0, 32),
            LoraSlice("self_attn.k_proj", 32, 16),
            LoraSlice("self_attn.v_proj", 48, 16),
        ),
        "self_attn.qkv_proj",
    ),
    LoraSite("o", 32, (LoraSlice("self_attn.o_proj", 0, 32),)),
    LoraSite("gate_up", 32, (LoraSlice("mlp.gate_proj", 0, 40), LoraSlice("mlp.up_proj", 40, 40)), "mlp.gate_up_proj"),
    LoraSite("down", 40, (LoraSlice("mlp.down_proj", 0, 32),)),
)
MODULES = {part.module: (site, part) for site in SITES for part in site.slices}
INVALID = (
    *("no folder", "no config", "config that is no JSON", "no weights", "weights cut short", "rank too large"),
    *("DoRA", "modules_to_save", "bias", "wrong shapes", "unknown module", "B without A"),
)
NUM_LAYERS = 2
MAX_RANK = 8


class SavedAdapter:
    """An adapter in a folder, and its expected update. Its scaling is alpha / rank (alpha / sqrt(rank) with rslora)."""

    def __init__(
        self,
        folder: Path,
        *,
        seed: int,
        rank: int = 8,
        alpha: float = 16.0,
        modules: Sequence[str] = tuple(MODULES),
        layers: Sequence[int] = tuple(range(NUM_LAYERS)),
        uses_rslora: bool = False,
    ) -> None:
        import torch
        from safetensors.torch import save_file

        self.folder = folder
        self._scaling = alpha / (rank**0.5 if uses_rslora else rank)
        generator = torch.Generator().manual_seed(seed)
        self._pairs: dict[tuple[int, str], tuple[torch.Tensor, torch.Tensor]] = {}
        tensors: dict[str, torch.Tensor] = {}
        for layer in layers:
            for module in modules:
                site, part = MODULES[module]
                a = torch.randn(rank, site.input_size, generator=generator)
                b = torch.randn(part.size, rank, generator=generator)
                self._pairs[layer, module] = a, b
                name = f"base_model.model.model.layers.{layer}.{module}"
                tensors |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
        folder.mkdir(parents=True)
        save_file(tensors, folder / "adapter_model.safetensors")
        self.write_config(r=rank, lora_alpha=alpha, use_rslora=uses_rslora, target_modules=sorted(
            {module.rpartition(".")[2] for module in modules}))  # fmt: skip

    def write_config(self, **fields: Any) -> None:
        config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "lora_dropout": 0.0} | fields
        (self.folder / "adapter_config.json").write_text(json.dumps(config))

    def expected(self, site: str, layer: int, x: torch.Tensor) -> torch.Tensor:
        """Its update of the site's output, [T, output_size] in float64."""
        import torch

        (found,) = (one for one in SITES if one.name == site)
        y = torch.zeros(len(x), found.output_size, dtype=torch.float64)
        for part in found.slices:
            pair = self._pairs.get((layer, part.module))
            if pair is not None:
                a, b = pair
                y[:, part.start : part.start + part.size] = self._scaling * (x.double() @ a.double().T @ b.double().T)
        return y


class LoraConformance:
    """Subclass it, name the subclass Test..., and override make_lora_manager. tolerance is relative to the largest
    value of an update."""

    device: str = "cpu"
    dtype: str = "float32"
    tolerance: float = 1e-5

    def make_lora_manager(self, context: LoraContext) -> LoraManager:
        """Returns a new manager for context.lora_spec, as the plugin's factory does."""
        raise NotImplementedError("override make_lora_manager: return a new LoRA manager")

    # ------------------------------------------------ updates

    def test_it_is_a_lora_manager(self) -> None:
        manager = self._manager()
        assert isinstance(manager, LoraManager), f"{type(manager).__name__} lacks a part of LoraManager"
        assert isinstance(manager.graph_safe, bool)
        assert isinstance(manager.size_bytes, int)

    def test_each_row_gets_its_own_adapter(self, tmp_path: Path) -> None:
        manager, adapters = self._manager(), self._three(tmp_path)
        for slot, adapter in enumerate(adapters):
            manager.load(slot, manager.read(adapter.folder))
        for slots, counts in (
            ([0, 1, 2], [3, 1, 4]),
            ([2, -1, 0, -1, 2], [1, 5, 2, 1, 1]),
            ([1], [7]),
            ([-1, 1], [4, 1]),
            ([0, 0, 1, 1, 2, 2, -1, -1], [1] * 8),
        ):
            self._check(manager, {-1: None, **dict(enumerate(adapters))}, slots, counts)

    def test_scaling_is_that_of_the_adapter(self, tmp_path: Path) -> None:
        cases: list[dict[str, Any]] = [
            {"rank": 8, "alpha": 8.0},
            {"rank": 8, "alpha": 1.0},
            {"rank": 2, "alpha": 64.0},
            {"rank": 4, "alpha": 6.0, "uses_rslora": True},
        ]
        for n, case in enumerate(cases):
            manager, adapter = self._manager(), SavedAdapter(tmp_path / str(n), seed=n, **case)
            manager.load(0, manager.read(adapter.folder))
            self._check(manager, {0: adapter}, [0], [5])

    def test_plans_are_independent(self, tmp_path: Path) -> None:
        manager, adapters = self._manager(), self._three(tmp_path)
        for slot, adapter in enumerate(adapters):
            manager.load(slot, manager.read(adapter.folder))
        held = dict(enumerate(adapters))
        self._check(manager, held, [0, 1], [2, 3])
        self._check(manager, held, [1, 0], [3, 2])
        self._check(manager, held, [2], [1])

    # ------------------------------------------------ slots

    def test_loading_replaces_the_whole_adapter_of_a_slot(self, tmp_path: Path) -> None:
        """The old adapter's extra ranks, modules and layers are gone."""
        manager = self._manager()
        large = SavedAdapter(tmp_path / "large", seed=1, rank=8)
        small = SavedAdapter(
            tmp_path / "small", seed=2, rank=1, modules=("self_attn.v_proj", "mlp.down_proj"), layers=(1,)
        )
        for is_unloaded in (False, True):
            manager.load(1, manager.read(large.folder))
            self._check(manager, {1: large}, [1], [4])
            if is_unloaded:
                manager.unload(1)
            manager.load(1, manager.read(small.folder))
            self._check(manager, {1: small}, [1], [4])

    def test_weights_can_be_loaded_into_several_slots(self, tmp_path: Path) -> None:
        manager, adapter = self._manager(), SavedAdapter(tmp_path / "a", seed=3)
        weights = manager.read(adapter.folder)
        for slot in (0, 2, 0):
            manager.load(slot, weights)
        manager.unload(0)
        manager.load(1, weights)
        self._check(manager, {1: adapter, 2: adapter}, [1, 2], [2, 2])

    def test_other_slots_are_unchanged(self, tmp_path: Path) -> None:
        manager, (one, two, three) = self._manager(), self._three(tmp_path)
        manager.load(0, manager.read(one.folder))
        manager.load(1, manager.read(two.folder))
        manager.unload(0)
        self._check(manager, {1: two, -1: None}, [1, -1], [3, 2])
        manager.load(0, manager.read(three.folder))
        self._check(manager, {0: three, 1: two}, [1, 0], [3, 2])

    def test_reused_slots_leak_no_memory(self, tmp_path: Path) -> None:
        manager, adapters = self._manager(), self._three(tmp_path)
        empty_bytes = manager.size_bytes
        weights = [manager.read(adapter.folder) for adapter in adapters]
        sizes, alive = [], []
        for turn in range(8):
            for slot in range(3):
                manager.load(slot, weights[(slot + turn) % 3])
            self._check(manager, {slot: adapters[(slot + turn) % 3] for slot in range(3)}, [0, 2], [1, 1])
            for slot in range(3):
                manager.unload(slot)
            sizes.append(manager.size_bytes)
            if turn in (2, 7):
                alive.append(_num_tensors())
        assert max(sizes) <= empty_bytes, (
            f"a slot leaks: size_bytes with all slots empty is {sizes}, at first {empty_bytes}"
        )
        assert alive[1] - alive[0] < 5, (
            f"a slot leaks: {alive[1] - alive[0]} more tensors are alive after 5 more rounds"
        )

    def test_an_unloaded_slot_releases_its_weights(self, tmp_path: Path) -> None:
        manager, adapters = self._manager(), self._three(tmp_path)
        for _ in range(2):  # the first time may allocate lasting buffers
            before = _num_tensors()
            for slot, adapter in enumerate(adapters):
                manager.load(slot, manager.read(adapter.folder))
            for slot in range(3):
                manager.unload(slot)
        kept = _num_tensors() - before
        assert kept <= 0, f"a slot leaks: {kept} tensors of unloaded adapters are still alive"

    # ------------------------------------------------ invalid adapters

    @pytest.mark.parametrize("name", INVALID)
    def test_bad_adapter_is_refused_with_its_cause(self, name: str, tmp_path: Path) -> None:
        manager = self._manager()
        good = SavedAdapter(tmp_path / "good", seed=5)
        folder = _make_invalid(name, SavedAdapter(tmp_path / "bad", seed=4))
        with pytest.raises(AdapterError) as caught:
            manager.read(folder)
        assert str(caught.value).strip(), "the error must name the cause"
        assert "\n" not in str(caught.value), f"the error must be one line, got {str(caught.value)!r}"
        manager.load(0, manager.read(good.folder))
        self._check(manager, {0: good}, [0], [2])

    # ------------------------------------------------ helpers

    def _manager(self) -> LoraManager:
        spec = LoraSpec(NUM_LAYERS, SITES, self.dtype, self.device, max_loras=3, max_rank=MAX_RANK)
        return self.make_lora_manager(lora_context(spec))

    @staticmethod
    def _three(folder: Path) -> list[SavedAdapter]:
        """Three adapters with different ranks, scalings and targets."""
        return [
            SavedAdapter(folder / "all", seed=11),
            SavedAdapter(folder / "some", seed=12, rank=3, alpha=3.0, modules=("self_attn.q_proj", "self_attn.v_proj")),
            SavedAdapter(
                folder / "one", seed=13, rank=1, alpha=5.0, modules=("mlp.up_proj", "mlp.down_proj"), layers=(1,)
            ),
        ]

    def _check(
        self, manager: LoraManager, held: Mapping[int, SavedAdapter | None], slots: list[int], counts: list[int]
    ) -> None:
        """One step: every site and layer adds each row's expected update, and leaves rows without an adapter as is."""
        import torch

        with torch.inference_mode():
            step = manager.plan(slots, counts)
        generator = torch.Generator().manual_seed(sum(counts))
        dtype = getattr(torch, self.dtype)
        for site in SITES:
            for layer in range(NUM_LAYERS):
                x = torch.randn(sum(counts), site.input_size, generator=generator).to(dtype)
                y = torch.randn(sum(counts), site.output_size, generator=generator).to(dtype)
                out = y.to(self.device).clone()
                with torch.inference_mode():
                    manager.apply(site.name, layer, x.to(self.device), out, step)
                start = 0
                for slot, count in zip(slots, counts, strict=True):
                    rows = slice(start, start + count)
                    where = f"site {site.name}, layer {layer}, slot {slot} of the step {slots} with {counts} tokens"
                    self._compare(held.get(slot), site.name, layer, x[rows], y[rows], out[rows].cpu(), where)
                    start += count

    def _compare(
        self,
        adapter: SavedAdapter | None,
        site: str,
        layer: int,
        x: torch.Tensor,
        before: torch.Tensor,
        after: torch.Tensor,
        where: str,
    ) -> None:
        if adapter is None:
            assert bool((before == after).all()), f"a row without an adapter was changed ({where})"
            return
        expected = adapter.expected(site, layer, x)
        error = float((after.double() - before.double() - expected).abs().max())
        most = self.tolerance * (float(expected.abs().max()) + float(before.abs().max()))
        assert error <= most, f"the update is off by {error:.2g} ({where})"


def _num_tensors() -> int:
    import torch

    gc.collect()
    return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())


def _make_invalid(name: str, adapter: SavedAdapter) -> Path:
    """Make a saved adapter invalid in the named way; returns its folder."""
    from safetensors.torch import load_file, save_file

    folder, weights = adapter.folder, adapter.folder / "adapter_model.safetensors"
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(weights)
    first = next(iter(tensors)).rpartition(".lora_")[0]
    changes: dict[str, dict[str, Any]] = {
        "rank too large": {"r": MAX_RANK + 1},
        "DoRA": {"use_dora": True},
        "modules_to_save": {"modules_to_save": ["lm_head"]},
        "bias": {"bias": "all"},
        "unknown module": {"target_modules": [*config["target_modules"], "router"]},
    }
    if name == "no folder":
        return folder.with_name("nowhere")
    if name == "no config":
        (folder / "adapter_config.json").unlink()
    elif name == "config that is no JSON":
        (folder / "adapter_config.json").write_text("{")
    elif name == "no weights":
        weights.unlink()
    elif name == "weights cut short":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif name == "wrong shapes":
        tensors[f"{first}.lora_A.weight"] = tensors[f"{first}.lora_A.weight"][:, :-1].contiguous()
        save_file(tensors, weights)
    elif name == "B without A":
        del tensors[f"{first}.lora_A.weight"]
        save_file(tensors, weights)
    else:
        adapter.write_config(**config | changes[name])
    if name == "rank too large":
        save_file({key: _with_rank_too_large(key, tensor) for key, tensor in tensors.items()}, weights)
    elif name == "unknown module":
        router = "base_model.model.model.layers.0.mlp.router"
        extra = {f"{router}.lora_{side}.weight": tensors[f"{first}.lora_{side}.weight"] for side in "AB"}
        save_file({key: tensor.clone() for key, tensor in (tensors | extra).items()}, weights)
    return folder


def _with_rank_too_large(key: str, tensor: torch.Tensor) -> torch.Tensor:
    """A or B with a rank of MAX_RANK + 1."""
    import torch

    size = MAX_RANK + 1
    return torch.zeros(size, tensor.shape[1]) if ".lora_A." in key else torch.zeros(tensor.shape[0], size)
