"""The panels of the Grafana dashboards: titles, units and queries. make_dashboards.py makes the files of them."""

from __future__ import annotations

from dataclasses import dataclass

RATE = "[$__rate_interval]"
OURS = 'model_name=~"$model", instance=~"$instance"'


@dataclass(frozen=True)
class Panel:
    """queries are (legend, PromQL) pairs. text is shown behind the panel's information sign."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    text: str = ""
    kind: str = "timeseries"
    width: int = 8
    has_exemplars: bool = False


def quantiles(name: str, labels: str = OURS, by: str = "") -> tuple[tuple[str, str], ...]:
    """Median, 95th and 99th percentile of a histogram."""
    legend = "{{model_name}} " if by else ""
    return tuple(
        (
            f"{legend}p{share * 100:g}",
            f"histogram_quantile({share}, sum by (le{by}) (rate({name}_bucket{{{labels}}}{RATE})))",
        )
        for share in (0.5, 0.95, 0.99)
    )


def mean(name: str, labels: str = OURS) -> str:
    return (
        f"sum by (model_name) (rate({name}_sum{{{labels}}}{RATE})) "
        f"/ sum by (model_name) (rate({name}_count{{{labels}}}{RATE}))"
    )


def per_s(name: str, by: str = "model_name", labels: str = OURS) -> str:
    return f"sum by ({by}) (rate({name}{{{labels}}}{RATE}))"


def latency(title: str, name: str, text: str, labels: str = OURS) -> Panel:
    return Panel(title, "s", quantiles(name, labels), text, has_exemplars=True)


P = "plugserve"
PLUGSERVE: dict[str, list[Panel]] = {
    "Overview": [
        Panel("Engines up", "none", (("", f"sum({P}_engine_up{{{OURS}}})"),), kind="stat", width=4),
        Panel("Requests that run", "none", (("", f"sum({P}_num_requests_running{{{OURS}}})"),), kind="stat", width=4),
        Panel("Requests that wait", "none", (("", f"sum({P}_num_requests_waiting{{{OURS}}})"),), kind="stat", width=4),
        Panel(
            "Tokens generated a second",
            "none",
            (("", f"sum(rate({P}_generation_tokens_total{{{OURS}}}{RATE}))"),),
            kind="stat",
            width=4,
        ),
        Panel("First token, p95", "s", (quantiles(f"{P}_time_to_first_token_seconds")[1],), kind="stat", width=4),
        Panel(
            "Errors of the server",
            "percentunit",
            (
                (
                    "",
                    f'(sum(rate({P}_http_requests_total{{instance=~"$instance", status=~"5.."}}{RATE})) or vector(0)) '
                    f'/ sum(rate({P}_http_requests_total{{instance=~"$instance"}}{RATE}))',
                ),
            ),
            "Answers with status 5xx.",
            kind="stat",
            width=4,
        ),
    ],
    "Requests": [
        Panel(
            "Requests by outcome",
            "reqps",
            (("{{finished_reason}}", per_s(f"{P}_request_success_total", "finished_reason")),),
        ),
        Panel(
            "HTTP answers by status",
            "reqps",
            (("{{status}}", per_s(f"{P}_http_requests_total", "status", 'instance=~"$instance"')),),
        ),
        Panel(
            "Refused",
            "reqps",
            (
                ("queue full, {{model_name}}", per_s(f"{P}_requests_refused_total")),
                (
                    "connections",
                    f'sum(rate({P}_http_connections_refused_total{{instance=~"$instance"}}{RATE})) or vector(0)',
                ),
            ),
        ),
        latency("Time to first token", f"{P}_time_to_first_token_seconds", "Diamonds are traced requests."),
        latency("Time between tokens", f"{P}_inter_token_latency_seconds", "As clients get them."),
        latency("Whole request", f"{P}_e2e_request_latency_seconds", "From arrival to the last token."),
        latency("Time in the queue", f"{P}_request_queue_time_seconds", "Until the engine computes a part of it."),
        latency("Prefill", f"{P}_request_prefill_time_seconds", "From then to the first token."),
        latency("Decode", f"{P}_request_decode_time_seconds", "From the first token to the last."),
        Panel(
            "Goodput",
            "percentunit",
            (
                (
                    "{{model_name}}",
                    f"{per_s(f'{P}_goodput_requests_total')} / "
                    + per_s(f"{P}_request_success_total", labels=f'{OURS}, finished_reason=~"stop|length"'),
                ),
            ),
            "Requests within all objectives of --goodput; empty without it.",
        ),
        Panel("Prompt tokens of a request", "none", quantiles(f"{P}_request_prompt_tokens")),
        Panel("Generated tokens of a request", "none", quantiles(f"{P}_request_generation_tokens")),
    ],
    "Engines": [
        Panel(
            "Tokens a second",
            "none",
            (
                ("{{model_name}} prompt", per_s(f"{P}_prompt_tokens_total")),
                ("{{model_name}} generated", per_s(f"{P}_generation_tokens_total")),
            ),
        ),
        Panel(
            "Sequences",
            "none",
            (
                ("{{model_name}} running", f"sum by (model_name) ({P}_num_requests_running{{{OURS}}})"),
                (
                    "{{model_name}} waiting: {{reason}}",
                    f"sum by (model_name, reason) ({P}_num_requests_waiting_by_reason{{{OURS}}})",
                ),
            ),
        ),
        Panel(
            "KV cache in use",
            "percentunit",
            (("{{model_name}} {{instance}}", f"{P}_kv_cache_usage_perc{{{OURS}}}"),),
        ),
        Panel(
            "Steps a second, and tokens a step",
            "none",
            (
                ("{{model_name}} steps", per_s(f"{P}_engine_steps_total")),
                ("{{model_name}} tokens", mean(f"{P}_iteration_tokens")),
            ),
        ),
        Panel(
            "Prompt tokens found in the cache",
            "percentunit",
            (
                (
                    "{{model_name}}",
                    f"{per_s(f'{P}_prefix_cache_hits_total')} / clamp_min("
                    f"{per_s(f'{P}_prefix_cache_queries_total')}, 1)",
                ),
                (
                    "{{model_name}} in host memory",
                    per_s(f"{P}_prompt_tokens_cached_by_source_total", labels=f'{OURS}, source="host"')
                    + f" / clamp_min({per_s(f'{P}_prefix_cache_queries_total')}, 1)",
                ),
            ),
        ),
        Panel(
            "Preemptions",
            "ops",
            (("{{model_name}} {{kind}}", per_s(f"{P}_preemptions_by_kind_total", "model_name, kind")),),
        ),
        Panel(
            "Drafts accepted",
            "percentunit",
            (
                (
                    "{{model_name}}",
                    f"{per_s(f'{P}_spec_decode_num_accepted_tokens_total')} / clamp_min("
                    f"{per_s(f'{P}_spec_decode_num_draft_tokens_total')}, 1)",
                ),
            ),
            "0 without speculation.",
        ),
        Panel(
            "LoRA adapters",
            "none",
            (
                ("{{model_name}} known", f"sum by (model_name) ({P}_lora_adapters{{{OURS}}})"),
                ("{{model_name}} in slots", f"sum by (model_name) ({P}_lora_slots_in_use{{{OURS}}})"),
                ("{{model_name}} waiting", f"sum by (model_name) ({P}_num_requests_waiting_for_lora{{{OURS}}})"),
            ),
        ),
        Panel(
            "KV to and from host memory",
            "Bps",
            (
                ("{{model_name}} out", per_s(f"{P}_kv_offload_store_bytes_total")),
                ("{{model_name}} in", per_s(f"{P}_kv_offload_load_bytes_total")),
            ),
        ),
    ],
    "Models, processes and plugins": [
        Panel(
            "Memory",
            "bytes",
            (
                ("{{model_name}} process", f"{P}_engine_resident_memory_bytes{{{OURS}}}"),
                ("{{model_name}} device", f"{P}_engine_device_memory_reserved_bytes{{{OURS}}}"),
            ),
        ),
        Panel(
            "Loads and unloads",
            "none",
            (
                ("{{model_name}} loads", f"sum by (model_name) (increase({P}_model_loads_total{{{OURS}}}{RATE}))"),
                (
                    "unloads",
                    f"sum(increase({P}_model_unloads_total{{{OURS}}}{RATE})) or vector(0)",
                ),
                ("{{model_name}} seconds", f"max by (model_name) ({P}_model_last_load_seconds{{{OURS}}})"),
            ),
        ),
        Panel(
            "Restarts and hangs",
            "none",
            (
                (
                    "{{model_name}} restarts",
                    f"sum by (model_name) (increase({P}_engine_restarts_total{{{OURS}}}{RATE}))",
                ),
                ("{{model_name}} hangs", f"sum by (model_name) (increase({P}_engine_hangs_total{{{OURS}}}{RATE}))"),
                (
                    "worker {{worker}} hangs",
                    f'sum by (worker) (increase({P}_worker_hangs_total{{instance=~"$instance"}}{RATE}))',
                ),
            ),
        ),
        Panel(
            "Age of heartbeats",
            "s",
            (
                ("{{model_name}}", f"{P}_engine_heartbeat_age_seconds{{{OURS}}}"),
                ("worker {{worker}}", f'{P}_worker_heartbeat_age_seconds{{instance=~"$instance"}}'),
            ),
        ),
        Panel(
            "Time in plugins",
            "percentunit",
            (
                (
                    "{{plugin}} {{hook}}",
                    f'sum by (plugin, hook) (rate({P}_plugin_seconds_total{{instance=~"$instance"}}{RATE}))',
                ),
            ),
            "Seconds a second; of a model's runner nearly 1 while it computes.",
        ),
        Panel(
            "Failures of plugins",
            "ops",
            (
                (
                    "errors",
                    f'sum(rate({P}_plugin_errors_total{{instance=~"$instance"}}{RATE})) or vector(0)',
                ),
                (
                    "left out or switched off",
                    f'sum(rate({P}_plugin_quarantines_total{{instance=~"$instance"}}{RATE})) or vector(0)',
                ),
            ),
        ),
    ],
}

V = "vllm:"
VLLM: dict[str, list[Panel]] = {
    "Requests": [
        latency("Whole request", f"{V}e2e_request_latency_seconds", ""),
        latency("Time to first token", f"{V}time_to_first_token_seconds", ""),
        latency("Time between tokens", f"{V}inter_token_latency_seconds", ""),
        latency("Mean time per token of a request", f"{V}request_time_per_output_token_seconds", ""),
        latency("Time in the queue", f"{V}request_queue_time_seconds", ""),
        Panel(
            "Mean phases of a request",
            "s",
            (
                ("{{model_name}} queue", mean(f"{V}request_queue_time_seconds")),
                ("{{model_name}} prefill", mean(f"{V}request_prefill_time_seconds")),
                ("{{model_name}} decode", mean(f"{V}request_decode_time_seconds")),
                ("{{model_name}} inference", mean(f"{V}request_inference_time_seconds")),
            ),
        ),
        Panel(
            "Requests by outcome",
            "reqps",
            (("{{finished_reason}}", per_s(f"{V}request_success_total", "finished_reason")),),
        ),
        Panel(
            "Rejected by queue limits",
            "reqps",
            (("{{model_name}} {{reason}}", per_s(f"{V}admission_rejections_total", "model_name, reason")),),
        ),
        Panel("Prompt tokens of a request", "none", quantiles(f"{V}request_prompt_tokens")),
        Panel("Generated tokens of a request", "none", quantiles(f"{V}request_generation_tokens")),
        Panel(
            "What requests ask for",
            "none",
            (
                ("{{model_name}} max_tokens", mean(f"{V}request_params_max_tokens")),
                ("{{model_name}} n", mean(f"{V}request_params_n")),
                ("{{model_name}} longest answer", mean(f"{V}request_max_num_generation_tokens")),
            ),
        ),
        Panel(
            "Prompt tokens computed",
            "none",
            (("{{model_name}}", mean(f"{V}request_prefill_kv_computed_tokens")),),
            "Of a request, on average, without those that the cache had.",
        ),
    ],
    "Engines": [
        Panel(
            "Tokens a second",
            "none",
            (
                ("{{model_name}} prompt", per_s(f"{V}prompt_tokens_total")),
                ("{{model_name}} generated", per_s(f"{V}generation_tokens_total")),
            ),
        ),
        Panel(
            "Requests running and waiting",
            "none",
            (
                ("{{model_name}} {{engine}} running", f"{V}num_requests_running{{{OURS}}}"),
                ("{{model_name}} {{engine}} waiting", f"{V}num_requests_waiting{{{OURS}}}"),
                ("{{model_name}} {{engine}} {{reason}}", f"{V}num_requests_waiting_by_reason{{{OURS}}}"),
            ),
        ),
        Panel("KV cache in use", "percentunit", (("{{model_name}} {{engine}}", f"{V}kv_cache_usage_perc{{{OURS}}}"),)),
        Panel(
            "Steps a second, and tokens a step",
            "none",
            (
                ("{{model_name}} steps", per_s(f"{V}iteration_tokens_total_count")),
                ("{{model_name}} tokens", mean(f"{V}iteration_tokens_total")),
            ),
        ),
        Panel(
            "Prefix cache hits",
            "percentunit",
            (
                (
                    "{{model_name}}",
                    f"{per_s(f'{V}prefix_cache_hits_total')} / clamp_min({per_s(f'{V}prefix_cache_queries_total')}, 1)",
                ),
            ),
        ),
        Panel(
            "Prompt tokens by source", "none", (("{{source}}", per_s(f"{V}prompt_tokens_by_source_total", "source")),)
        ),
        Panel(
            "Preemptions",
            "ops",
            (
                ("{{model_name}}", per_s(f"{V}num_preemptions_total")),
                ("{{model_name}} a request", mean(f"{V}request_num_preemptions")),
            ),
        ),
        Panel(
            "Draft tokens accepted",
            "percentunit",
            (
                (
                    "{{model_name}}",
                    f"{per_s(f'{V}spec_decode_num_accepted_tokens_total')} / clamp_min("
                    f"{per_s(f'{V}spec_decode_num_draft_tokens_total')}, 1)",
                ),
            ),
        ),
        Panel("Sleep state", "none", (("{{model_name}} {{sleep_state}}", f"{V}engine_sleep_state{{{OURS}}}"),)),
        Panel(
            "KV cache",
            "none",
            (
                (
                    "{{model_name}}: {{num_gpu_blocks}} blocks of {{block_size}}, {{cache_dtype}}",
                    f"{V}cache_config_info{{{OURS}}}",
                ),
            ),
            kind="stat",
        ),
    ],
}
