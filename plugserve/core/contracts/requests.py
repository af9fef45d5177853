"""A request as the hooks of a server worker see it."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Identity:
    """The sender of a request: plugserve_authorize may return one, and a server with API keys has one for each key.

    name is shown as the user by schedulers, logs and traces. Requests of different tenants share nothing: stored
    responses belong to their tenant, and so do cached prefixes unless --share-prefix-cache is given. tenant is name
    unless it is given."""

    name: str
    tenant: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"an Identity's name must be a non-empty string, got {self.name!r}")

    @property
    def owner(self) -> str:
        """The tenant: the key under which stored responses and cached prefixes are kept."""
        return self.tenant or self.name


@dataclass(frozen=True, slots=True)
class RequestView:
    """A client's request as request hooks see it. body is the parsed JSON; headers are lower-case.

    id is shown in answers and logs; a client may choose it, so two requests may have the same. key is made by the
    server: unguessable and unique. state is a dict that all hooks of the request share; plugins keep what they need
    under their own name. identity is the sender, None if it is unknown."""

    id: str
    path: str
    method: str
    headers: Mapping[str, str]
    client: str
    model: str | None = None
    body: Mapping[str, Any] | None = None
    key: str = field(default_factory=lambda: secrets.token_hex(16))
    identity: Identity | None = None
    state: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def owner(self) -> str:
        """The sender's tenant, "" where the sender is unknown."""
        return self.identity.owner if self.identity is not None else ""


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


@dataclass(frozen=True, slots=True)
class RequestOutcome:
    """The outcome of a request. status is the HTTP status that was sent, None if the client disconnected before any.
    is_complete: the response was sent to its end. error is the exception of a failed request. usage and timings are
    None for requests that generate nothing."""

    status: int | None
    is_complete: bool
    error: BaseException | None = None
    usage: RequestUsage | None = None
    timings: RequestTimings | None = None
