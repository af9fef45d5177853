"""The plugin: hooks of the server, and a metric. buckets.py holds the token buckets and doesn't import plugserve."""

import hashlib
import math
import time
from collections.abc import Callable, Mapping

from plugserve import CounterValue, PluginMetrics, Refusal, RequestUsage, RequestView, SettingsView, hookimpl
from plugserve_token_rate.buckets import TokenBuckets
from plugserve_token_rate.options import TokenRateOptions


class TokenRate:
    """One object per worker, with the hooks as its methods; each worker has its own buckets."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets = TokenBuckets(TokenRateOptions().tokens_per_minute, TokenRateOptions().burst_tokens)
        self._refusals: CounterValue | None = None

    @hookimpl
    def plugserve_options(self) -> type[TokenRateOptions]:
        return TokenRateOptions

    @hookimpl
    def plugserve_configure(self, config: SettingsView) -> None:
        options = config.plugin_options("token-rate", TokenRateOptions)
        # Connections spread over the workers; each counts separately and grants its share.
        share = 1 / max(1, config.api_workers)
        self._buckets = TokenBuckets(options.tokens_per_minute * share, options.burst_tokens * share)

    @hookimpl
    def plugserve_metrics(self, metrics: PluginMetrics) -> None:
        self._refusals = metrics.counter("token_rate_refusals", "Requests refused because a key's bucket was empty.")

    @hookimpl
    def plugserve_authorize(self, request: RequestView) -> Refusal | None:
        """Refuses a key while its bucket is empty."""
        wait_s = self._buckets.wait_s(key_of(request.headers), self._clock())
        if wait_s <= 0:
            return None
        if self._refusals is not None:
            self._refusals.inc()
        seconds = math.ceil(wait_s)
        return Refusal(
            429,
            f"this key has used its tokens for now; try again in {seconds} s",
            code="rate_limit_exceeded",
            headers={"Retry-After": str(seconds)},
        )

    @hookimpl
    def plugserve_request_finished(self, request: RequestView, usage: RequestUsage) -> None:
        """Takes the computed tokens from the bucket, also of aborted requests; cached tokens are free."""
        num_tokens = usage.num_prompt_tokens - usage.num_cached_tokens + usage.num_generated_tokens
        self._buckets.spend(key_of(request.headers), num_tokens, self._clock())


def key_of(headers: Mapping[str, str]) -> str:
    """A digest of the request's API key, so that keys aren't kept in memory; "" without a key."""
    scheme, _, key = headers.get("authorization", "").strip().partition(" ")
    key = key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "").strip()
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest() if key else ""


plugin = TokenRate()
