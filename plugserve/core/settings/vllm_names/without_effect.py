"""Settings of vLLM whose omission changes neither answers nor safety; each logs a warning with the reason."""

from __future__ import annotations

from typing import Final

from plugserve.core.settings.vllm_names.vllm_name import Reason

WITHOUT_EFFECT: Final = (
    Reason(
        "models read text only, so there are no images, audio or video to process",
        values="allowed_local_media_path limit_mm_per_prompt media_io_kwargs mm_processor_kwargs mm_processor_cache_gb "
        "mm_processor_cache_type mm_hasher_algorithm mm_shm_cache_max_object_size_mb mm_encoder_tp_mode "
        "mm_encoder_attn_backend mm_encoder_attn_dtype mm_encoder_fp8_scale_path mm_encoder_fp8_scale_save_path "
        "mm_encoder_fp8_scale_save_margin video_pruning_rate video_pruning_method mm_tensor_ipc mm_processor_device "
        "mm_ipc_gpu_memory_gb default_mm_loras image_input_type image_token_id image_input_shape image_feature_size",
        flags="language_model_only enable_mm_embeds mm_encoder_only interleave_mm_strings skip_mm_profiling "
        "mm_device_do_normalize trust_request_mm_kwargs disable_chunked_mm_input enable_tower_connector_lora "
        "disable_mm_preprocessor_cache enable_multimodal_encoder_data_parallel disable_image_processor",
        lists="allowed_media_domains",
        same={"language_model_only": "true false"},
    ),
    Reason(
        "it matters to devices that share a model, and plugserve decides by itself how they exchange data",
        values="distributed_timeout_seconds cpu_distributed_timeout_seconds master_addr master_port all2all_backend "
        "eplb_config expert_placement_strategy ubatch_size dbo_decode_token_threshold dbo_prefill_token_threshold "
        "dp_sync_interval dcp_comm_backend dcp_kv_cache_interleave_size cp_kv_cache_interleave_size "
        "data_parallel_address data_parallel_rpc_port data_parallel_backend data_parallel_supervisor_port "
        "dp_supervisor_probe_interval_s dp_supervisor_probe_timeout_s dp_supervisor_probe_failure_threshold "
        "max_parallel_loading_workers",
        flags="disable_custom_all_reduce enable_nccl_comm_suspend enable_expert_parallel enable_ep_weight_filter "
        "enable_eplb enable_dbo enable_hc_sp enable_batch_sharded_sampling enable_shm_tensor_arena dcp_q_replicate "
        "disable_nccl_for_dp_synchronization ray_workers_use_nsight fully_sharded_loras",
    ),
    Reason(
        "there are no Mamba, linear-attention or engram layers that it could set up",
        values="mamba_backend mamba_ssu_algorithm mamba_cache_philox_rounds mamba_cache_dtype mamba_ssm_cache_dtype "
        "mamba_block_size mamba_cache_mode replayssm_buffer_len gdn_prefill_backend kda_prefill_backend "
        "kda_decode_backend engram_config",
        flags="enable_mamba_cache_stochastic_rounding enable_mamba_shared_prefix_checkpoint use_replayssm",
    ),
    Reason(
        "plugserve chooses its kernels and captures its CUDA graphs by itself; --enforce-eager turns graphs off",
        values="ir_op_priority moe_backend linear_backend sparse_indexer_topk_backend kernel_config "
        "max_cudagraph_capture_size performance_mode additional_config max_seq_len_to_capture "
        "max_context_len_to_capture override_neuron_config",
        flags="enable_flashinfer_autotune monokernel disable_cascade_attn use_fp64_gumbel full_cuda_graph "
        "kv_sharing_fast_prefill",
        lists="cudagraph_capture_sizes cuda_graph_sizes",
        same={"performance_mode": "balanced"},
    ),
    Reason(
        "plugserve decides by itself how it reads model files",
        values="safetensors_load_strategy safetensors_prefetch_num_threads safetensors_prefetch_block_size "
        "pt_load_map_location model_loader_extra_config",
        flags="use_tqdm_on_load",
        lists="ignore_patterns",
        same={"use_tqdm_on_load": "true"},
    ),
    Reason(
        "quantised weights are dequantised at load, whichever kernel other servers have for them",
        flags="allow_deprecated_quantization",
        values="speculative_model_quantization",
    ),
    Reason(
        "prompts are always computed in chunks of --max-num-batched-tokens; --max-itl-ms keeps steps short",
        values="long_prefill_token_threshold max_num_partial_prefills max_long_partial_prefills "
        "max_num_scheduled_tokens prefill_schedule_interval",
        flags="enable_chunked_prefill long_prefill_token_threshold_adaptive scheduler_reserve_full_isl",
        same={
            "enable_chunked_prefill": "true",
            "scheduler_reserve_full_isl": "true",
            "long_prefill_token_threshold": "0",
            "prefill_schedule_interval": "1",
            "max_num_partial_prefills": "1",
            "max_long_partial_prefills": "1",
        },
    ),
    Reason(
        "the engine always plans a step while the one before runs",
        values="num_scheduler_steps num_lookahead_slots",
        flags="async_scheduling multi_step_stream_outputs disable_async_output_proc use_v2_block_manager",
        same={
            "async_scheduling": "true",
            "num_scheduler_steps": "1",
            "num_lookahead_slots": "0",
            "multi_step_stream_outputs": "true false",
            "use_v2_block_manager": "true false",
        },
    ),
    Reason(
        "--max-num-seqs limits the sequences that run",
        values="max_num_active_seqs",
    ),
    Reason(
        "preempted sequences are handled as --swap-space says, and blocks are kept free as needed",
        values="preemption_mode watermark",
        same={"watermark": "0"},
    ),
    Reason(
        "tokens are sent as they come",
        values="stream_interval",
        same={"stream_interval": "1"},
    ),
    Reason(
        "the prefix cache has one form: 128-bit hashes of blocks of --block-size tokens, and least recently used "
        "blocks go first",
        values="prefix_caching_hash_algo prefix_cache_retention_interval prefix_match_unit",
        flags="swa_bounded_replay disable_hybrid_kv_cache_manager",
        same={"swa_bounded_replay": "true", "prefix_cache_retention_interval": "0"},
    ),
    Reason(
        "the KV cache has the weights' number format, so it has no scales",
        lists="kv_cache_dtype_skip_layers",
        flags="calculate_kv_scales",
    ),
    Reason(
        "--cpu-offload-gb says how much of the weights stays in host memory; plugserve chooses which and how",
        values="offload_backend offload_num_in_group offload_prefetch_step",
        lists="cpu_offload_params offload_params",
        same={"offload_backend": "auto"},
    ),
    Reason(
        "LoRA adapters are computed in one way, for any number of active ones",
        values="max_lora_cls_labels",
        flags="specialize_active_lora enable_mixed_moe_lora_format enable_moe_shared_loras",
    ),
    Reason(
        "an adapter with added tokens is refused when it is loaded",
        values="lora_extra_vocab_size",
        same={"lora_extra_vocab_size": "0"},
    ),
    Reason(
        "drafts are checked in the same step as other tokens, and as many are made as save time",
        values="speculative_disable_by_batch_size speculative_max_model_len "
        "typical_acceptance_sampler_posterior_threshold typical_acceptance_sampler_posterior_alpha",
        flags="speculative_disable_mqa_scorer disable_logprobs_during_spec_decoding",
    ),
    Reason(
        "log lines go to standard error; --log-format says how, --log-level how many",
        values="logging_config log_config_file",
        flags="aggregate_engine_logging log_error_stack enable_logging_iteration_details",
    ),
    Reason(
        "there is no access log but one line for each request, which --disable-log-requests turns off",
        values="disable_access_log_for_endpoints",
        flags="disable_uvicorn_access_log",
    ),
    Reason(
        "outputs are not logged",
        flags="enable_log_outputs enable_log_deltas",
        same={"enable_log_deltas": "true"},
    ),
    Reason(
        "/metrics shows what plugserve measures, under vLLM's names as well where they mean the same",
        values="show_hidden_metrics_for_version per_request_spec_decode_metrics kv_cache_metrics_sample "
        "custom_histogram_buckets jit_monitor_mode",
        flags="kv_cache_metrics cudagraph_metrics enable_layerwise_nvtx_tracing enable_mfu_metrics jit_monitor_verbose "
        "enable_server_load_tracking enable_per_request_metrics",
        same={"per_request_spec_decode_metrics": "none", "jit_monitor_mode": "warn"},
    ),
    Reason(
        "an engine that dies or hangs is always replaced; --engine-hang-timeout says when",
        values="watchdog_config fault_tolerance_config",
        flags="enable_fault_tolerance",
    ),
    Reason(
        "the memory of a model is returned when its process exits; there is no sleep mode that it could set up",
        values="sleep_mode_backend",
        flags="sleep_mode_offload_cudagraph enable_cumem_allocator",
        lists="sleep_preserve_parameter_names",
    ),
    Reason(
        "text is processed in the server processes; --api-workers sets how many there are",
        values="renderer_num_workers tokenizer_pool_size tokenizer_pool_type tokenizer_pool_extra_config",
        flags="disable_frontend_multiprocessing",
        same={"renderer_num_workers": "1", "tokenizer_pool_size": "0"},
    ),
    Reason(
        "each architecture has one implementation here",
        values="model_impl",
        same={"model_impl": "auto vllm"},
    ),
    Reason(
        "on which cores an engine runs is left to the system: start plugserve under numactl or taskset",
        flags="numa_bind",
        lists="numa_bind_nodes numa_bind_cpus",
    ),
    Reason(
        "limits of a request's head are fixed; --max-body-size limits the body",
        values="h11_max_incomplete_event_size h11_max_header_count",
    ),
    Reason(
        "certificates are read again at SIGHUP; send it after you renew them",
        flags="enable_ssl_refresh",
    ),
    Reason(
        "idle streams carry no comments; set the proxy's read timeout above the longest wait",
        values="sse_keep_alive_interval",
        same={"sse_keep_alive_interval": "0"},
    ),
    Reason(
        "it belongs to an API that this server doesn't have (/tokenizer_info, Cohere's chat)",
        values="cohere_format",
        flags="enable_tokenizer_info_endpoint cohere_is_reasoning_model",
        same={"cohere_is_reasoning_model": "true", "cohere_format": "cmd4"},
    ),
    Reason(
        "system_fingerprint is always plugserve's name and version",
        values="fingerprint_mode fingerprint_value",
        same={"fingerprint_mode": "full hash"},
    ),
    Reason("the server checks its environment by itself", flags="fail_on_environ_validation"),
    Reason("scores are made of embeddings in the server", flags="enable_flash_late_interaction",
           same={"enable_flash_late_interaction": "true false"}),
    Reason("there is no encoder cache", values="ec_manager_config"),
    Reason("requests can't name logits processors", values="logits_processor_pattern"),
    Reason("every answer has an X-Request-Id header", flags="enable_request_id_headers",
           same={"enable_request_id_headers": "true"}),
    Reason("/docs needs no other server", flags="enable_offline_docs", same={"enable_offline_docs": "true false"}),
    Reason(
        "tools are left out of the prompt where tool_choice is none",
        flags="exclude_tools_when_tool_choice_none",
        same={"exclude_tools_when_tool_choice_none": "true"},
    ),
    Reason("--reasoning-parser alone says how thinking is read", flags="enable_reasoning",
           same={"enable_reasoning": "true false"}),
)  # fmt: skip
