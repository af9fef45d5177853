"""Limits of one worker's connections: times, number, bytes."""

from __future__ import annotations

from dataclasses import dataclass

from plugserve.core.settings.settings import Settings


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """header_timeout_s and body_timeout_s count from the first byte to the last, even if bytes keep arriving.

    keep_alive_s: between two requests of a connection. write_timeout_s: for a client that does not read its answer.
    discard_s, discard_pause_s: for dropping the rest of a refused body: in total, and between two pieces.
    num_descriptors: open files that each connection needs.
    """

    max_connections: int = 4096
    max_body_bytes_in_flight: int = 512 * 2**20
    header_timeout_s: float = 30.0
    body_timeout_s: float = 300.0
    keep_alive_s: float = 120.0
    write_timeout_s: float = 300.0
    discard_s: float = 30.0
    discard_pause_s: float = 5.0
    num_descriptors: int = 1


def connection_limits(settings: Settings, num_descriptors: int = 1) -> ConnectionLimits:
    """The limits that the settings give."""
    return ConnectionLimits(
        max_connections=settings.max_connections,
        max_body_bytes_in_flight=settings.max_body_bytes_in_flight,
        header_timeout_s=settings.header_timeout,
        body_timeout_s=settings.body_timeout,
        num_descriptors=num_descriptors,
    )
