"""Programmatic dependent launch (Hopper and later): a kernel starts while the one before it ends.

Such a kernel calls wait_for_earlier before it reads data that an earlier kernel writes, or writes data that an earlier
one reads; it may load data that no kernel writes (weights) before. Every program must call it, even one without work,
because later kernels rely on it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def wait_for_earlier(IS_DEPENDENT: tl.constexpr):
    """Let later kernels start, then wait until earlier ones are done."""
    if IS_DEPENDENT:
        gdc_launch_dependents()
        gdc_wait()


def dependent(tensor: torch.Tensor) -> dict[str, Any]:
    """Launch options, IS_DEPENDENT among them, for a kernel that works on tensor."""
    return _OPTIONS[tensor.is_cuda and _has_dependent_launch(tensor.device)]


@cache
def _has_dependent_launch(device: torch.device) -> bool:
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0)


_OPTIONS: dict[bool, dict[str, Any]] = {
    True: {"IS_DEPENDENT": True, "launch_pdl": True},
    False: {"IS_DEPENDENT": False},
}
