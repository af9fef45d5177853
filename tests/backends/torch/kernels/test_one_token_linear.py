"""Linear layers of one token against torch's."""

import pytest
import torch

from plugserve.backends.torch.kernels.one_token_linear import one_token_linear


@pytest.mark.parametrize(
    ("num_rows", "size", "has_bias"),
    [
        *[
            (num_rows, size, has_bias)
            for num_rows, size in ((5, 24), (33, 1536), (3, 1024))
            for has_bias in (False, True)
        ],
        (8193, 20, True),  # the least that each of the tilings for many rows is chosen for
        (2049, 1300, False),
    ],
)
def test_equals_torch(device, num_rows, size, has_bias):
    torch.manual_seed(0)
    x = torch.randn(1, size, device=device)
    weight = torch.randn(num_rows, size, device=device) / size**0.5
    bias = torch.randn(num_rows, device=device) if has_bias else None
    expected = torch.nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    torch.testing.assert_close(one_token_linear(x, weight, bias).double(), expected, atol=2e-6, rtol=1e-5)
