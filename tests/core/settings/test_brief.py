"""Every setting of the brief, with the tests of its effect: each would fail if the setting did nothing.

A setting that is refused or has no effect so far names the test of the line that says so.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from plugserve.core.settings.setting_names import flag
from plugserve.core.settings.settings import default_of, setting_facts

ROOT = Path(__file__).parents[3]
MODEL_SOURCE = "tests/core/model_files/test_model_source.py"
EFFECTS = "tests/backends/torch/test_settings_effects.py"
CHECKS = "tests/core/settings/test_settings_checks.py"

TESTS: dict[str, list[str]] = {
    # model, data
    "model": [
        f"{MODEL_SOURCE}::test_file_and_folder_references",
        f"{MODEL_SOURCE}::test_a_named_reference_has_that_name_alone",
        "tests/server/pipeline/test_requests.py::test_second_model_answers_to_its_own_name",
        "tests/e2e/test_many_models.py::test_models_are_loaded_used_and_unloaded_as_requests_need_them",
    ],
    "tokenizer": [f"{MODEL_SOURCE}::test_tokenizer_flag_takes_folder_file_and_gguf"],
    "tokenizer_mode": [
        f"{CHECKS}::test_a_tokenizer_that_is_not_read_is_refused_with_a_way_out",
        f"{CHECKS}::test_setting_without_effect_warns_once",
    ],
    "dtype": [f"{EFFECTS}::test_setting_is_a_fact_of_the_engine"],
    "trust_remote_code": [f"{CHECKS}::test_setting_without_effect_warns_once"],
    "revision": [
        f"{MODEL_SOURCE}::test_a_cached_repository_works_without_the_hub",
        f"{MODEL_SOURCE}::test_only_what_is_needed_is_downloaded",
    ],
    "download_dir": [
        f"{MODEL_SOURCE}::test_a_cached_repository_works_without_the_hub",
        f"{MODEL_SOURCE}::test_only_what_is_needed_is_downloaded",
    ],
    "load_format": [
        "tests/backends/torch/weights/test_weights.py::test_dummy_weights_follow_the_seed_setting",
        "tests/backends/torch/weights/test_sharded_state.py::test_saved_and_loaded_weights_give_equal_tokens",
        "tests/backends/torch/weights/test_distributed_checkpoint.py::test_a_checkpoint_is_read_as_it_was_saved",
        "tests/core/model_files/test_load_formats.py::test_a_format_that_nothing_reads_is_refused_with_a_way_out",
    ],
    # parallel
    "tensor_parallel_size": ["tests/e2e/test_ranks.py::test_two_ranks_answer_as_one_process"],
    "pipeline_parallel_size": ["tests/deploy/test_shared_models.py::test_smollm2"],
    "distributed_executor_backend": [f"{CHECKS}::test_ranks_are_started_by_mp_unless_another_executor_is_named"],
    "worker_use_ray": [f"{CHECKS}::test_the_old_name_of_ray_warns_and_contradicts_another_executor"],
    # performance, memory
    "max_model_len": [f"{EFFECTS}::test_setting_is_a_fact_of_the_engine"],
    "gpu_memory_utilization": [f"{EFFECTS}::test_gpu_memory_utilization_is_the_share_that_weights_and_blocks_may_take"],
    "max_num_seqs": [f"{EFFECTS}::test_no_more_sequences_run_than_max_num_seqs"],
    "max_num_batched_tokens": [f"{EFFECTS}::test_setting_is_a_fact_of_the_engine"],
    "scheduler_delay_factor": [
        "tests/simulate/test_simulation.py::test_delay_factor_computes_prompts_in_fewer_and_larger_steps",
        "tests/core/engine/test_build.py::test_built_in_schedulers_keep_the_pace_that_settings_ask_for",
    ],
    "swap_space": [
        "tests/core/engine/kv/test_swapping.py::test_preempted_sequences_compute_nothing_twice",
        "tests/backends/torch/models/test_prefix_reuse.py::test_tokens_are_equal",
        "tests/e2e/test_prefix_cache.py::test_evicted_prefixes_are_restored_from_host_memory",
    ],
    "cpu_offload_gb": [
        "tests/backends/torch/models/test_streamed_parts.py::test_logits_are_equal_to_the_last_bit",
        "tests/backends/torch/models/test_streamed_parts.py::test_device_memory_is_what_stays_and_two_buffers",
        "tests/gpu/test_cpu_offload.py::test_tokens_equal_hugging_face_in_float32",
    ],
    "num_gpu_blocks_override": [f"{EFFECTS}::test_setting_is_a_fact_of_the_engine"],
    # features
    "enable_lora": ["tests/e2e/test_lora.py::test_forty_loads_under_traffic_leak_nothing"],
    "max_loras": ["tests/e2e/test_lora.py::test_more_adapters_than_slots_answer_like_merged_weights_at_the_same_time"],
    "max_lora_rank": ["tests/e2e/test_lora.py::test_bad_adapters_are_refused_by_name_while_others_are_served"],
    "max_lora_size": [f"{CHECKS}::test_setting_without_effect_warns_once"],
    "enable_auto_tool_choice": [
        "tests/server/text/test_parser_choice.py::test_auto_is_off_unless_asked_for_and_on_for_the_embedded_model"
    ],
    "enable_prefix_caching": [
        "tests/commands/test_cli.py::test_enable_prefix_caching_is_the_plugin",
        "tests/e2e/test_prefix_cache.py::test_usage_counts_cached_tokens",
    ],
    "enforce_eager": [
        "tests/backends/torch/kernels/test_cuda_executor.py::test_steps_are_captured_unless_enforce_eager_is_set",
        "tests/gpu/test_engine.py::test_captured_steps_equal_hugging_face_in_float32",
    ],
    "speculative_model": [
        "tests/core/engine/test_build_speculation.py::test_a_named_draft_model_drafts_and_stands_in_the_ledger"
    ],
    "num_speculative_tokens": [f"{EFFECTS}::test_setting_is_a_fact_of_the_engine"],
    # server
    "host": ["tests/server/supervisor/test_listen.py::test_only_the_host_that_is_named_accepts"],
    "port": ["tests/server/supervisor/test_listen.py::test_the_port_that_is_named_is_taken_and_refused_to_the_next"],
    "ssl_keyfile": ["tests/server/worker/test_reload.py::test_https_answers_and_streams"],
    "ssl_certfile": ["tests/server/worker/test_reload.py::test_https_answers_and_streams"],
    "disable_log_requests": [
        "tests/core/plugin_system/test_plugin_host.py::test_request_log_writes_one_line_that_clients_cannot_forge"
    ],
    "config": ["tests/core/settings/test_settings.py::test_yaml_file_is_read_with_hyphens_and_underscores"],
}
"""By setting: the tests of its effect, as path::function."""

DEFAULTS: dict[str, Any] = {
    "tokenizer_mode": "auto",
    "dtype": "auto",
    "trust_remote_code": False,
    "load_format": "auto",
    "tensor_parallel_size": 1,
    "pipeline_parallel_size": 1,
    "worker_use_ray": False,
    "gpu_memory_utilization": 0.90,
    "max_num_seqs": 256,
    "scheduler_delay_factor": 0,
    "swap_space": 4,
    "cpu_offload_gb": 0,
    "enable_lora": False,
    "max_loras": 1,
    "max_lora_rank": 16,
    "enable_auto_tool_choice": False,
    "enable_prefix_caching": False,
    "enforce_eager": False,
    "num_speculative_tokens": 5,
    "host": "0.0.0.0",
    "port": 8000,
    "disable_log_requests": False,
}
"""The brief's defaults; those of all other settings in TESTS are none, or the model's."""


@pytest.mark.parametrize("setting", TESTS)
def test_setting_exists_and_so_do_the_tests_of_its_effect(setting):
    assert setting in setting_facts()
    assert TESTS[setting]
    for test in TESTS[setting]:
        path, _, name = test.partition("::")
        functions = {node.name for node in ast.walk(ast.parse((ROOT / path).read_text()))
                     if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}  # fmt: skip
        assert name in functions, test


@pytest.mark.parametrize("setting", TESTS)
def test_default_is_the_briefs_or_the_docs_argue_for_another_one(setting):
    brief, ours = DEFAULTS.get(setting), default_of(setting)
    argued = (ROOT / "docs/configuration.md").read_text().partition("## Where the defaults differ")[2]
    rows = argued.partition("\n\nSome settings")[0]
    assert (f"| `{flag(setting)}`" in rows) == (brief != ours and not (brief is None and ours == []))


def test_only_settings_that_do_something_are_said_to_have_effect():
    """A setting that is refused or has no effect for all values is listed with the test of the line that says so."""
    idle = {
        name for name, facts in setting_facts().items()
        if (facts.refused and not facts.refused_values) or (facts.no_effect and not facts.no_effect_values)
    }  # fmt: skip
    for name in idle & set(TESTS):
        assert any(test.startswith(CHECKS) for test in TESTS[name]), name
