"""Linear layers of few tokens against torch's."""

import pytest
import torch

from plugserve.core.kernels.small_linear import MOST_TOKENS, small_linear


@pytest.mark.parametrize("num_tokens", range(1, MOST_TOKENS + 1))
@pytest.mark.parametrize(("num_rows", "size"), [(5, 24), (33, 1536), (3, 1024)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_equals_torch(device, num_tokens, num_rows, size, has_bias):
    torch.manual_seed(0)
    x = torch.randn(num_tokens, size, device=device)
    weight = torch.randn(num_rows, size, device=device) / size**0.5
    bias = torch.randn(num_rows, device=device) if has_bias else None
    expected = torch.nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    torch.testing.assert_close(small_linear(x, weight, bias).double(), expected, atol=2e-6, rtol=1e-5)
