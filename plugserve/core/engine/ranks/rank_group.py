"""The processes of the ranks above 0 on this machine: started, called, watched and stopped by rank 0's process."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import zmq

from plugserve.core.contracts.parallel import RankPlacement
from plugserve.core.contracts.weights import ModelSource
from plugserve.core.engine.ranks.rank_order import RankOrder
from plugserve.core.engine.ranks.rank_process import RankEnd
from plugserve.core.settings.settings import Settings
from plugserve.core.wire.handed_settings import as_line

log = logging.getLogger(__name__)

_LEAVING_S = 10.0

OnEnd = Callable[[int, RankEnd], None]
"""(rank, why): called on a thread of its own when a rank's process ends before the group is stopped."""


def end_this_process(rank: int, end: RankEnd) -> None:
    """The default OnEnd: rank 0 may wait for the lost rank inside a collective operation, which nothing interrupts."""
    os._exit(2 if end.is_user_error else 1)


class RankGroup:
    """num_ranks - 1 processes beside this one. They share source; their calls come in the order of send."""

    def __init__(
        self, settings: Settings, source: ModelSource, num_ranks: int, on_end: OnEnd = end_this_process
    ) -> None:
        self._settings = settings
        self._source = source
        self._num_ranks = num_ranks
        self._on_end = on_end
        self._folder = tempfile.TemporaryDirectory(prefix="plugserve-ranks-")
        self._processes: list[subprocess.Popen[bytes]] = []
        self._is_stopping = False
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._sockets: list[zmq.Socket[bytes]] = []
        self._sending = threading.Lock()

    def placement(self, rank: int) -> RankPlacement:
        return RankPlacement(rank, self._num_ranks, rank, f"file://{Path(self._folder.name) / 'rendezvous'}")

    def start(self) -> None:
        """Start every process; they load while this one does."""
        for rank in range(1, self._num_ranks):
            address = f"ipc://{Path(self._folder.name) / f'calls-{rank}'}"
            socket = self._context.socket(zmq.PUSH)
            socket.setsockopt(zmq.SNDHWM, 0)
            socket.setsockopt(zmq.LINGER, 0)
            socket.bind(address)
            self._sockets.append(socket)
            self._start_one(rank, RankOrder.of(self._source, self.placement(rank), address))

    def _start_one(self, rank: int, order: RankOrder) -> None:
        command = [sys.executable, "-m", "plugserve.core.engine.ranks"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdin is not None
        process.stdin.write(as_line(self._settings) + msgspec.json.encode(order) + b"\n")
        process.stdin.flush()
        self._processes.append(process)
        threading.Thread(target=self._watch, args=(rank, process), name=f"rank-{rank}-watch", daemon=True).start()
        log.info("rank started rank=%d of=%d pid=%d", rank, self._num_ranks, process.pid)

    def _watch(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        lines = process.stdout.read().splitlines()
        code = process.wait()
        if self._is_stopping:
            return
        try:
            end = msgspec.json.decode(lines[-1], type=RankEnd)
        except (IndexError, msgspec.DecodeError):
            how = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
            end = RankEnd(f"rank {rank} of {self._num_ranks} (pid {process.pid}) {how}")
        log.error("rank ended rank=%d pid=%d code=%d: %s", rank, process.pid, code, end.message)
        self._on_end(rank, end)

    @property
    def pids(self) -> list[int]:
        """Of the other ranks' processes."""
        return [process.pid for process in self._processes]

    def send(self, call: list[bytes]) -> None:
        """From any thread; all ranks get the calls in one order."""
        with self._sending:
            for socket in self._sockets:
                socket.send_multipart(call)

    def stop(self) -> None:
        """After the last call: wait for the processes, and kill those that stay."""
        self._is_stopping = True
        for process in self._processes:
            try:
                process.wait(_LEAVING_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdin is not None
            process.stdin.close()
        for socket in self._sockets:
            socket.close()
        self._context.term()
        self._folder.cleanup()
