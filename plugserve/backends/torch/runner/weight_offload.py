"""--cpu-offload-gb: decides before loading which weights stay in host memory, and on a GPU copies them from page-locked
memory on a stream of their own."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import torch

from plugserve.backends.torch.models.decoder import Decoder
from plugserve.backends.torch.models.streamed_parts import NUM_BUFFERS, Link, OffloadedWeights
from plugserve.backends.torch.runner.memory_plan import GIB
from plugserve.core.contracts.model import ModelDefinition
from plugserve.core.errors import ConfigError
from plugserve.core.memory.machine import available_memory_bytes

log = logging.getLogger(__name__)

_CHUNK_BYTES = 64 << 20  # a power of two: torch rounds page-locked memory up to one
_NUM_MEASURED = 4  # times that both buffers are filled


class NoOffload:
    """All weights stay on the device."""

    num_bytes = 0

    def prepare(self, model: ModelDefinition) -> None: ...

    def finish(self, model: ModelDefinition) -> None: ...


class WeightOffload:
    """num_wanted_bytes of a model's weights stay on the host, link's other end. Call prepare before the model is
    allocated, finish after it is loaded; num_bytes are then on the host."""

    def __init__(self, num_wanted_bytes: int, link: Link) -> None:
        self._num_wanted_bytes = num_wanted_bytes
        self._link = link
        self.num_bytes = 0

    def prepare(self, model: ModelDefinition) -> None:
        """Raises ConfigError for a model that can't be offloaded, and where the host has too little memory."""
        wanted, available = self._num_wanted_bytes / GIB, available_memory_bytes() / GIB
        if not isinstance(model, Decoder):
            raise ConfigError(
                f"--cpu-offload-gb {wanted:g}: {model.architecture} is a plugin's own code, whose weights can't be "
                "offloaded; leave it at 0"
            )
        if wanted > available:
            raise ConfigError(
                f"--cpu-offload-gb {wanted:g} does not fit: {available:.1f} GiB of host memory are left; lower it"
            )
        model.num_host_bytes = self._num_wanted_bytes

    def finish(self, model: ModelDefinition) -> None:
        assert isinstance(model, Decoder)
        offloaded = model.stream_from_host(self._link)
        if offloaded.num_bytes < self._num_wanted_bytes:
            log.warning(
                "--cpu-offload-gb lowered from=%g to=%.2f GiB: the layers' attention and MLPs hold no more",
                self._num_wanted_bytes / GIB, offloaded.num_bytes / GIB,
            )  # fmt: skip
        self.num_bytes = offloaded.num_bytes
        seconds = _copy_seconds(self._link, offloaded)
        log.info(
            "weights in host memory gib=%.2f parts=%d buffers_gib=%.2f link_gb_per_s=%.1f: a step copies them in "
            "%.1f ms",
            offloaded.num_bytes / GIB, offloaded.num_parts, offloaded.buffer_bytes / GIB,
            offloaded.num_bytes / seconds / 1e9, seconds * 1e3,
        )  # fmt: skip


def _copy_seconds(link: Link, offloaded: OffloadedWeights) -> float:
    """The time that the copies of one forward pass take by themselves, from the best of some."""
    stream, best_s = offloaded.stream, float("inf")
    measured = stream.pieces[:NUM_BUFFERS]
    for _ in range(_NUM_MEASURED):
        started_s = time.perf_counter()
        for number, pieces in enumerate(measured):
            link.start(number, pieces, stream.buffers[number])
        link.synchronize()
        best_s = min(best_s, time.perf_counter() - started_s)
    num_bytes = sum(len(piece) for pieces in measured for piece in pieces)
    return best_s * offloaded.num_bytes / num_bytes


class CudaLink:
    """The Link of a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._copied = [torch.cuda.Event() for _ in range(NUM_BUFFERS)]  # type: ignore[no-untyped-call]
        self._chunk = torch.empty(0, dtype=torch.uint8)  # what is left of the last one
        self._barrier = torch.zeros(1, dtype=torch.int32, device=device)

    def host_memory(self, num_bytes: int) -> list[torch.Tensor]:
        pieces = []
        while num_bytes:
            if not len(self._chunk):
                self._chunk = torch.empty(_CHUNK_BYTES, dtype=torch.uint8, pin_memory=True)
            pieces.append(self._chunk[:num_bytes])
            self._chunk = self._chunk[num_bytes:]
            num_bytes -= len(pieces[-1])
        return pieces

    def device_memory(self, num_bytes: int) -> torch.Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8, device=self._device)

    def start(self, number: int, pieces: Sequence[torch.Tensor], buffer: torch.Tensor) -> None:
        stream, place = self._stream, 0
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for piece in pieces:
                buffer[place : place + len(piece)].copy_(piece, non_blocking=True)
                place += len(piece)
        self._copied[number].record(stream)

    def wait(self, number: int) -> None:
        """A kernel that loads weights before the one before it has ended (kernels/launch.py) may only follow a kernel,
        which has waited for the copy."""
        torch.cuda.current_stream(self._device).wait_event(self._copied[number])
        self._barrier.add_(1)

    def synchronize(self) -> None:
        """Wait for all copies."""
        self._stream.synchronize()
