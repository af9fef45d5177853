import pytest
import torch


@pytest.fixture(scope="session")
def device():
    """A GPU where there is one; else kernels run in Triton's interpreter (see tests/conftest.py)."""
    return "cuda" if torch.cuda.is_available() else "cpu"
