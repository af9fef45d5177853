"""The Ray actor of a rank: one process on one of the cluster's nodes, whose name and logs Ray's tools show."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

from plugserve.core.contracts.executor import RankEnd
from plugserve.core.wire.rank_channel import Door, RankChannelEnd

_SIOCGIFADDR = 0x8915


class NodeFacts(msgspec.Struct, frozen=True):
    """What rank 0 compares between nodes. gpu_ids are those that Ray gave to the actor."""

    pid: int
    versions: dict[str, str]
    has_model: bool
    gpu_ids: tuple[str, ...]


class RankActor:
    """name is the actor's; Ray puts it before each line of its log."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name

    def facts(self, model_path: str) -> NodeFacts:
        import ray

        gpu_ids = tuple(str(one) for one in ray.get_runtime_context().get_accelerator_ids().get("GPU", ()))
        return NodeFacts(os.getpid(), versions(), Path(model_path).exists(), gpu_ids)

    def run(self, job: bytes, door: Door, address: str) -> RankEnd | None:
        """The rank's whole life. address is this node's, by which other nodes see it."""
        use_interface_of(address)
        link = RankChannelEnd(door)
        end: RankEnd | None = import_module("plugserve").run_rank(job, link)  # by its public name
        return end


def versions() -> dict[str, str]:
    """Of what ranks have to agree on."""
    found = {"python": ".".join(map(str, sys.version_info[:2]))}
    for package in ("plugserve", "torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def use_interface_of(address: str) -> None:
    """Let gloo and NCCL use the network interface that has this address, unless the user has named one."""
    interface = interface_of(address)
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)


def interface_of(address: str) -> str | None:
    """The interface with this IPv4 address, on Linux; None elsewhere and where none has it."""
    if not sys.platform.startswith("linux"):
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request: Any = struct.pack("256s", name.encode()[:15])
            try:
                found = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
            except OSError:  # it has no IPv4 address
                continue
            if socket.inet_ntoa(found[20:24]) == address:
                return name
    return None
