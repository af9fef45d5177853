"""What /metrics shows after known traffic."""

import os
import subprocess
import sys

from prometheus_client.parser import text_string_to_metric_families

from plugserve.core.contracts.engine_facts import EngineStats


async def scrape(server):
    response = await server.client.get("/metrics")
    assert response.status_code == 200
    families = text_string_to_metric_families(response.text)
    return {(sample.name, *sorted(sample.labels.items())): sample.value for f in families for sample in f.samples}


MODEL = ("model_name", "fake/model")


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
    assert values["vllm:prefix_cache_queries_total", MODEL] == 100
    assert values["vllm:prefix_cache_hits_total", MODEL] == 64


async def test_preemptions_are_shown_by_kind_and_under_vllms_name(server):
    server.engine.snapshot = EngineStats(
        num_preemptions=5, num_swap_preemptions=3, num_swapped_out_blocks=20, num_swapped_in_blocks=18
    )
    values = await scrape(server)
    for kind, value in (("swap", 3), ("recompute", 2)):
        assert values["plugserve_preemptions_by_kind_total", ("kind", kind), MODEL] == value
    assert values["vllm:num_preemptions_total", MODEL] == 5
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


def test_any_worker_shows_all_workers(tmp_path):
    program = (
        "import sys; from plugserve.server.operations.metrics import Metrics; m = Metrics();"
        "m.of_model('m').generation_tokens.inc(int(sys.argv[1])); sys.stdout.write(m.render([]).decode())"
    )
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for amount, total in (("3", 3.0), ("4", 7.0)):
        output = subprocess.run(
            [sys.executable, "-c", program, amount], env=environment, check=True, capture_output=True, text=True
        ).stdout
        assert f'plugserve_generation_tokens_total{{model_name="m"}} {total}' in output
