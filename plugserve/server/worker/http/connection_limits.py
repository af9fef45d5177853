"""Limits of one worker's connections: times, number, bytes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """header_timeout_s and body_timeout_s count from the first byte to the last, even if bytes keep arriving.

    keep_alive_s: between two requests of a connection. write_timeout_s: for a client that does not read its answer.
    discard_s, discard_pause_s: for dropping the rest of a refused body: in total, and between two pieces.
    """

    max_connections: int = 4096
    max_body_bytes_in_flight: int = 512 * 2**20
    header_timeout_s: float = 30.0
    body_timeout_s: float = 300.0
    keep_alive_s: float = 120.0
    write_timeout_s: float = 300.0
    discard_s: float = 30.0
    discard_pause_s: float = 5.0
