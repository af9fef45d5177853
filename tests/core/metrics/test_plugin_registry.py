"""Plugins' own metrics: names, processes, and what a wrong one says."""

import pytest

from plugserve import ConfigError
from plugserve.core.metrics.metric_store import MetricStore
from plugserve.core.metrics.plugin_registry import PluginRegistry
from plugserve.core.metrics.store_reader import StoreReader
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.selection import Selection
from plugserve.core.settings.settings import Settings

SOURCE = """
from plugserve import hookimpl

@hookimpl
def plugserve_metrics(metrics):
    global hits
    hits = metrics.counter({name!r}, "Hits.", labels=["kind"])
"""


@pytest.fixture
def load(tmp_path):
    def load(name, file="my-plugin.py"):
        path = tmp_path / file
        path.write_text(SOURCE.format(name=name))
        return PluginHost.load(Selection(plugin=(str(path),)))

    return load


def test_plugin_counts_in_every_process_and_the_sum_is_shown(load, tmp_path):
    host = load("my_plugin_hits")
    for role in ("worker-0", "engine-0"):
        store = MetricStore(tmp_path / role)
        host.configure(Settings(), store)
        host.plugins["my-plugin"].object.hits.labels(kind="a").inc()
    (reading,) = StoreReader(store, tmp_path).read()
    assert (reading.family.name, reading.series["a",].tolist()) == ("my_plugin_hits", [2.0])


def test_name_without_the_plugins_stops_the_start_with_its_name(load):
    with pytest.raises(ConfigError, match=r"plugin 'my-plugin': the metric 'hits' must begin with 'my_plugin_'"):
        load("hits").configure(Settings())


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda metrics: metrics.counter("p_hits_total", "Hits."), "_total"),
        (lambda metrics: metrics.counter("p_", "Hits."), "begin with 'p_'"),
        (lambda metrics: metrics.counter("p_a-b", "Hits."), "letters"),
        (lambda metrics: metrics.gauge("plugserve_kv_blocks", "Ours."), "begin with 'p_'"),
        (lambda metrics: metrics.gauge("p_hits", " "), "help"),
        (lambda metrics: metrics.gauge("p_hits", "Hits.", labels="kind"), "list"),
        (lambda metrics: metrics.gauge("p_hits", "Hits.", labels=["le"]), "'le'"),
        (lambda metrics: metrics.gauge("p_hits", "Hits.", labels=["__x"]), "'__x'"),
        (lambda metrics: metrics.histogram("p_hits", "Hits.", buckets=[2, 1]), "ascend"),
        (lambda metrics: metrics.histogram("p_hits", "Hits.", buckets=[]), "ascend"),
        (lambda metrics: [metrics.gauge("p_hits", "Hits.") for _ in range(2)], "twice"),
    ],
)
def test_metric_that_prometheus_would_refuse_is_refused(call, word):
    with pytest.raises(ConfigError, match=word):
        call(PluginRegistry("p", MetricStore()))
