"""A rank above 0, run by the engine's process as `python -m plugserve.core.engine.ranks`; its order comes by standard
input."""

from __future__ import annotations

import sys

import msgspec

from plugserve.core.engine.ranks.rank_order import RankOrder
from plugserve.core.engine.ranks.rank_process import run_rank
from plugserve.core.settings.log_file import log_file_of
from plugserve.core.settings.log_setup import set_up_logging
from plugserve.core.wire.child_process import die_with_parent
from plugserve.core.wire.handed_settings import receive_line, receive_settings


def main() -> int:
    settings = receive_settings()
    order = msgspec.json.decode(receive_line(), type=RankOrder)
    die_with_parent()
    level = "debug" if settings.log_level == "debug" else "warning"  # rank 0 says what all ranks do
    set_up_logging(level, settings.log_format, log_file_of(settings))
    return run_rank(settings, order)


if __name__ == "__main__":
    sys.exit(main())
