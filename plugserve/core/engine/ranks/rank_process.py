"""The process of a rank above 0: loads its share of the model, and makes every call that rank 0 makes.

It ends when rank 0's process does, and on its own first failed step: a rank that misses one call can't go on, since the
others wait for it. Its last line on standard output says why, as RankEnd.
"""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import zmq

from plugserve.core.contracts.runner import ModelRunner
from plugserve.core.engine.ranks.rank_calls import CLOSE, RepeatedCalls
from plugserve.core.engine.ranks.rank_order import RankOrder
from plugserve.core.engine.strategies import EngineStrategies
from plugserve.core.errors import UserError
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.settings import Settings

log = logging.getLogger(__name__)


class RankEnd(msgspec.Struct):
    """Why a rank's process ends."""

    message: str
    is_user_error: bool = False


def run_rank(settings: Settings, order: RankOrder) -> int:
    """Exit code: 0 after rank 0 has closed its runner, 2 for the user's fault, 1 for other failures."""
    try:
        host = PluginHost.load(settings.selection())
        host.configure(settings)
        strategies = EngineStrategies(settings, host, order.source)
        runner = strategies.make_runner(order.placement)
        runner.load()
        gc.collect()
        gc.freeze()
        _follow(runner, strategies.read_adapter, order.calls)
    except UserError as error:
        _say(RankEnd(str(error), is_user_error=True))
        return 2
    except Exception as error:
        log.exception("rank failed rank=%d", order.rank)
        _say(RankEnd(f"{type(error).__name__}: {error}"))
        return 1
    return 0


def _follow(runner: ModelRunner, read_adapter: Callable[[Path], Any] | None, address: str) -> None:
    calls = RepeatedCalls(runner, read_adapter)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.PULL)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.connect(address)
    while (call := socket.recv_multipart())[0] != CLOSE:
        result = calls.repeat(call)
        if result is not None and result.has_failed:
            raise RuntimeError(next(iter(result.failed.values())))
    runner.close()
    socket.close()
    context.term()


def _say(end: RankEnd) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(end) + b"\n")
    sys.stdout.buffer.flush()
