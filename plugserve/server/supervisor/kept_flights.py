"""Keeps what engines had recorded when they died, for `plugserve replay`."""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from plugserve.core.errors import ConfigError
from plugserve.core.flight.flight_log import FlightLog

log = logging.getLogger(__name__)

SUFFIX: Final = ".flight"
_MOST_KEPT: Final = 10
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9._-]+")


class KeptFlights:
    """folder is made when the first file is kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, path: Path) -> Path | None:
        """Move the file of a dead engine into the folder, and remove the oldest ones there. None where there is none,
        or where it can't be kept, which is logged. Called in a thread."""
        try:
            flight = FlightLog(path)
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            when = time.strftime("%Y%m%d-%H%M%S")
            name = _NOT_IN_NAMES.sub("-", flight.facts.model)[-80:].strip("-.") or "model"
            kept = self._folder / f"{name}-{when}-{flight.facts.pid}{SUFFIX}"
            shutil.move(path, kept)
            self._remove_oldest()
        except FileNotFoundError:
            return None
        except (OSError, ConfigError) as error:
            log.warning("flight recorder's file is lost: %s", error)
            return None
        return kept

    def _remove_oldest(self) -> None:
        kept = sorted(self._folder.glob(f"*{SUFFIX}"), key=lambda one: one.stat().st_mtime)
        for path in kept[:-_MOST_KEPT]:
            path.unlink(missing_ok=True)


def check_flights_folder(path: str | None) -> None:
    """Make --flight-recorder-dir, if it is given. Raises ConfigError where nothing can be kept."""
    if path is None:
        return
    try:
        Path(path).mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--flight-recorder-dir {path} can't be used: {error.strerror}") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise ConfigError(f"--flight-recorder-dir {path} can't be written")


def flights_folder(given: str | None, environ: Mapping[str, str] = os.environ) -> Path:
    """--flight-recorder-dir, or a folder by the XDG base directories."""
    if given is not None:
        return Path(given)
    state = environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return Path(state) / "plugserve" / "flights"
