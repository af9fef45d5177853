"""The conformance cases with sinks in the reference mask, and cases for this backend alone."""

import plugserve_attention_sinks
import torch
from plugserve_attention_sinks.attention import SinkAttention
from plugserve_attention_sinks.options import SinkOptions

from plugserve import AttentionSpec
from plugserve.testing import AttentionConformance, PagedSequences, load_plugin


class _Sinks(AttentionConformance):
    shapes = ((4, 4, 32), (6, 3, 16))
    windows = (None, 7)
    options = SinkOptions()

    def make_attention(self, context):
        return SinkAttention(context.block_size, self.options)

    def is_visible(self, spec, layer, queries, keys):
        own = spec.windows[layer] if spec.windows else None
        window = min(own or self.options.window, self.options.window)
        return (keys <= queries) & ((keys > queries - window) | (keys < self.options.sinks))


class TestWideWindow(_Sinks):
    pass


class TestNarrowWindow(_Sinks):
    options = SinkOptions(window=5, sinks=3)


class TestSinksOverABlock(_Sinks):
    options = SinkOptions(window=20, sinks=17)


class TestWithoutSinks(_Sinks):
    options = SinkOptions(window=16, sinks=0)


def test_plugin_provides_the_backend_and_its_options():
    plugin = load_plugin(plugserve_attention_sinks)
    assert list(plugin.provides["attention_backends"]) == ["attention-sinks"]
    assert plugin.options is SinkOptions


def test_blocks_outside_the_window_are_not_read():
    spec = AttentionSpec(1, 4, 2, 16, 0.25, "float32", "cpu")
    sequences = PagedSequences(spec, 1, block_size=16)
    backend = SinkAttention(16, SinkOptions(window=8, sinks=2))
    backend.kv_layout(spec)
    sequences.step([(0, 200)])
    (row,) = backend.plan(sequences.step([(0, 1)]).batch).rows[8]
    assert len(row.blocks) == 2
    assert int(row.mask.sum()) == 8 + 2


def test_soft_caps_are_refused_with_a_reason():
    spec = AttentionSpec(1, 4, 2, 32, 0.1, "float32", "cpu", soft_cap=50.0)
    assert "soft caps" in SinkAttention(16, SinkOptions()).refusal(spec)


def test_layout_is_in_bytes_of_the_dtype():
    spec = AttentionSpec(3, 4, 2, 32, 0.1, "bfloat16", "cpu")
    layout = SinkAttention(16, SinkOptions()).kv_layout(spec)
    assert layout.bytes_per_block == 2 * 16 * 2 * 32 * torch.bfloat16.itemsize * 3
