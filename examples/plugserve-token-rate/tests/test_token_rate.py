"""The conformance cases for server plugins, and cases for keys, waiting times and counted tokens."""

import plugserve_token_rate
import pytest
from plugserve_token_rate import TokenRate, TokenRateOptions, key_of
from plugserve_token_rate.buckets import MOST_KEYS, TokenBuckets

from plugserve import RequestTimings, RequestUsage, RequestView
from plugserve.testing import ServerPluginConformance, load_plugin

ADA = {"authorization": "Bearer ada-key"}
BOB = {"x-api-key": "bob-key"}


class Config:
    """Settings with options of the plugin."""

    def __init__(self, api_workers=1, **options):
        self.api_workers = api_workers
        self.options = options

    def plugin_options(self, name, model):
        assert name == "token-rate"
        return model(**self.options)


class TestTokenRate(ServerPluginConformance):
    def make_plugin(self):
        return TokenRate()


@pytest.fixture
def clock():
    return [0.0]


@pytest.fixture
def plugin(clock):
    plugin = TokenRate(lambda: clock[0])
    plugin.plugserve_configure(Config(tokens_per_minute=600, burst_tokens=100))
    return plugin


def request(headers):
    return RequestView(id="r", path="/v1/completions", method="POST", headers=headers, client="127.0.0.1")


def spend(plugin, headers, *usage):
    plugin.plugserve_request_finished(request(headers), RequestUsage(*usage))


def test_entry_point_is_a_plugin_with_options():
    assert load_plugin(plugserve_token_rate.plugin).options is TokenRateOptions


def test_key_that_has_spent_its_tokens_waits_for_them(plugin, clock):
    assert plugin.plugserve_authorize(request(ADA)) is None
    spend(plugin, ADA, 90, 60)
    refusal = plugin.plugserve_authorize(request(ADA))
    assert (refusal.status, refusal.code) == (429, "rate_limit_exceeded")
    assert refusal.headers == {"Retry-After": "6"}  # 50 tokens of debt, 10 a second
    clock[0] = float(refusal.headers["Retry-After"])
    assert plugin.plugserve_authorize(request(ADA)) is None


def test_other_keys_are_unaffected(plugin):
    spend(plugin, ADA, 500, 0)
    assert plugin.plugserve_authorize(request(BOB)) is None
    assert plugin.plugserve_authorize(request({})) is None


def test_cached_tokens_are_free(plugin):
    spend(plugin, ADA, 150, 20, 100)
    assert plugin.plugserve_authorize(request(ADA)) is None
    spend(plugin, ADA, 150, 20, 100)
    assert plugin.plugserve_authorize(request(ADA)).status == 429


def test_bucket_holds_no_more_than_its_burst(plugin, clock):
    clock[0] = 1e6
    spend(plugin, ADA, 101, 0)
    assert plugin.plugserve_authorize(request(ADA)).status == 429


def test_workers_share_the_rate(plugin):
    plugin.plugserve_configure(Config(api_workers=4, tokens_per_minute=600, burst_tokens=100))
    spend(plugin, ADA, 25, 0)
    assert plugin.plugserve_authorize(request(ADA)).status == 429


def test_keys_are_told_apart_and_not_kept():
    assert key_of(ADA) == key_of({"authorization": "bearer   ada-key "})
    assert key_of(ADA) != key_of(BOB)
    assert "ada" not in key_of(ADA)
    assert key_of({"authorization": "Basic YTpi"}) == key_of({}) == ""


def test_full_buckets_are_dropped():
    buckets = TokenBuckets(60, 10)
    for number in range(MOST_KEYS):
        buckets.spend(f"key {number}", 5, 0.0)
    buckets.spend("one more", 5, 3600.0)
    assert list(buckets._levels) == ["one more"]


def test_timings_are_not_needed(plugin):
    """A hook implementation may omit arguments; plugserve passes those that it declares."""
    assert RequestTimings(total_s=1.0).finish_reason is None
    assert plugin.plugserve_request_finished.__code__.co_varnames[:3] == ("self", "request", "usage")
