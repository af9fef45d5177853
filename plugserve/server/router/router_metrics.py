"""The metrics of a router: requests, failures and choices by upstream."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from plugserve.server.router.fleet import Fleet
from plugserve.server.router.policies import Choice
from plugserve.server.router.prefix_blocks import BLOCK_BYTES

_PREFIX: Final = "plugserve_router"
_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class RouterMetrics:
    """Counters of one router; its state is read at each scrape."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.http_requests = Counter(
            f"{_PREFIX}_http_requests", "HTTP requests answered.", ("status",), registry=registry
        )
        self.answers = Counter(
            f"{_PREFIX}_upstream_requests", "Requests that an upstream answered.", ("upstream", "status"),
            registry=registry,
        )  # fmt: skip
        self.failures = Counter(
            f"{_PREFIX}_upstream_failures",
            "Requests that an upstream didn't answer to the end: connect, busy (503 or 502 with Retry-After), lost "
            "(before the answer), broken (within it).",
            ("upstream", "kind"),
            registry=registry,
        )
        self.retries = Counter(
            f"{_PREFIX}_retries", "Requests that were sent to another upstream.", ("reason",), registry=registry
        )
        self.seconds_to_head = Histogram(
            f"{_PREFIX}_upstream_seconds", "Time until an upstream began to answer.", ("upstream",),
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._choices = Counter(
            f"{_PREFIX}_choices", "Choices of an upstream, by policy or, for prefix, by reason.", ("reason",),
            registry=registry,
        )  # fmt: skip
        self._prefix_bytes = Counter(
            f"{_PREFIX}_prefix_bytes", "Bytes of prompts' beginnings in full blocks.", registry=registry
        )
        self._matched_bytes = Counter(
            f"{_PREFIX}_prefix_hit_bytes", "Those that the chosen upstream was known to hold.", registry=registry
        )
        self._up = Gauge(f"{_PREFIX}_upstream_up", "1 while requests are sent to it.", ("upstream",), registry=registry)
        self._in_flight = Gauge(
            f"{_PREFIX}_upstream_in_flight", "Requests that it serves now.", ("upstream",), registry=registry
        )
        self._connections = Gauge(
            f"{_PREFIX}_upstream_connections", "Open connections to it.", ("upstream",), registry=registry
        )

    def chosen(self, choice: Choice, num_blocks: int) -> None:
        """An upstream was chosen for a request with so many blocks."""
        self._choices.labels(choice.reason).inc()
        self._prefix_bytes.inc(num_blocks * BLOCK_BYTES)
        self._matched_bytes.inc(choice.num_matched * BLOCK_BYTES)

    def render(self, fleet: Fleet) -> bytes:
        """The Prometheus text."""
        for upstream in fleet:
            self._up.labels(upstream.name).set(upstream.is_up)
            self._in_flight.labels(upstream.name).set(upstream.num_in_flight)
            self._connections.labels(upstream.name).set(upstream.client.num_connections)
        return generate_latest(self._registry)
