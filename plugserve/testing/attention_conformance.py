"""Pytest cases for attention backends: subclass AttentionConformance and override make_attention.

The cases call a backend as the runner does: steps write the history into its cache, in the backend's own layout, and
its output is compared with reference attention in float64.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from plugserve.core.contracts.attention import AttentionBackend, AttentionSpec, KVLayout
from plugserve.core.contracts.factories import AttentionContext
from plugserve.testing.contexts import attention_context

if TYPE_CHECKING:
    import torch

    from plugserve.testing.attention_batches import PagedSequences, PagedStep

BATCHES: dict[str, list[list[tuple[int, int]]]] = {
    "fresh prompts": [[(0, 5), (1, 16), (2, 17), (3, 33)]],
    "one token each": [[(0, 1), (1, 1)]],
    "decoding, ragged": [[(0, 0), (1, 14), (2, 15), (3, 16), (4, 32), (5, 99)], [(n, 1) for n in range(6)]],
    "decoding, equal": [[(0, 19), (1, 19)], [(0, 1), (1, 1)]],
    "decoding, step after step": [[(0, 14), (1, 30)], *([(0, 1), (1, 1)] for _ in range(4))],
    "across block edges": [[(0, 15), (1, 16), (2, 17)], [(0, 1), (1, 1), (2, 15)], [(0, 1), (1, 16), (2, 1)]],
    "chunks with history": [[(0, 16), (1, 16), (2, 38)], [(0, 5), (1, 16), (2, 2)], [(0, 40), (1, 3), (2, 9)]],
    "mixed, in another order": [
        [(0, 49), (1, 15), (2, 51)],
        [(2, 9), (0, 1), (3, 7), (1, 1)],
        [(3, 1), (1, 3), (0, 1)],
    ],
}
PADDED: dict[str, list[list[tuple[int, int]]]] = {
    "a row without tokens": [[(0, 4), (1, 2)], [(0, 1), (-1, 0), (1, 3)]],
    "rows without context": [[(0, 4), (1, 17)], [(0, 1), (1, 1), (-1, 1), (-1, 1)]],
    "only rows without context": [[(-1, 1), (-1, 1)]],
}


class AttentionConformance:
    """Subclass it, name the subclass Test..., and override make_attention.

    shapes are (heads, key heads, head size); shapes that the backend refuses are skipped. windows are tried with each
    shape, soft_caps with the first one. tolerance is (absolute, relative).
    """

    dtype: str = "float32"
    device: str = "cpu"
    block_sizes: Sequence[int] = (16, 32)
    shapes: Sequence[tuple[int, int, int]] = ((4, 4, 32), (8, 2, 64), (6, 3, 16), (7, 1, 32))
    windows: Sequence[int | None] = (None, 1, 7, 16, 17)
    soft_caps: Sequence[float | None] = (None, 0.7)
    tolerance: tuple[float, float] = (1e-5, 1e-4)

    def make_attention(self, context: AttentionContext) -> AttentionBackend:
        """Returns a new backend for context.spec and context.block_size, as the plugin's factory does."""
        raise NotImplementedError("override make_attention: return a new attention backend")

    def is_visible(self, spec: AttentionSpec, layer: int, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Which keys a query attends to, by positions [n, 1] and [1, m]. Override it for a backend that does not attend
        causally within the layer's window."""
        visible = keys <= queries
        window = spec.windows[layer] if spec.windows else None
        return visible if window is None else visible & (keys > queries - window)

    # ------------------------------------------------ what it declares

    def test_it_is_an_attention_backend(self) -> None:
        backend = self.make_attention(self._context(self._spec((4, 2, 32))))
        assert isinstance(backend, AttentionBackend), f"{type(backend).__name__} lacks a part of AttentionBackend"
        assert isinstance(backend.graph_safe, bool), f"graph_safe is {backend.graph_safe!r}, not True or False"

    def test_refusal_gives_a_reason(self) -> None:
        for shape in (*self.shapes, (1, 1, 8), (3, 1, 80), (64, 8, 576), (5, 5, 96)):
            spec = self._spec(shape, windows=(4096, None), soft_cap=50.0)
            reason = self.make_attention(self._context(spec)).refusal(spec)
            assert reason is None or (isinstance(reason, str) and reason.strip() and "\n" not in reason), (
                f"refusal must return None or one line of text, got {reason!r} for {shape}"
            )

    def test_layout_reports_its_bytes(self) -> None:
        for spec, block_size in self._specs(self.windows[:1], self.soft_caps[:1]):
            layout = self.make_attention(self._context(spec, block_size)).kv_layout(spec)
            assert isinstance(layout, KVLayout), f"kv_layout returned {type(layout).__name__}, not a KVLayout"
            assert layout.shape.count("num_blocks") == 1, f"the shape {layout.shape} must hold 'num_blocks' once"
            elements = math.prod(int(part) for part in layout.shape if part != "num_blocks")
            expected = elements * (4 if self.dtype == "float32" else 2) * spec.num_layers
            assert layout.bytes_per_block == expected, (
                f"bytes_per_block is {layout.bytes_per_block}, the shape {layout.shape} of {spec.num_layers} layers "
                f"makes {expected}"
            )

    # ------------------------------------------------ what it computes

    @pytest.mark.parametrize("name", BATCHES)
    def test_output_equals_reference_attention(self, name: str) -> None:
        for spec, block_size in self._specs(self.windows, self.soft_caps):
            self._check(spec, block_size, BATCHES[name])

    @pytest.mark.parametrize("name", PADDED)
    def test_padding_gives_finite_output_and_changes_no_other_row(self, name: str) -> None:
        """The output of padding rows is unused, but must be finite and must not affect other rows."""
        for spec, block_size in self._specs(self.windows[:2], self.soft_caps[:1]):
            self._check(spec, block_size, PADDED[name])

    def test_blocks_of_other_sequences_are_unchanged(self) -> None:
        """The history of a sequence outside a step is the same in a later step."""
        steps = [[(0, 20), (1, 31), (2, 7)], [(0, 1)], [(2, 30), (0, 1)], [(1, 2), (0, 1), (2, 1)]]
        for spec, block_size in self._specs(self.windows[:1], self.soft_caps[:1]):
            self._check(spec, block_size, steps)

    # ------------------------------------------------ its resources

    def test_run_does_not_synchronise_and_graph_safe_run_does_not_allocate(self) -> None:
        from plugserve.testing.watched_tensors import WatchedTensors

        for spec, block_size in self._specs(self.windows[:2], self.soft_caps[:1]):
            driver = _BackendDriver(self, spec, block_size, num_sequences=3)
            driver.run(driver.sequences.step([(0, 20), (1, 3)]))
            step = driver.sequences.step([(0, 1), (1, 1), (2, 4)])
            planned = driver.backend.plan(step.batch)
            with WatchedTensors() as watched:
                out = driver.attend(step, planned, 0)
            assert not watched.waits, f"run waits for the device in {', '.join(watched.waits)}; move it to plan"
            if driver.backend.graph_safe:
                others = watched.allocations(but_for=out)
                assert not others, (
                    f"run allocates more than its result, in {', '.join(others)}; a graph_safe backend allocates its "
                    "work space in prepare, or sets graph_safe = False"
                )

    def test_steps_release_their_memory(self) -> None:
        from plugserve.testing.watched_tensors import WatchedTensors

        for spec, block_size in self._specs(self.windows[:1], self.soft_caps[:1]):
            driver = _BackendDriver(self, spec, block_size, num_sequences=2)
            driver.run(driver.sequences.step([(0, 5), (1, 3)]))
            with WatchedTensors() as watched:
                driver.run_unchecked(num_steps=2)
                before = watched.num_alive
                driver.run_unchecked(num_steps=6)
                if watched.num_alive - before >= 6:
                    gc.collect()  # cycles are not leaks
            grown = watched.num_alive - before
            assert grown < 6, f"{grown} tensors of 6 steps are still alive"

    # ------------------------------------------------ helpers

    def _context(self, spec: AttentionSpec, block_size: int = 16) -> AttentionContext:
        return attention_context(spec, block_size=block_size)

    def _spec(
        self,
        shape: tuple[int, int, int],
        *,
        windows: tuple[int | None, ...] = (),
        soft_cap: float | None = None,
    ) -> AttentionSpec:
        num_heads, num_kv_heads, head_dim = shape
        return AttentionSpec(
            num_layers=max(len(windows), 1),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            scale=1.7 * head_dim**-0.5,
            dtype=self.dtype,
            device=self.device,
            windows=windows if any(windows) else (),
            soft_cap=soft_cap,
        )

    def _specs(
        self, windows: Sequence[int | None], soft_caps: Sequence[float | None]
    ) -> Iterator[tuple[AttentionSpec, int]]:
        """Each shape with all windows (one per layer), the first shape with every soft cap; without refused ones."""
        reasons = []
        num_served = 0
        for n, shape in enumerate(self.shapes):
            for soft_cap in soft_caps if n == 0 else soft_caps[:1]:
                spec = self._spec(shape, windows=(*windows, None), soft_cap=soft_cap)
                block_size = self.block_sizes[n % len(self.block_sizes)]
                reason = self.make_attention(self._context(spec, block_size)).refusal(spec)
                if reason is None:
                    num_served += 1
                    yield spec, block_size
                else:
                    reasons.append(f"{shape}: {reason}")
        if not num_served:
            pytest.fail(f"the backend refuses every shape of the cases: {'; '.join(reasons)}")

    def _check(self, spec: AttentionSpec, block_size: int, steps: list[list[tuple[int, int]]]) -> None:
        driver = _BackendDriver(self, spec, block_size, num_sequences=6)
        for rows in steps:
            driver.run(driver.sequences.step(rows))


class _BackendDriver:
    """One backend with its caches, and the sequences that it runs."""

    def __init__(self, case: AttentionConformance, spec: AttentionSpec, block_size: int, num_sequences: int) -> None:
        import torch

        from plugserve.testing.attention_batches import PagedSequences

        self._case = case
        self._spec = spec
        self.sequences: PagedSequences = PagedSequences(spec, num_sequences, block_size=block_size)
        self.backend = case.make_attention(case._context(spec, block_size))
        assert self.backend.refusal(spec) is None
        layout = self.backend.kv_layout(spec)
        shape = [self.sequences.num_blocks if part == "num_blocks" else int(part) for part in layout.shape]
        generator = torch.Generator().manual_seed(1)
        stale = [torch.randn(shape, generator=generator) * 50 for _ in range(spec.num_layers)]
        self.kv = [tensor.to(getattr(torch, spec.dtype)).to(spec.device) for tensor in stale]
        self.backend.prepare(256, 16)

    def attend(self, step: PagedStep, planned: Any, layer: int) -> torch.Tensor:
        import torch

        with torch.inference_mode():
            return self.backend.run(step.q[layer], step.k[layer], step.v[layer], self.kv[layer], planned, layer)

    def run_unchecked(self, *, num_steps: int) -> None:
        """Steps through the first layer, without a check of the output."""
        for _ in range(num_steps):
            step = self.sequences.step([(0, 1), (1, 1)])
            self.attend(step, self.backend.plan(step.batch), 0)

    def run(self, step: PagedStep) -> None:
        """One step through all layers, compared with the reference."""
        import torch

        spec = self._spec
        with torch.inference_mode():
            planned = self.backend.plan(step.batch)
        for layer in range(spec.num_layers):
            before = self.kv[layer].clone()
            out = self.attend(step, planned, layer).cpu()
            num_written = int((self.kv[layer] != before).sum())
            window = spec.windows[layer] if spec.windows else None
            where = (
                f"heads {spec.num_heads}, key heads {spec.num_kv_heads}, head size {spec.head_dim}, window {window}, "
                f"soft cap {spec.soft_cap}, block size {step.batch.block_size}, "
                f"new tokens {step.batch.query_lens} of {step.batch.context_lens}"
            )
            assert out.shape == step.q[layer].shape, f"run returned {tuple(out.shape)} ({where})"
            assert bool(out.isfinite().all()), f"run returned NaN or infinity ({where})"
            most = len(out) * 2 * spec.num_kv_heads * spec.head_dim
            assert num_written <= most, f"run wrote to cache slots outside the step's ({where})"
            expected = self.sequences.expected(
                step, layer, lambda layer, queries, keys: self._case.is_visible(spec, layer, queries, keys)
            )
            start = 0
            for index, count in step.rows:
                if index >= 0:
                    self._compare(out[start : start + count], expected[start : start + count], f"row {index}, {where}")
                start += count

    def _compare(self, out: torch.Tensor, expected: torch.Tensor, where: str) -> None:
        if not len(out):
            return
        absolute, relative = self._case.tolerance
        error = (out.double() - expected).abs()
        worst = float((error - relative * expected.abs()).max())
        assert worst <= absolute, f"output is off by {float(error.max()):.2g} ({where})"
