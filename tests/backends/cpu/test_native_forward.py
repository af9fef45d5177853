"""Native forward passes: near a float64 decoder of the same weights, and the same in every batch, chunk, level and team
of threads."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from plugserve.backends.cpu.rope_tables import rope_tables
from plugserve.core.contracts.forward_pass import HostBatch
from tests.backends.cpu.native_models import FORMATS, LEVELS, SPECS, floats, make_forward, needs_library

pytestmark = needs_library
LENGTHS = (1, 15, 16, 17, 40, 130)


def reference(spec, tokens, weights):
    """Logits [T, V] in float64."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    offset = 1.0 if spec.norms_are_offset else 0.0

    def norm(x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + spec.norm_eps) * (w[name + ".weight"] + offset)

    def linear(x, name):
        return x @ w[name + ".weight"].T + w.get(name + ".bias", 0.0)

    def act(x):
        if spec.activation == "silu":
            return x / (1 + np.exp(-x))
        if spec.activation == "gelu":
            return x * np.vectorize(lambda v: 0.5 * (1 + math.erf(v / 2**0.5)))(x)
        return 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))

    def cap(x, limit):
        return x if limit is None else limit * np.tanh(x / limit)

    def turn(x, cos, sin):
        half = cos.shape[1]
        one, other = x[..., :half], x[..., half : 2 * half]
        cos, sin = cos[:, None], sin[:, None]
        return np.concatenate((one * cos - other * sin, other * cos + one * sin, x[..., 2 * half :]), -1)

    count, group = len(tokens), spec.num_heads // spec.num_kv_heads
    x = w["model.embed_tokens.weight"][tokens] * (spec.embedding_scale or 1.0)
    places = np.arange(count)
    for i in range(spec.num_layers):
        layer = f"model.layers.{i}."
        cos, sin = rope_tables(spec.ropes[spec.rope_of(i)], spec.head_dim, count, None)
        h = norm(x, layer + "input_layernorm")
        q, k, v = (
            linear(h, f"{layer}self_attn.{name}_proj").reshape(count, -1, spec.head_dim) for name in ("q", "k", "v")
        )
        if spec.has_qk_norms:
            q, k = norm(q, layer + "self_attn.q_norm"), norm(k, layer + "self_attn.k_norm")
        q, k = turn(q, cos, sin), turn(k, cos, sin)
        k, v = k.repeat(group, 1), v.repeat(group, 1)
        scores = np.einsum("qhd,khd->hqk", q, k) * (spec.attention_scale or spec.head_dim**-0.5)
        scores = cap(scores, spec.attention_soft_cap)
        window = spec.windows[i] if spec.windows else None
        hidden = places[None] > places[:, None]
        if window:
            hidden |= places[None] <= places[:, None] - window
        scores = np.where(hidden, -np.inf, scores)
        weighed = np.exp(scores - scores.max(-1, keepdims=True))
        weighed /= weighed.sum(-1, keepdims=True)
        attended = np.einsum("hqk,khd->qhd", weighed, v).reshape(count, -1)
        added = linear(attended, layer + "self_attn.o_proj")
        if spec.has_post_norms:
            x = x + norm(added, layer + "post_attention_layernorm")
            h = norm(x, layer + "pre_feedforward_layernorm")
        else:
            x = x + added
            h = norm(x, layer + "post_attention_layernorm")
        added = linear(
            act(linear(h, layer + "mlp.gate_proj")) * linear(h, layer + "mlp.up_proj"), layer + "mlp.down_proj"
        )
        x = x + (norm(added, layer + "post_feedforward_layernorm") if spec.has_post_norms else added)
    head = w["model.embed_tokens.weight" if spec.ties_embeddings else "lm_head.weight"]
    return cap(norm(x, "model.norm") @ head.T, spec.logits_soft_cap)


class Cache:
    """Sequences in a loaded forward pass, their blocks shuffled."""

    def __init__(self, forward):
        self.forward, self.info = forward, forward.load()
        self.free = np.random.default_rng(1).permutation(self.info.num_blocks).tolist()
        self.rows = {}

    def compute(self, parts):
        """Logits of every token of parts, (name, tokens) each, which follow what name has."""
        size = self.info.block_size
        ids, places, slots, starts, lens, tables = [], [], [], [0], [], []
        for name, tokens in parts:
            blocks, done = self.rows.setdefault(name, ([], 0))
            end = done + len(tokens)
            while len(blocks) * size < end:
                blocks.append(self.free.pop())
            self.rows[name] = (blocks, end)
            ids += list(tokens)
            places += range(done, end)
            slots += [blocks[p // size] * size + p % size for p in range(done, end)]
            starts.append(len(ids))
            lens.append(end)
            tables.append(blocks)
        table = np.zeros((len(parts), max(map(len, tables))), dtype=np.int32)
        for i, blocks in enumerate(tables):
            table[i, : len(blocks)] = blocks
        long = lambda values: np.array(values, dtype=np.int64)  # noqa: E731
        batch = HostBatch(long(ids), long(places), long(slots), long(starts), long(lens), table, long(starts[1:]) - 1)
        return self.forward.compute(batch, np.arange(len(ids)), True).logits.copy()


def prompts(spec):
    draw = np.random.default_rng(3)
    return {length: draw.integers(0, spec.vocab_size, length) for length in LENGTHS}


def whole(spec, quantization="none", **changes):
    """Each prompt's logits, in a step of its own."""
    cache = Cache(make_forward(spec, quantization, **changes))
    found = {length: cache.compute([(length, tokens)]) for length, tokens in prompts(spec).items()}
    cache.forward.close()
    return found


@pytest.mark.parametrize("name", SPECS)
def test_logits_are_those_of_a_float64_decoder(name):
    spec = SPECS[name]
    for length, logits in whole(spec).items():
        expected = reference(spec, prompts(spec)[length], floats(spec))
        assert np.abs(logits - expected).max() < 0.05 * expected.std() + 0.02, length  # bfloat16's rounding


@pytest.mark.parametrize(("quantization", "most"), [("int8", 0.06), ("int4", 0.6)])
def test_quantised_logits_are_near_those_of_floats(quantization, most):
    spec = SPECS["plain"]
    for length, logits in whole(spec, quantization).items():
        expected = reference(spec, prompts(spec)[length], floats(spec))
        assert np.sqrt(((logits - expected) ** 2).mean()) < most * expected.std(), length


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("quantization", FORMATS)
@pytest.mark.parametrize("name", ["plain", "windows, caps, norms"])
def test_a_row_does_not_depend_on_batch_chunks_or_threads(name, quantization, level):
    spec = SPECS[name]
    alone = whole(spec, quantization, level=level)
    asked = prompts(spec)
    for num_threads in (1, 2, 3):
        cache = Cache(make_forward(spec, quantization, level=level, threads=num_threads))
        together = cache.compute(list(asked.items()))
        np.testing.assert_array_equal(together, np.concatenate([alone[length] for length in asked]))
        for chunk in (1, 7, 64):
            tokens = asked[130]
            parts = [cache.compute([(f"by {chunk}", tokens[i : i + chunk])]) for i in range(0, len(tokens), chunk)]
            np.testing.assert_array_equal(np.concatenate(parts), alone[130])
        cache.forward.close()


@pytest.mark.parametrize("quantization", FORMATS)
def test_levels_agree(quantization):
    """All but AMX to the last bit: its bfloat16 products round otherwise."""
    spec = SPECS["windows, caps, norms"]
    plain = whole(spec, quantization, level=0)
    for level in LEVELS[1:]:
        for length, logits in whole(spec, quantization, level=level).items():
            if level < 3:
                np.testing.assert_array_equal(logits, plain[length])
            else:
                assert np.abs(logits - plain[length]).max() < 0.1 * plain[length].std()


def test_contents_of_reused_blocks_do_not_leak():
    spec = SPECS["plain"]
    cache = Cache(make_forward(spec))
    expected = whole(spec)[17]
    cache.forward._model.kv[:] = 0xFF  # NaN in bfloat16
    np.testing.assert_array_equal(cache.compute([("a", prompts(spec)[17])]), expected)
    cache.forward.close()


def test_a_token_outside_the_vocabulary_is_an_error():
    cache = Cache(make_forward())
    with pytest.raises(RuntimeError, match="outside the vocabulary"):
        cache.compute([("a", [97])])
    cache.forward.close()


def test_logits_of_hidden_states_are_those_of_the_step():
    spec = SPECS["windows, caps, norms"]
    forward = make_forward(spec, "int8", threads=2)
    cache = Cache(forward)
    logits = cache.compute([("a", prompts(spec)[40])])
    one = cache.compute([("b", prompts(spec)[40])])
    np.testing.assert_array_equal(logits, one)
    forward.close()


def test_models_side_by_side_compute_the_same():
    """Two teams of threads on the same cores, which leave them to each other."""
    spec, asked = SPECS["plain"], prompts(SPECS["plain"])
    expected = whole(spec, "int8")[130]
    caches = [Cache(make_forward(spec, "int8", threads=2)) for _ in range(2)]

    def decode(cache):
        return np.concatenate([cache.compute([("a", asked[130][i : i + 1])]) for i in range(130)])

    with ThreadPoolExecutor() as pool:
        for found in pool.map(decode, caches):
            np.testing.assert_array_equal(found, expected)
    for cache in caches:
        cache.forward.close()
