"""Ranks as actors of a Ray cluster, on one node or several: `--distributed-executor-backend ray`.

Ray places them (one bundle of a placement group for each rank), starts them, and says when one has died. Calls don't
pass through Ray, but through a channel over TCP, whose keys actors get as arguments.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from plugserve.core.contracts.executor import RankEnd, RankPlace, RankPlaces
from plugserve.core.contracts.factories import ExecutorContext, ExecutorFactory
from plugserve.core.errors import ConfigError, one_line
from plugserve.core.plugin_system.hookspecs import hookimpl
from plugserve.core.wire.rank_channel import RankChannel
from plugserve.plugins.executors.ray_cluster import RayCluster, Seat
from plugserve.plugins.executors.ray_rank import NodeFacts, RankActor, use_interface_of, versions

log = logging.getLogger(__name__)

_LEAVING_S: Final = 10.0
_CAUSE_S: Final = 0.3  # from a broken connection until Ray says why


class RayOptions(BaseModel):
    """Options of the plugin ray."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: str | None = Field(
        None,
        description="Address of the Ray cluster (10.0.0.1:6379). Without it RAY_ADDRESS, else the cluster that runs on "
        "this machine, else a new one of this machine alone.",
    )
    wait_s: float = Field(
        300, gt=0, description="Seconds to wait for nodes with enough free CPUs or GPUs before the start fails."
    )


class RayExecutor:
    """Rank 0 is this process, the driver of a Ray job. An actor that does nothing holds its bundle, so that Ray gives
    its CPU or GPU to no other job."""

    def __init__(self, context: ExecutorContext) -> None:
        self._context = context
        self._options: RayOptions = context.options
        self._cluster: RayCluster | None = None
        self._seats: list[Seat] = []
        self._actors: list[Any] = []
        self._facts: list[NodeFacts] = []
        self._channel: RankChannel | None = None
        self._runs: list[Any] = []
        self._is_stopping = False
        self._ending = threading.Lock()

    # ------------------------------------------------ placing

    def place(self) -> RankPlaces:
        self._cluster = cluster = RayCluster(
            self._options.address, self._context.num_ranks, self._context.config.device
        )
        self._seats = cluster.reserve(self._options.wait_s)
        names = [f"plugserve:{self._context.model}:rank{rank}" for rank in range(self._context.num_ranks)]
        self._actors = [
            cluster.start_actor(RankActor, name, seat) for name, seat in zip(names, self._seats, strict=True)
        ]
        self._facts = cluster.get([actor.facts.remote(str(self._context.source.path)) for actor in self._actors])
        self._check_nodes()
        self._take_gpus(self._facts[0].gpu_ids)
        address = self._seats[0].address
        use_interface_of(address)
        self._channel = RankChannel(
            f"tcp://{address}", self._context.num_ranks, self._context.on_message, self._note_broken
        )
        return RankPlaces(f"tcp://{address}:{_free_port(address)}", self._places())

    def _check_nodes(self) -> None:
        own = versions()
        for rank, (seat, facts) in enumerate(zip(self._seats, self._facts, strict=True)):
            for name, here in own.items():
                if facts.versions.get(name) != here:
                    raise ConfigError(
                        f"node {seat.address} has {name} {facts.versions.get(name)}, this one has {here}: install the "
                        "same version on all nodes"
                    )
            if not facts.has_model:
                raise ConfigError(
                    f"node {seat.address} has no {self._context.source.path}: each node reads the model from its own "
                    "disk; copy or download it there, to the same path"
                )
            log.info(
                "rank placed rank=%d node=%s pid=%d gpus=%s", rank, seat.address, facts.pid, ",".join(facts.gpu_ids)
            )

    @staticmethod
    def _take_gpus(gpu_ids: Sequence[str]) -> None:
        """The driver uses the GPU of its bundle; CUDA isn't initialised yet."""
        if gpu_ids:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpu_ids)

    def _places(self) -> tuple[RankPlace, ...]:
        """A process that has GPUs of Ray's sees them alone, from number 0 on."""
        return tuple(RankPlace(seat.address, 0) for seat in self._seats)

    # ------------------------------------------------ running

    def start(self, jobs: Sequence[bytes]) -> None:
        assert self._channel is not None
        for rank, (door, job) in enumerate(zip(self._channel.doors, jobs, strict=True), 1):
            self._runs.append(self._actors[rank].run.remote(job, door, self._seats[rank].address))
        threading.Thread(target=self._watch, name="ray-watch", daemon=True).start()

    def _watch(self) -> None:
        """Wait for the first rank that ends, which Ray knows by its actor's process or its node."""
        import ray

        ready, _ = ray.wait(self._runs, num_returns=1)
        rank = 1 + self._runs.index(ready[0])
        try:
            end: RankEnd | None = ray.get(ready[0])
        except Exception as error:
            end = RankEnd(f"{self._title(rank)} is lost: {_reason(error)}")
        if end is not None:
            self._end(rank, end)

    def _note_broken(self, rank: int) -> None:
        """On the channel's thread: the process has ended, or its machine doesn't answer, which Ray sees later."""
        time.sleep(_CAUSE_S)
        self._end(rank, RankEnd(f"{self._title(rank)} is lost: its connection broke"))

    def _end(self, rank: int, end: RankEnd) -> None:
        with self._ending:
            if not self._is_stopping:
                log.error("rank ended rank=%d node=%s: %s", rank, self._seats[rank].address, end.message)
                self._is_stopping = True
                self._context.on_end(rank, end)

    def _title(self, rank: int) -> str:
        where = f"pid {self._facts[rank].pid} on {self._seats[rank].address}"
        return f"rank {rank} of {self._context.num_ranks} ({where})"

    def send(self, call: Sequence[bytes]) -> None:
        assert self._channel is not None
        self._channel.send(call)

    def stop(self) -> None:
        assert self._channel is not None
        assert self._cluster is not None
        self._is_stopping = True
        self._channel.expect_ends()
        self._cluster.leave(self._runs, _LEAVING_S)
        self._channel.close()


def _free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def _reason(error: Exception) -> str:
    """One line of what Ray says, without its advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = lines[-1].partition(" Some common causes")[0] if lines else one_line(error)
    return f"{type(error).__name__}: {last}"


@hookimpl
def plugserve_options() -> type[BaseModel]:
    return RayOptions


@hookimpl
def plugserve_executors() -> Mapping[str, ExecutorFactory]:
    return {"ray": RayExecutor}
