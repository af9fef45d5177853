"""Fused layer kernels against their plain torch form."""

import pytest
import torch

from plugserve.backends.torch.kernels.fused_layers import FusedLayers
from plugserve.backends.torch.models.layers import PlainLayers
from plugserve.backends.torch.models.rope import make_rope
from plugserve.core.contracts.model import ACTIVATIONS, DecoderSpec, RopeSpec


def spec_of(heads=3, kv_heads=1, head_dim=16, activation="silu", rotary_factor=1.0):
    rope = RopeSpec(10000.0, rotary_factor=rotary_factor)
    return DecoderSpec("Test", 1, 40, 72, heads, kv_heads, head_dim, 32, 1e-5, (rope,), activation=activation)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def both(spec):
    return FusedLayers(spec), PlainLayers(spec)


@pytest.mark.parametrize("norm_dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("has_added_norm", [False, True])
@pytest.mark.parametrize("has_norm", [False, True])
def test_add_norm(device, dtype, norm_dtype, has_added_norm, has_norm):
    if dtype == torch.float32 and norm_dtype == torch.float16:
        pytest.skip("norms are never narrower than the model")
    fused, plain = both(spec_of())
    added, x = torch.randn(2, 5, 40, dtype=dtype, device=device)
    weights = [torch.randn(40, dtype=norm_dtype, device=device) if has else None for has in (has_added_norm, has_norm)]
    xs = x.clone(), x.clone()
    outs = [do.add_norm(copy, added, *weights) for do, copy in zip((fused, plain), xs, strict=True)]
    tolerance = {torch.float32: 1e-5, torch.float16: 4e-3}[dtype]
    torch.testing.assert_close(*outs, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(*xs, atol=tolerance, rtol=tolerance)


def test_norm_leaves_its_input_alone(device):
    fused, plain = both(spec_of())
    x, weight = torch.randn(3, 40, device=device), torch.randn(40, device=device)
    before = x.clone()
    torch.testing.assert_close(fused.norm(x, weight), plain.norm(x, weight))
    assert torch.equal(x, before)


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(3, 1, 16), (14, 4, 8), (2, 2, 24)])
@pytest.mark.parametrize("rotary_factor", [1.0, 0.5])
@pytest.mark.parametrize("has_norms", [False, True])
def test_heads(device, heads, kv_heads, head_dim, rotary_factor, has_norms):
    spec = spec_of(heads, kv_heads, head_dim, rotary_factor=rotary_factor)
    fused, plain = both(spec)
    rope = make_rope(spec.ropes[0], head_dim, num_positions=64, dtype=torch.float32, device=torch.device(device))
    angles = rope.angles(torch.tensor([0, 7, 63], device=device), None)
    qkv = torch.randn(3, (heads + 2 * kv_heads) * head_dim, device=device)
    norms = torch.randn(2, head_dim, device=device) if has_norms else (None, None)
    for ours, theirs in zip(
        fused.heads(qkv.clone(), *norms, angles), plain.heads(qkv.clone(), *norms, angles), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gated_mlp(device, activation):
    fused, plain = both(spec_of(activation=activation))
    gate_up = 3 * torch.randn(4, 2 * 72, device=device)
    torch.testing.assert_close(fused.gated_mlp(gate_up), plain.gated_mlp(gate_up.clone()), atol=5e-6, rtol=1e-5)
