"""One upstream: its state, its models, the requests in flight, and when it is asked again."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Literal

from plugserve.server.router.upstream_address import UpstreamAddress
from plugserve.server.router.upstream_client import UpstreamClient

logger = logging.getLogger(__name__)

State = Literal["unknown", "up", "down"]

_LEAST_PAUSE_S: Final = 0.5
_MOST_LOSSES: Final = 3  # in a row, after which an upstream that answers probes is left out for a while
_RANKS: Final = {"loading": 1, "unloaded": 2, "unloading": 2, "failed": 3, "dead": 3}
_MOST_NAMES: Final = 256
_owners = itertools.count(1)


class Upstream:
    """state is "up" once probes have found it well and know its models. owner is its number in the prefix table, a new
    one for each time that it comes up."""

    def __init__(self, address: UpstreamAddress, client: UpstreamClient, *, probe_interval_s: float) -> None:
        self.address = address
        self.client = client
        self.state: State = "unknown"
        self.reason = "not asked yet"
        self.models: dict[str, Mapping[str, Any]] = {}
        self._further_names: dict[str, None] = {}  # that it knows its models by, the oldest first
        self._asked_to_load: set[str] = set()  # since the last probe
        self.owner = next(_owners)
        self.num_in_flight = 0
        self.down_since_s: float | None = None
        self.wakes_probe = asyncio.Event()
        self._interval_s = probe_interval_s
        self._pause_s = _LEAST_PAUSE_S
        self._num_losses = 0
        self._left_out_until_s = 0.0

    @property
    def name(self) -> str:
        return self.address.name

    @property
    def is_up(self) -> bool:
        return self.state == "up"

    @property
    def first_model(self) -> str | None:
        """The model that it serves where a request names none."""
        return next(iter(self.models), None)

    def serves(self, name: str) -> bool:
        """It lists a model of that name, or has said that it knows one by it."""
        return name in self.models or name in self._further_names

    def loading_rank(self, name: str | None) -> int:
        """How soon it can serve a model: 0 now, as far as it says; 1 it is loading; 2 it isn't loaded; 3 it failed."""
        if name in self._asked_to_load:
            return 1
        status = self.models.get(name or "", {}).get("status")
        return _RANKS.get(str(status.get("value")), 0) if isinstance(status, dict) else 0

    def note_chosen(self, name: str | None) -> None:
        """A request for a model is sent to it. If that makes it load the model, others follow, until the next probe
        tells."""
        if name is not None and self.loading_rank(name) > 1:
            self._asked_to_load.add(name)

    def note_name(self, name: str) -> None:
        """It knows one of its models by a name that it doesn't list."""
        self._further_names[name] = None
        if len(self._further_names) > _MOST_NAMES:
            del self._further_names[next(iter(self._further_names))]

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        """Count a request while this upstream has it."""
        self.num_in_flight += 1
        try:
            yield
        finally:
            self.num_in_flight -= 1

    # ---- found by probes

    def note_well(self, models: Mapping[str, Mapping[str, Any]], now_s: float) -> None:
        """It answers probes and serves models."""
        if models.keys() != self.models.keys():
            self._further_names.clear()
            if self.is_up:
                logger.info("upstream %s serves %s", self.name, _listed(models))
        self.models = dict(models)
        self._asked_to_load.clear()
        if self.is_up or now_s < self._left_out_until_s:
            return
        logger.info("upstream %s is up; it serves %s", self.name, _listed(models))
        self.state, self.reason, self.down_since_s = "up", "", None
        self.owner = next(_owners)
        self._pause_s = _LEAST_PAUSE_S
        self._num_losses = 0

    def note_down(self, reason: str, now_s: float) -> None:
        """It can't serve requests now. Its models are remembered: it may come back."""
        is_news = self.state != "down" or self.reason != reason
        self.reason = reason
        if self.state != "down":
            self.down_since_s = now_s
            self._pause_s = _LEAST_PAUSE_S
            self.state = "down"
            self.client.close_idle()
        if is_news:
            logger.warning("upstream %s is down: %s; it is asked again in %.1f s", self.name, reason, self._pause_s)

    def next_pause_s(self) -> float:
        """The time until the next probe: the interval; while it is down twice as long each time, up to the interval."""
        if self.state == "up":
            return self._interval_s
        pause_s = min(self._pause_s, self._interval_s)
        self._pause_s *= 2
        return pause_s

    # ---- found by requests

    def note_busy(self) -> None:
        """It answered that it can't take requests now: it may be stopping."""
        self.wakes_probe.set()

    def note_lost(self, reason: str, now_s: float, *, is_last: bool) -> None:
        """A request's connection broke off. Ask whether it is well; after several in a row leave it out for a while,
        even if it says so - but not the last one that is up: the requests may be the cause."""
        self._num_losses += 1
        self.wakes_probe.set()
        if self._num_losses >= _MOST_LOSSES and self.is_up and not is_last:
            self._left_out_until_s = now_s + self._interval_s
            self.note_down(f"{self._num_losses} requests in a row broke off, the last one because {reason}", now_s)

    def note_answer(self) -> None:
        """A request was answered."""
        self._num_losses = 0

    def as_json(self) -> dict[str, Any]:
        """What the router's /health shows of it."""
        shown: dict[str, Any] = {"state": self.state, "in_flight": self.num_in_flight, "models": list(self.models)}
        return shown if self.is_up else shown | {"reason": self.reason}


def _listed(models: Mapping[str, Any]) -> str:
    return ", ".join(models) or "no model"
