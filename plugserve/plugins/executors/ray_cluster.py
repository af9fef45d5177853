"""What the executor does with Ray: it joins a cluster, reserves a bundle for each rank, and starts actors in them."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from plugserve.core.errors import ConfigError, one_line

log = logging.getLogger(__name__)

_OBJECT_STORE_BYTES: Final = 100_000_000  # nothing large passes through Ray
_SOON_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Seat:
    """A bundle of the placement group, and the address of its node."""

    bundle: int
    address: str


class RayCluster:
    """Joins the cluster at address, or that of RAY_ADDRESS, or the one of this machine; starts one if there is none.
    num_ranks bundles are needed, of a GPU each for device cuda, and for auto where this node has GPUs. Raises
    ConfigError with one line."""

    def __init__(self, address: str | None, num_ranks: int, device: str) -> None:
        _use_token()
        try:
            import ray
        except ImportError:
            raise ConfigError("--distributed-executor-backend ray needs Ray: pip install 'plugserve[ray]'") from None
        self._ray: Any = ray
        self._num_ranks = num_ranks
        self._group: Any = None
        with _own_signals():
            self._join(address or os.environ.get("RAY_ADDRESS"))
        self._own_id: str = ray.get_runtime_context().get_node_id()
        own = self._nodes()[self._own_id]
        self._own_address: str = own["NodeManagerAddress"]
        has_gpus = own["Resources"].get("GPU", 0) > 0
        self._resource = "GPU" if device.startswith("cuda") or (device == "auto" and has_gpus) else "CPU"

    def _join(self, address: str | None) -> None:
        ray, common = self._ray, {"configure_logging": False, "log_to_driver": True}
        try:
            ray.init(address=address or "auto", **common)
        except Exception as error:
            if address is not None or not isinstance(error, ConnectionError):
                where = address or "of this machine"
                raise ConfigError(f"the Ray cluster {where} can't be joined: {one_line(error)}") from None
            log.warning("no Ray cluster runs on this machine, and neither --ray.address nor RAY_ADDRESS names one: "
                        "a local one is started cpus=%d", self._num_ranks)  # fmt: skip
            ray.init(address="local", num_cpus=self._num_ranks, object_store_memory=_OBJECT_STORE_BYTES,
                     include_dashboard=False, **common)  # fmt: skip

    def _nodes(self) -> dict[str, Any]:
        return {node["NodeID"]: node for node in self._ray.nodes() if node["Alive"]}

    def reserve(self, limit_s: float) -> list[Seat]:
        """A bundle for each rank: the first on this node, the others here if they fit, else on as few nodes as Ray can;
        ranks of one node follow each other. Waits up to limit_s for nodes."""
        bundles: list[dict[str, float]] = [{self._resource: 1} for _ in range(self._num_ranks)]
        bundles[0][f"node:{self._own_address}"] = 0.001
        self._group = self._ray.util.placement_group(bundles, strategy="PACK")
        if not self._group.wait(_SOON_S):
            log.warning("Ray has no place for all ranks yet, waiting: %s; limit_s=%.0f", self._wanted(), limit_s)
            if not self._group.wait(limit_s):
                raise ConfigError(
                    f"Ray had no place for all ranks within {limit_s:.0f} s (--ray.wait-s): {self._wanted()}; "
                    "start `ray start --address ...` on another node, or free some"
                )
        nodes, table = self._nodes(), self._ray.util.placement_group_table(self._group)
        by_bundle: dict[int, str] = table["bundles_to_node_id"]
        order = sorted(by_bundle, key=lambda bundle: (bundle > 0, by_bundle[bundle] != self._own_id, by_bundle[bundle]))
        return [Seat(bundle, nodes[by_bundle[bundle]]["NodeManagerAddress"]) for bundle in order]

    def _wanted(self) -> str:
        nodes = self._nodes().values()
        there = ", ".join(
            f"{node['NodeManagerAddress']} has {node['Resources'].get(self._resource, 0):g}" for node in nodes
        )
        return f"it needs {self._num_ranks} free {self._resource}s, one of them on {self._own_address} ({there} in all)"

    def start_actor(self, kind: type, name: str, seat: Seat) -> Any:
        """An actor in a seat, of kind(name)."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=seat.bundle)
        resources = {"num_gpus": 1, "num_cpus": 0} if self._resource == "GPU" else {"num_cpus": 1}
        remote: Any = self._ray.remote(kind).options(
            name=name, scheduling_strategy=strategy, max_restarts=0, **resources
        )
        return remote.remote(name)

    def get(self, references: Sequence[Any]) -> list[Any]:
        """Raises ConfigError for an actor that can't start."""
        try:
            return list(self._ray.get(list(references)))
        except self._ray.exceptions.RayError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise ConfigError(f"a rank can't start on its node: {lines[-1]}") from error

    def leave(self, runs: Sequence[Any], limit_s: float) -> None:
        """Wait for what runs, and give everything back."""
        if runs:
            self._ray.wait(list(runs), num_returns=len(runs), timeout=limit_s)
        self._ray.util.remove_placement_group(self._group)
        self._ray.shutdown()


def _use_token() -> None:
    """Ray reads it when it is imported. `ray start` asks for a token where there is one; so a driver has to show it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    path = os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token"
    if "RAY_AUTH_TOKEN" in os.environ or Path(path).expanduser().is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep this process's signal handlers, where Ray installs its own."""
    is_main = threading.current_thread() is threading.main_thread()
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if is_main}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
