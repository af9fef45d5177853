"""Settings of `plugserve route`, which no other command reads."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator

from plugserve.core.settings.setting_groups import ROUTER
from plugserve.core.settings.setting_types import (
    CountFromZero,
    DeclaredSettings,
    Positive,
    Secrets,
    Texts,
    setting,
)

RoutingPolicy = Annotated[
    Literal["prefix", "least-loaded", "round-robin"],
    BeforeValidator(lambda value: value.strip().lower().replace("_", "-") if isinstance(value, str) else value),
]


class RouterSettings(DeclaredSettings):
    """The servers behind a router, and how one of them is chosen."""

    upstream: Texts = setting(
        [],
        ROUTER,
        "Server that requests are sent to; repeat it for several.",
        "http://HOST:PORT or https://HOST:PORT, or NAME=URL",
        metavar="[NAME=]URL",
    )
    upstream_key: Secrets = setting(
        [],
        ROUTER,
        "API key of all upstreams, or of one as NAME=KEY. Better as PLUGSERVE_UPSTREAM_KEY than as a flag.",
        "a key, or NAME=KEY",
        metavar="[NAME=]KEY",
        is_secret=True,
    )
    policy: RoutingPolicy = setting(
        "prefix",
        ROUTER,
        "How an upstream is chosen among those that serve a request's model.",
        "one of prefix, least-loaded, round-robin",
        metavar="POLICY",
    )
    affinity_slack: CountFromZero = setting(
        8,
        ROUTER,
        "With --policy prefix: requests in flight that the upstream with a request's beginning may have more than the "
        "least loaded one.",
        "a whole number of at least 0",
        metavar="N",
    )
    probe_interval: Positive = setting(
        5.0, ROUTER, "Seconds between two probes of an upstream's health and models.", "a number above 0", metavar="S"
    )
    upstream_connect_timeout: Positive = setting(
        5.0, ROUTER, "Seconds in which an upstream must accept a connection.", "a number above 0", metavar="S"
    )
    upstream_timeout: Positive = setting(
        600.0,
        ROUTER,
        "Seconds without a byte of an answer after which an upstream is taken to have failed.",
        "a number above 0",
        metavar="S",
    )
