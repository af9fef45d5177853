"""Ranks as processes of this machine: the default executor of models with several ranks."""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence

import msgspec

from plugserve.core.contracts.executor import RankEnd, RankPlace, RankPlaces
from plugserve.core.contracts.factories import ExecutorContext, ExecutorFactory
from plugserve.core.plugin_system.hookspecs import hookimpl
from plugserve.core.wire.rank_channel import RankChannel

log = logging.getLogger(__name__)

_LEAVING_S = 10.0


class ProcessExecutor:
    """num_ranks - 1 processes beside this one. Each is given its door and its job by standard input, and says on
    standard output why it ends."""

    def __init__(self, context: ExecutorContext) -> None:
        self._context = context
        self._num_ranks = context.num_ranks
        self._folder = tempfile.TemporaryDirectory(prefix="plugserve-ranks-")
        self._channel = RankChannel(f"ipc://{self._folder.name}", context.num_ranks, context.on_message)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._is_stopping = False

    def place(self) -> RankPlaces:
        places = tuple(RankPlace("this machine", rank) for rank in range(self._num_ranks))
        return RankPlaces(f"file://{self._folder.name}/rendezvous", places)

    def start(self, jobs: Sequence[bytes]) -> None:
        for door, job in zip(self._channel.doors, jobs, strict=True):
            command = [sys.executable, "-m", "plugserve.plugins.executors.mp_rank"]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            assert process.stdin is not None
            process.stdin.write(msgspec.json.encode(door) + b"\n" + job + b"\n")
            process.stdin.flush()
            self._processes.append(process)
            name = f"rank-{door.rank}-watch"
            threading.Thread(target=self._watch, args=(door.rank, process), name=name, daemon=True).start()
            log.info("rank started rank=%d of=%d pid=%d", door.rank, self._num_ranks, process.pid)

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
        self._context.on_end(rank, end)

    @property
    def pids(self) -> list[int]:
        """Of the other ranks' processes."""
        return [process.pid for process in self._processes]

    def send(self, call: Sequence[bytes]) -> None:
        self._channel.send(call)

    def stop(self) -> None:
        self._is_stopping = True
        for process in self._processes:
            try:
                process.wait(_LEAVING_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdin is not None
            process.stdin.close()
        self._channel.close()
        self._folder.cleanup()


@hookimpl
def plugserve_executors() -> Mapping[str, ExecutorFactory]:
    return {"mp": ProcessExecutor}
