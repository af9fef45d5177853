"""The GPU's executor keeps the runner's contract: its queue, its masks, its draws by kernel, on a CPU with Triton's
interpreter and CUDA's events and page-locked memory replaced. Captured graphs are tests/gpu's."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch

from plugserve.backends.torch.runner import cuda_executor, cuda_graphs, loader, plain_steps
from plugserve.backends.torch.runner.devices import CpuKind
from plugserve.backends.torch.runner.torch_runner import TorchRunner
from plugserve.plugins.attention.torch_sdpa import TorchSdpaAttention
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


@pytest.fixture(autouse=True)
def gpu_like(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    monkeypatch.setattr(cuda_executor, "_to_host", torch.clone)
    monkeypatch.setattr(plain_steps, "advance_rows", advance_rows)
    monkeypatch.setattr(loader, "choose_device", lambda name: GpuLikeKind())


class TestCudaExecutor(RunnerConformance):
    def make_runner(self):
        return TorchRunner(sources(), replace(SETTINGS, enforce_eager=True))


class Recorder:
    """In place of CapturedSteps: what was captured."""

    captured: list[str] = []

    def __init__(self, *parts): ...

    def capture(self, what):
        self.captured.append(what)


@pytest.mark.parametrize("is_eager", [False, True])
def test_steps_are_captured_unless_enforce_eager_is_set(monkeypatch, is_eager):
    monkeypatch.setattr(cuda_graphs, "CapturedSteps", Recorder)
    monkeypatch.setattr(TorchSdpaAttention, "graph_safe", True)
    monkeypatch.setattr(Recorder, "captured", [])
    TorchRunner(sources(), replace(SETTINGS, enforce_eager=is_eager)).load()
    assert Recorder.captured == ([] if is_eager else ["steps"])
