"""The work of a rank above 0: loads its share of the model, and makes every call that rank 0 makes.

It ends when it is asked to, and on its own first failed step: a rank that misses one call can't go on, since the others
wait for it.
"""

from __future__ import annotations

import gc
import logging

from plugserve.core.contracts.executor import RankEnd, RankLink
from plugserve.core.contracts.parallel import RankPlacement
from plugserve.core.contracts.runner import ModelRunner
from plugserve.core.engine.ranks.rank_calls import CLOSE, RepeatedCalls, encode_result
from plugserve.core.engine.ranks.rank_heart import RankHeart
from plugserve.core.engine.ranks.rank_order import RankOrder, decode_job
from plugserve.core.engine.strategies import EngineStrategies
from plugserve.core.errors import UserError
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.log_file import log_file_of
from plugserve.core.settings.log_setup import set_up_logging
from plugserve.core.settings.settings import Settings

log = logging.getLogger(__name__)


def run_rank(job: bytes, link: RankLink) -> RankEnd | None:
    """Run the rank of this process until rank 0 asks it to end: None; or until it fails. job comes from Executor.start.
    Sets up this process's logging. The process should end afterwards."""
    settings, order = decode_job(job)
    level = "debug" if settings.log_level == "debug" else "warning"  # rank 0 says what all ranks do
    set_up_logging(level, settings.log_format, log_file_of(settings))
    heart = RankHeart(link)
    heart.start()
    try:
        _run(settings, order, link, heart)
    except UserError as error:
        return RankEnd(str(error), is_user_error=True)
    except Exception as error:
        log.exception("rank failed rank=%d", order.rank)
        return RankEnd(f"{type(error).__name__}: {error}")
    return None


def _run(settings: Settings, order: RankOrder, link: RankLink, heart: RankHeart) -> None:
    host = PluginHost.load(settings.selection())
    host.configure(settings)
    strategies = EngineStrategies(settings, host, order.source)
    runner = strategies.make_runner(order.placement)
    runner.load()
    gc.collect()
    gc.freeze()
    follow(runner, RepeatedCalls(runner, strategies.read_adapter), link, heart, order.placement)


def follow(
    runner: ModelRunner, calls: RepeatedCalls, link: RankLink, heart: RankHeart, placement: RankPlacement
) -> None:
    """Make the calls until rank 0 closes its runner. Raises RuntimeError for a step that failed here."""
    reports = placement.num_stages > 1 and placement.is_last_stage and placement.tensor_rank == 0
    heart.end()
    while (call := link.receive())[0] != CLOSE:
        heart.begin(call[0])
        result = calls.repeat(call)
        heart.end()
        if result is None:
            continue
        if result.has_failed or (result.failed and not placement.is_last_stage):  # others would go on without it
            raise RuntimeError(next(iter(result.failed.values())))
        if reports:
            link.send(encode_result(result))
    runner.close()
