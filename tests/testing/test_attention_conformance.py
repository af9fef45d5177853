"""The conformance kit fails each attention backend that has a planted bug."""

from __future__ import annotations

import dataclasses

import pytest

from plugserve.plugins.attention.torch_sdpa import TorchSdpaAttention
from plugserve.testing import AttentionConformance
from tests.testing.kit_runner import catches


class WrongGroup(TorchSdpaAttention):
    """Query head h reads key head h % num_kv_heads."""

    def run(self, q, k, v, kv, step, layer):
        spec = self._spec
        group = spec.num_heads // spec.num_kv_heads
        order = self._torch.arange(spec.num_heads).view(group, -1).T.reshape(-1)
        return super().run(q[:, order], k, v, kv, step, layer)[:, order.argsort()]


class WindowOffByOne(TorchSdpaAttention):
    def kv_layout(self, spec):
        layout = super().kv_layout(spec)
        self._windows = tuple(window and window + 1 for window in self._windows)
        self._distinct_windows = tuple(dict.fromkeys(self._windows))
        return layout


class WindowIgnoredInDecoding(TorchSdpaAttention):
    def _decode_mask(self, lengths, window, device):
        return super()._decode_mask(lengths, None, device)


class DropsABlockAtItsEdge(TorchSdpaAttention):
    """Attends to one block less where a context ends at a block's edge."""

    def plan(self, batch):
        lengths = [n - batch.block_size if n % batch.block_size == 0 and n > 16 else n for n in batch.context_lens]
        queries = [min(n, m) for n, m in zip(batch.query_lens, lengths, strict=True)]
        return super().plan(dataclasses.replace(batch, query_lens=queries, context_lens=lengths))


class MissesABlocksFirstToken(TorchSdpaAttention):
    """Doesn't attend to the first token of a new block."""

    def plan(self, batch):
        size = batch.block_size
        lengths = [n - 1 if n % size == 1 and n > size else n for n in batch.context_lens]
        decoding = all(n == 1 for n in batch.query_lens)
        return super().plan(dataclasses.replace(batch, context_lens=lengths) if decoding else batch)


class EmptyRowIsNan(TorchSdpaAttention):
    def plan(self, batch):
        self.empty = [b for b, n in enumerate(batch.context_lens) if n == 0]
        self.starts = [sum(batch.query_lens[:b]) for b in self.empty]
        return super().plan(batch)

    def run(self, q, k, v, kv, step, layer):
        out = super().run(q, k, v, kv, step, layer)
        if len(self.starts) and len(out) > self.starts[0]:
            out[self.starts] = float("nan")
        return out


class EmptyRowRaises(TorchSdpaAttention):
    def plan(self, batch):
        if 0 in batch.query_lens:
            raise IndexError("no tokens")
        return super().plan(batch)


class IgnoresSoftCap(TorchSdpaAttention):
    def kv_layout(self, spec):
        layout = super().kv_layout(spec)
        self._spec = dataclasses.replace(spec, soft_cap=None)
        return layout


class GraphSafeButAllocates(TorchSdpaAttention):
    graph_safe = True


class SynchronisesInRun(TorchSdpaAttention):
    def run(self, q, k, v, kv, step, layer):
        assert q.abs().max().item() >= 0
        return super().run(q, k, v, kv, step, layer)


class KeepsEveryStep(TorchSdpaAttention):
    def plan(self, batch):
        step = super().plan(batch)
        self.__dict__.setdefault("steps", []).append((step, batch.slots.clone()))
        return step


class CountsBytesWrong(TorchSdpaAttention):
    def kv_layout(self, spec):
        layout = super().kv_layout(spec)
        return dataclasses.replace(layout, bytes_per_block=layout.bytes_per_block // spec.num_layers)


class WritesToAnotherSlot(TorchSdpaAttention):
    def run(self, q, k, v, kv, step, layer):
        out = super().run(q, k, v, kv, step, layer)
        kv[:, 3] = 0
        return out


ATTENTION_BUGS = [
    (WrongGroup, "output is off"),
    (WindowOffByOne, "output is off"),
    (WindowIgnoredInDecoding, "output is off"),
    (DropsABlockAtItsEdge, "output is off"),
    (MissesABlocksFirstToken, "output is off"),
    (EmptyRowIsNan, "NaN"),
    (EmptyRowRaises, "no tokens"),
    (IgnoresSoftCap, "output is off"),
    (GraphSafeButAllocates, "run allocates"),
    (SynchronisesInRun, "waits for the device"),
    (KeepsEveryStep, "still alive"),
    (CountsBytesWrong, "bytes_per_block"),
    (WritesToAnotherSlot, "outside the step's"),
]


@pytest.mark.parametrize(("backend", "word"), ATTENTION_BUGS, ids=lambda value: getattr(value, "__name__", ""))
def test_attention_bug_is_caught(backend, word):
    class Case(AttentionConformance):
        shapes = ((4, 2, 16),)

        def make_attention(self, context):
            return backend(context.block_size)

    assert catches(Case, word)
