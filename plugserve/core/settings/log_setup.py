"""Sets logging up, once a process: one line an event on standard error. Knows nothing of what is logged."""

from __future__ import annotations

import logging
import sys

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_TIME = "%Y-%m-%d %H:%M:%S"


def set_up_logging(level: str = "info") -> None:
    """plugserve and plugins log from level on, other libraries from warning on (or level, where that is stricter).

    Calling it again replaces the level and leaves one handler.
    """
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _StandardError)]:
        root.removeHandler(handler)
    handler = _StandardError(sys.stderr)
    handler.setFormatter(logging.Formatter(_FORMAT, _TIME))
    root.addHandler(handler)
    number = logging.getLevelNamesMapping()[level.upper()]
    root.setLevel(max(number, logging.WARNING))
    logging.getLogger("plugserve").setLevel(number)
    logging.captureWarnings(True)


class _StandardError(logging.StreamHandler):  # type: ignore[type-arg]
    """The handler that set_up_logging installs, told apart from those of others."""
