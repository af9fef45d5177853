"""A request as the hooks of a server worker see it."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class RequestView:
    """A client's request as request hooks see it. body is the parsed JSON; headers are lower-case.

    id is what answers and logs show; a client may choose it, so two requests may share one. key is the server's own:
    unguessable, never used again; keep state of a request under it."""

    id: str
    path: str
    method: str
    headers: Mapping[str, str]
    client: str
    model: str | None = None
    body: Mapping[str, Any] | None = None
    key: str = field(default_factory=lambda: secrets.token_hex(16))


@dataclass(frozen=True, slots=True)
class Refusal:
    """plugserve_authorize's refusal: an HTTP status from 400 to 599 (401, 403, 429, ...) and one line for the client.
    Another status raises ValueError."""

    status: int
    message: str
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        is_number = isinstance(self.status, int) and not isinstance(self.status, bool)
        if not is_number or not 400 <= self.status <= 599:
            raise ValueError(f"a Refusal's status must be a number from 400 to 599, got {self.status!r}")


@dataclass(frozen=True, slots=True)
class RequestUsage:
    """num_reasoning_tokens are those of num_generated_tokens that were thinking, None where they are not counted."""

    num_prompt_tokens: int
    num_generated_tokens: int
    num_cached_tokens: int = 0
    num_reasoning_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class RequestTimings:
    """Seconds, from the moment the request was read. first_token_s is None when no token came."""

    total_s: float
    queue_s: float = 0.0
    first_token_s: float | None = None
    finish_reason: str | None = None
