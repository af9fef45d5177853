"""Metrics of several processes: sums, restarts, dead processes, exemplars, and the text that Prometheus reads."""

import math

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_families
from prometheus_client.parser import text_string_to_metric_families

from plugserve.core.metrics import metric_store
from plugserve.core.metrics.exposition import Exposition, Sample, Shown
from plugserve.core.metrics.metric_handles import Counter, Gauge, Histogram
from plugserve.core.metrics.metric_store import CATALOGUE, MetricStore
from plugserve.core.metrics.store_reader import StoreReader

TRACE = "0af7651916cd43dd8448eb211c80319c"


def end(store):
    """The process of store ends: its lock is released."""
    import os

    os.close(store._catalogue)


def values(reader, name):
    (reading,) = [one for one in reader.read() if one.family.name == name]
    return {key: cells.tolist() for key, cells in reading.series.items()}


def shown(reader, **options):
    families = []
    for one in reader.read(**options):
        samples = [
            Sample(
                tuple(zip(one.family.labels, key, strict=True)),
                cells if one.family.buckets else cells[0],
                one.exemplars.get(key, {}),
            )
            for key, cells in one.series.items()
        ]
        families.append(Shown(one.family.name, one.family.kind, one.family.help, samples, one.family.buckets))
    return families


def test_counts_of_processes_are_summed(tmp_path):
    stores = [MetricStore(tmp_path / name) for name in ("worker-0", "worker-1")]
    reader = StoreReader(stores[0], tmp_path)
    for number, store in enumerate(stores, 1):
        Counter(store, "c", "C.", ("model",)).labels("m").inc(number)
        Gauge(store, "g", "G.").set(number)
        Histogram(store, "h", "H.", (1.0, 10.0)).observe(5.0 * number)
    assert values(reader, "c") == {("m",): [3.0]}
    assert values(reader, "g") == {(): [3.0]}
    assert values(reader, "h") == {(): [0.0, 2.0, 0.0, 15.0]}
    Counter(stores[1], "c", "C.", ("model",)).labels(model="later").inc()
    assert values(reader, "c")["later",] == [1.0], "series that appear after the first scrape are followed"


def test_process_that_replaces_another_goes_on_counting_and_forgets_gauges(tmp_path):
    first, other = MetricStore(tmp_path / "worker-0"), MetricStore(tmp_path / "worker-1")
    reader = StoreReader(other, tmp_path)
    Counter(first, "c", "C.").inc(2)
    Gauge(first, "g", "G.").set(7)
    Gauge(other, "g", "G.").set(1)
    end(first)
    assert values(reader, "c") == {(): [2.0]}, "what a dead process has counted stays"
    assert values(reader, "g") == {(): [1.0]}, "its gauges don't"
    with (tmp_path / f"worker-0{CATALOGUE}").open("ab") as file:
        file.write(b'[0,17,["torn')
    second = MetricStore(tmp_path / "worker-0")
    Counter(second, "c", "C.").inc(3)
    Gauge(second, "g", "G.")
    assert values(reader, "c") == {(): [5.0]}
    assert values(reader, "g") == {(): [1.0]}
    assert len(list(tmp_path.iterdir())) == 4, "no file of a dead process is left behind"


def test_two_processes_of_one_role_have_files_of_their_own(tmp_path):
    stores = [MetricStore(tmp_path / "engine-0") for _ in range(2)]
    for store in stores:
        Counter(store, "c", "C.").inc()
    assert values(StoreReader(stores[0], tmp_path), "c") == {(): [2.0]}


def test_series_beyond_the_memory_are_not_shown(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(metric_store, "_NUM_CELLS", 1024)
    store = MetricStore()
    counter = Counter(store, "c", "C.", ("user",))
    for user in range(2000):
        counter.labels(str(user)).inc()
    assert len(values(StoreReader(store), "c")) == 1023
    assert all(cells == [1.0] for cells in values(StoreReader(store), "c").values())
    assert caplog.text.count("too many values of labels") == 1


@pytest.mark.parametrize(("value", "bucket"), [(0.0, 0), (1.0, 0), (1.1, 1), (10.0, 1), (11.0, 2), (math.inf, 2)])
def test_value_falls_into_the_bucket_that_bounds_it(value, bucket):
    store = MetricStore()
    Histogram(store, "h", "H.", (1.0, 10.0)).observe(value)
    (cells,) = values(StoreReader(store), "h").values()
    assert cells[:3] == [float(index == bucket) for index in range(3)]


def test_misuse_is_refused():
    store = MetricStore()
    counter = Counter(store, "c", "C.", ("model",))
    for wrong in (
        lambda: counter.inc(),
        lambda: counter.labels("m").inc(-1),
        lambda: counter.labels("m").inc(math.nan),
        lambda: counter.labels(),
        lambda: counter.labels(user="x"),
        lambda: Counter(store, "c", "Another."),
    ):
        with pytest.raises(ValueError, match="c"):
            wrong()


def test_text_is_what_prometheus_reads():
    store = MetricStore()
    Counter(store, "vllm:c", 'With "quotes"\nand \\.', ("model",)).labels('a"b\\c\nd').inc(2)
    Histogram(store, "vllm:h_total", "H.", (0.5, 1.0), ("model",)).labels("m").observe(0.7)
    Gauge(store, "g", "G.").set(math.nan)
    families = list(text_string_to_metric_families(Exposition().write(shown(StoreReader(store))).decode()))
    assert {one.name: one.type for one in families} == {"vllm:c": "counter", "vllm:h_total": "histogram", "g": "gauge"}
    assert families[0].samples[0].labels == {"model": 'a"b\\c\nd'}
    assert [(one.name, one.labels.get("le"), one.value) for one in families[1].samples] == [
        ("vllm:h_total_bucket", "0.5", 0.0),
        ("vllm:h_total_bucket", "1.0", 1.0),
        ("vllm:h_total_bucket", "+Inf", 1.0),
        ("vllm:h_total_count", None, 1.0),
        ("vllm:h_total_sum", None, 0.7),
    ]


def test_newest_traced_value_of_a_bucket_is_its_exemplar(tmp_path):
    stores = [MetricStore(tmp_path / name) for name in ("worker-0", "worker-1")]
    for store, trace, value in zip(stores, ("1" * 32, TRACE), (0.6, 0.7), strict=True):
        histogram = Histogram(store, "h", "H.", (0.5, 1.0))
        histogram.observe(value, trace)
        histogram.observe(0.1)
    reader = StoreReader(stores[0], tmp_path)
    text = Exposition().write(shown(reader, with_exemplars=True), is_open=True).decode()
    assert text.endswith("# EOF\n")
    (family,) = open_families(text)
    exemplars = {one.labels["le"]: one.exemplar for one in family.samples if one.name == "h_bucket"}
    assert (exemplars["1.0"].labels, exemplars["1.0"].value) == ({"trace_id": TRACE}, 0.7)
    assert exemplars["0.5"] is None, "a value without a trace is no exemplar"
    assert "trace_id" not in Exposition().write(shown(reader)).decode()
