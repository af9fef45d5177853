"""The GPU's executor keeps the runner's contract: its queue, its masks, its draws by kernel, on a CPU with Triton's
interpreter and CUDA's events and page-locked memory replaced. Captured graphs are tests/gpu's."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch

from plugserve.backends.torch.runner import cuda_executor, loader, plain_steps
from plugserve.backends.torch.runner.devices import CpuKind
from plugserve.backends.torch.runner.torch_runner import TorchRunner
from plugserve.testing import RunnerConformance
from tests.backends.torch.test_conformance import SETTINGS, sources

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1" and not torch.cuda.is_available(), reason="needs Triton's interpreter"
)


class Event:
    """A torch.cuda.Event of a device that is done at once."""

    def __init__(self, enable_timing=False): ...

    def record(self): ...

    def synchronize(self): ...

    def elapsed_time(self, other):
        return 1.0


class GpuLikeKind(CpuKind):
    """A CPU whose steps run as on a GPU."""

    num_padding_blocks = 1

    def start(self, loaded):
        return cuda_executor.CudaExecutor(loaded)


def advance_rows(rows, lengths, drawn, tokens, num_computed, padding_row):
    raise AssertionError("only captured steps are fed back by this kernel")


class TestCudaExecutor(RunnerConformance):
    @pytest.fixture(autouse=True)
    def gpu_like(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
        monkeypatch.setattr(cuda_executor, "_to_host", torch.clone)
        monkeypatch.setattr(plain_steps, "advance_rows", advance_rows)
        monkeypatch.setattr(loader, "choose_device", lambda name: GpuLikeKind())

    def make_runner(self):
        return TorchRunner(sources(), replace(SETTINGS, enforce_eager=True))
