"""What /metrics shows after known traffic."""

import os
import subprocess
import sys
from pathlib import Path

from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_families
from prometheus_client.parser import text_string_to_metric_families

from plugserve.core.contracts.engine_facts import EngineStats
from plugserve.core.metrics.metric_store import MetricStore
from plugserve.server.operations import engine_metrics, vllm_metrics
from plugserve.server.operations.engine_metrics import (
    COUNTERS,
    GAUGES,
    LABELLED,
    PLUGIN_COUNTERS,
    WORKERS,
    EngineSnapshot,
)
from plugserve.server.operations.metrics import FRONTEND, Metrics
from plugserve.server.operations.metrics_docs import every_family, tables
from plugserve.server.operations.objectives import Objectives
from plugserve.server.operations.request_metrics import COUNTERS as REQUEST_COUNTERS
from plugserve.server.operations.request_metrics import HISTOGRAMS
from plugserve.server.operations.tracing.tracer import NULL_TRACE, NullTracer
from plugserve.server.operations.vllm_metrics import NOTHING, OTHERS
from tests.server.conftest import running
from tests.server.fakes import FakeEngine, says, served


class OneTrace(NullTracer):
    """Every request belongs to one trace, which is recorded."""

    id = "0af7651916cd43dd8448eb211c80319c"

    def begin(self, headers, path=""):
        trace = type(NULL_TRACE)()
        trace.trace_id = self.id
        span = type(NULL_TRACE._span)()
        span.is_recording = True
        trace._span = span
        return trace


async def scrape(server):
    response = await server.client.get("/metrics")
    assert response.status_code == 200
    families = text_string_to_metric_families(response.text)
    return {(sample.name, *sorted(sample.labels.items())): sample.value for f in families for sample in f.samples}


MODEL = ("model_name", "fake/model")
ENGINE = ("engine", "0")
VLLM_NAMES = (Path(__file__).parent / "vllm_metric_names.txt").read_text().split()


async def test_request_metrics_are_exact(server):
    usage = (await server.chat()).json()["usage"]
    await server.complete_events(stop="world")
    await server.chat(model="none")
    values = await scrape(server)
    assert values["plugserve_prompt_tokens_total", MODEL] == usage["prompt_tokens"] + 2
    assert values["plugserve_generation_tokens_total", MODEL] == 4 + 2
    assert values["plugserve_request_success_total", ("finished_reason", "stop"), MODEL] == 2
    for name in (
        "time_to_first_token_seconds",
        "e2e_request_latency_seconds",
        "request_queue_time_seconds",
        "request_time_per_output_token_seconds",
        "request_prompt_tokens",
        "request_generation_tokens",
    ):
        assert values[f"plugserve_{name}_count", MODEL] == 2, name
    assert values["plugserve_inter_token_latency_seconds_count", MODEL] == 3 + 1
    assert values["plugserve_request_generation_tokens_sum", MODEL] == 6
    assert values["plugserve_request_queue_time_seconds_sum", MODEL] == 0.5


async def test_http_requests_are_counted_by_route_and_status(server):
    await server.chat()
    await server.chat(model="none")
    await server.client.get("/nothing/1")
    await server.client.get("/v1/models/a/b/c")
    values = await scrape(server)
    for path, status, count in (
        ("/v1/chat/completions", "200", 1),
        ("/v1/chat/completions", "404", 1),
        ("other", "404", 1),
        ("/v1/models/<model_id:path>", "404", 1),
    ):
        assert values["plugserve_http_requests_total", ("path", path), ("status", status)] == count


async def test_engine_snapshot_is_shown(server):
    server.engine.num_restarts = 2
    values = await scrape(server)
    expected = {
        "engine_up": 1,
        "num_requests_running": 0,
        "num_requests_waiting": 0,
        "kv_cache_usage_perc": 0.25,
        "kv_blocks": 8,
        "kv_blocks_free": 6,
        "num_preemptions_total": 0,
        "engine_steps_total": 5,
        "kv_integrity_checks_total": 0,
        "kv_integrity_errors_total": 0,
        "engine_restarts_total": 2,
    }
    for name, value in expected.items():
        assert values[f"plugserve_{name}", MODEL] == value, name


async def test_prefix_cache_is_shown_in_tokens_by_source_and_under_vllm_names(server):
    server.engine.snapshot = EngineStats(
        num_prefix_queried_tokens=100,
        num_prefix_hit_tokens=64,
        num_prefix_hit_tokens_host=16,
        num_host_blocks=40,
        num_used_host_blocks=7,
        num_host_bytes_out=7000,
        num_host_bytes_in=1000,
    )
    values = await scrape(server)
    expected = {
        "prefix_cache_queries_total": 100,
        "prefix_cache_hits_total": 64,
        "kv_host_blocks": 40,
        "kv_host_blocks_used": 7,
        "kv_offload_store_bytes_total": 7000,
        "kv_offload_load_bytes_total": 1000,
    }
    for name, value in expected.items():
        assert values[f"plugserve_{name}", MODEL] == value, name
    for source, value in (("device", 48), ("host", 16)):
        assert values["plugserve_prompt_tokens_cached_by_source_total", MODEL, ("source", source)] == value
    assert values["vllm:prefix_cache_queries_total", ENGINE, MODEL] == 100
    assert values["vllm:prefix_cache_hits_total", ENGINE, MODEL] == 64


def test_engines_of_a_model_are_labelled_and_its_restarts_are_shown_once():
    engines = [EngineSnapshot("m", n == 0, 3, EngineStats(num_prefix_hit_tokens=n), number=n) for n in range(2)]
    families = (*engine_metrics.engine_families(engines), *vllm_metrics.engine_families(engines))
    values = {one.name: [(dict(sample.labels), sample.value) for sample in one.samples] for one in families}
    model = {"model_name": "m"}
    first, second = model | {"engine": "0"}, model | {"engine": "1"}
    assert values["plugserve_engine_up"] == [(first, 1), (second, 0)]
    assert values["plugserve_prefix_cache_hits"] == values["vllm:prefix_cache_hits"] == [(first, 0), (second, 1)]
    assert values["plugserve_engine_restarts"] == [(model, 3)]
    assert values["plugserve_model_unloaded"] == [(model, 0)]


async def test_preemptions_are_shown_by_kind_and_under_vllms_name(server):
    server.engine.snapshot = EngineStats(
        num_preemptions=5, num_swap_preemptions=3, num_swapped_out_blocks=20, num_swapped_in_blocks=18
    )
    values = await scrape(server)
    for kind, value in (("swap", 3), ("recompute", 2)):
        assert values["plugserve_preemptions_by_kind_total", ("kind", kind), MODEL] == value
    assert values["vllm:num_preemptions_total", ENGINE, MODEL] == 5
    assert values["plugserve_kv_blocks_swapped_out_total", MODEL] == 20
    assert values["plugserve_kv_blocks_swapped_in_total", MODEL] == 18


async def test_what_plugins_cost_and_how_they_fail_is_shown(server):
    listener = server.state.hooks.listener
    for _ in range(3):
        listener.spent("guard", "plugserve_error", 0.25)
        listener.failed("guard", "plugserve_error")
    listener.set_aside("guard", "plugserve_error")
    server.engine.snapshot = EngineStats(
        plugin_seconds={"fcfs schedule": 1.5, "cache match": 0.5},
        plugin_errors={"cache match": 1},
        plugin_quarantines={"cache match": 1},
    )
    values = await scrape(server)
    guard = ("hook", "plugserve_error"), ("plugin", "guard")
    assert values["plugserve_plugin_seconds_total", *guard] == 0.75
    assert values["plugserve_plugin_errors_total", *guard] == 3
    assert values["plugserve_plugin_quarantines_total", *guard] == 1
    assert values["plugserve_plugin_seconds_total", ("hook", "schedule"), ("plugin", "fcfs")] == 1.5
    for name in ("seconds", "errors", "quarantines"):
        value = values[f"plugserve_plugin_{name}_total", ("hook", "match"), ("plugin", "cache")]
        assert value == (0.5 if name == "seconds" else 1)


async def test_seconds_of_strategies_are_listed_by_plugin(server):
    server.engine.snapshot = EngineStats(plugin_seconds={"fcfs schedule": 1.5, "ngram propose": 0.5})
    body = (await server.client.get("/v1/plugins")).json()
    assert body["engine_seconds"] == {"fake/model": {"fcfs": {"schedule": 1.5}, "ngram": {"propose": 0.5}}}


async def test_every_name_of_vllms_own_tests_is_there(server):
    server.engine.snapshot = EngineStats(num_adapter_slots=2, adapters_running=["a", "b"])
    await server.complete(max_tokens=5, temperature=0)
    text = (await server.client.get("/metrics")).text
    assert [name for name in VLLM_NAMES if name not in text] == []
    values = await scrape(server)
    info = (ENGINE, MODEL)
    assert values["vllm:num_requests_waiting_by_reason", ENGINE, MODEL, ("reason", "capacity")] == 0
    assert values["vllm:engine_sleep_state", *info, ("sleep_state", "awake")] == 1
    facts = {"block_size": "16", "cache_dtype": "float32", "enable_prefix_caching": "False"}
    facts |= {"num_cpu_blocks": "0", "num_gpu_blocks": "8"}
    assert values["vllm:cache_config_info", *sorted((*info, *facts.items()))] == 1
    running = ("running_lora_adapters", "a,b")
    assert values["vllm:lora_requests_info", ("max_lora", "2"), MODEL, running, ("waiting_lora_adapters", "")] > 1e9


async def test_counts_of_vllms_own_tests_are_exact(serve):
    """As its test_metrics_counts: ten completions of ten tokens."""
    num_requests, max_tokens, prompt = 10, 10, [5, 6, 7]
    async with serve(lambda call: [20] * 40) as server:
        for _ in range(num_requests):
            await server.complete(prompt, max_tokens=max_tokens)
        values = await scrape(server)
    at = (ENGINE, MODEL)
    for name in (
        "time_to_first_token_seconds",
        "e2e_request_latency_seconds",
        "request_queue_time_seconds",
        "request_inference_time_seconds",
        "request_prefill_time_seconds",
        "request_decode_time_seconds",
        "request_num_preemptions",
        "request_prompt_tokens",
        "request_generation_tokens",
        "request_params_n",
        "request_params_max_tokens",
        "request_max_num_generation_tokens",
        "request_prefill_kv_computed_tokens",
    ):
        assert values[f"vllm:{name}_count", *at] == num_requests, name
    assert values["vllm:inter_token_latency_seconds_count", *at] == num_requests * (max_tokens - 1)
    assert values["vllm:request_prompt_tokens_sum", *at] == num_requests * len(prompt)
    assert values["vllm:request_generation_tokens_sum", *at] == num_requests * max_tokens
    assert values["vllm:request_params_max_tokens_sum", *at] == num_requests * max_tokens
    assert values["vllm:prompt_tokens_total", *at] == num_requests * len(prompt)
    assert values["vllm:generation_tokens_total", *at] == num_requests * max_tokens
    assert values["vllm:request_success_total", ENGINE, ("finished_reason", "length"), MODEL] == num_requests
    for name in ("time_to_first_token_seconds", "request_params_max_tokens", "request_generation_tokens"):
        assert values[f"plugserve_{name}_sum", MODEL] == values[f"vllm:{name}_sum", *at]


async def test_steps_are_shown_by_size(server):
    stats = EngineStats()
    for sizes in ((3, 1), (0, 1), (0, 1), (0, 0)):
        stats.note_step(*sizes)
    server.engine.snapshot = stats
    values = await scrape(server)
    assert values["vllm:iteration_tokens_total_sum", ENGINE, MODEL] == 6
    assert values["vllm:iteration_tokens_total_count", ENGINE, MODEL] == 3
    assert values["vllm:iteration_tokens_total_bucket", ENGINE, ("le", "1.0"), MODEL] == 2
    assert values["plugserve_engine_steps_total", MODEL] == 4


async def test_goodput_counts_requests_within_every_objective(tokenizer, make_state):
    engine = FakeEngine(says(tokenizer, "hello world!"))
    state = make_state(served(engine, tokenizer))
    state.metrics = Metrics(objectives=Objectives.of(["ttft:60000", "e2el:0.0001", "tpot:60000"]))
    async with running(state) as server:
        await server.chat()
        values = await scrape(server)
    assert values["plugserve_goodput_requests_total", MODEL] == 0
    misses = {name: values["plugserve_goodput_misses_total", MODEL, ("objective", name)] for name in ("ttft", "e2el")}
    assert misses == {"ttft": 0, "e2el": 1}
    state.metrics = Metrics(objectives=Objectives.of(["ttft:60000", "tpot:60000"]))
    state._model_metrics.clear()
    async with running(state) as server:
        await server.chat()
        assert (await scrape(server))["plugserve_goodput_requests_total", MODEL] == 1


async def test_refusals_of_a_full_queue_are_counted(server):
    server.state.metrics_of("fake/model").refused()
    values = await scrape(server)
    assert values["plugserve_requests_refused_total", MODEL] == 1
    assert values["vllm:admission_rejections_total", MODEL, ("reason", "max_num_queued_reqs")] == 1
    assert values["vllm:admission_rejections_total", MODEL, ("reason", "max_num_queued_tokens")] == 0


async def test_openmetrics_is_given_to_those_who_accept_it_with_the_traces_of_requests(server):
    server.state.metrics_of("fake/model").first_token(0.03, "0af7651916cd43dd8448eb211c80319c")
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
    response = await server.client.get("/metrics", headers={"Accept": accept})
    assert response.headers["content-type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    lines = [line for line in response.text.splitlines() if "0af7651916cd43dd8448eb211c80319c" in line]
    assert [line.partition("{")[0] for line in lines] == [
        "plugserve_time_to_first_token_seconds_bucket",
        "vllm:time_to_first_token_seconds_bucket",
    ]
    assert sum(1 for _ in open_families(response.text)) > 80
    plain = await server.client.get("/metrics")
    assert plain.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "0af7651916cd43dd8448eb211c80319c" not in plain.text


async def test_request_that_is_traced_is_an_exemplar(tokenizer, make_state):
    engine = FakeEngine(says(tokenizer, "hello world!"))
    state = make_state(served(engine, tokenizer), tracer=OneTrace())
    async with running(state) as server:
        await server.chat()
        text = (await server.client.get("/metrics", headers={"Accept": "application/openmetrics-text"})).text
    marked = {line.partition("_bucket")[0] for line in text.splitlines() if OneTrace.id in line}
    assert {"vllm:e2e_request_latency_seconds", "plugserve_request_queue_time_seconds"} <= marked


def test_any_worker_shows_all_workers(tmp_path):
    workers = [Metrics(MetricStore(tmp_path / f"worker-{index}"), tmp_path) for index in range(2)]
    for worker, amount in zip(workers, (3, 4), strict=True):
        worker.of_model("m").generated(amount)
    for worker in workers:
        assert 'plugserve_generation_tokens_total{model_name="m"} 7.0' in worker.render([]).decode()


def test_metrics_of_plugins_that_use_prometheus_client_are_shown(tmp_path):
    program = (
        "from prometheus_client import Counter; Counter('mine', 'Mine.').inc(2);"
        "from plugserve.server.operations.metrics import Metrics; m = Metrics();"
        "print(m.render([]).decode(), m.render([], is_open=True).decode())"
    )
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    output = subprocess.run(
        [sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True
    ).stdout
    assert output.count("mine_total 2.0") == 2
    assert output.count("# EOF") == 1


def test_docs_have_every_metric_as_it_is_shown():
    page = Path(__file__).parents[3] / "docs" / "metrics.md"
    assert tables() in page.read_text(), "write it anew: python -m plugserve.server.operations.metrics_docs --write ..."
    names = {family.name for family in every_family()}
    declared = {*GAUGES, *COUNTERS, *LABELLED, *HISTOGRAMS, *REQUEST_COUNTERS, *FRONTEND, *PLUGIN_COUNTERS, *WORKERS}
    assert {f"plugserve_{name}" for name in declared} <= names
    assert {f"vllm:{name}" for name in (*OTHERS, *HISTOGRAMS, *NOTHING)} <= names
