"""Settings of vLLM that are refused by name: ignoring one would change what the user relies on.

Each reason ends with the nearest thing that plugserve has.
"""

from __future__ import annotations

from typing import Final

from plugserve.core.settings.vllm_names.vllm_name import Reason

NOT_SUPPORTED: Final = (
    Reason(
        "a token on the command line can be read by every user of the machine; set HF_TOKEN in the environment",
        values="hf_token",
        is_secret=True,
    ),
    Reason(
        "the engines of --data-parallel-size run on one machine; start a server on each machine and put `plugserve "
        "route` before them",
        values="data_parallel_size_local data_parallel_rank data_parallel_start_rank elastic_ep_max_dp_size",
        flags="data_parallel_hybrid_lb data_parallel_external_lb data_parallel_multi_port_external_lb "
        "enable_elastic_ep",
        same={
            "data_parallel_size_local": "1",
            "data_parallel_rank": "0",
            "data_parallel_start_rank": "0",
        },
    ),
    Reason(
        "a model runs on the devices of one machine; start one server on each machine and put `plugserve route` before "
        "them",
        values="nnodes node_rank",
        flags="headless engine_use_ray",
        same={"nnodes": "1", "node_rank": "0"},
    ),
    Reason(
        "the context of a sequence is never split over devices; --max-model-len limits it",
        values="decode_context_parallel_size prefill_context_parallel_size",
        same={"decode_context_parallel_size": "1", "prefill_context_parallel_size": "1"},
    ),
    Reason(
        "workers are plugserve's own; a plugin can provide a model runner (--plugin, --runner)",
        values="worker_cls worker_extension_cls",
        same={"worker_cls": "auto"},
    ),
    Reason(
        "classes are named by plugins: a scheduler plugin is chosen with --plugin and --scheduler",
        values="scheduler_cls",
    ),
    Reason(
        "the KV cache has the weights' number format; --dtype bfloat16 halves that of float32, --max-model-len and "
        "--max-num-seqs limit its use",
        values="kv_cache_dtype",
        same={"kv_cache_dtype": "auto"},
    ),
    Reason(
        "weights are not quantised at load; serve a quantised checkpoint or a GGUF file",
        values="quantization_config quantization_param_path qlora_adapter_name_or_path",
    ),
    Reason(
        "--revision names model, code and tokenizer; for others of them give --tokenizer a local folder",
        values="code_revision tokenizer_revision",
        same={"code_revision": "main", "tokenizer_revision": "main"},
    ),
    Reason(
        "config.json and the weights are read from the model's own folder; put them there and give --model that folder",
        values="hf_config_path model_weights",
    ),
    Reason(
        "config.json is the only form of a model's config that is read",
        values="config_format",
        same={"config_format": "auto hf"},
    ),
    Reason(
        "a plugin can provide an architecture: --plugin",
        values="model_class_overrides",
    ),
    Reason(
        "ignoring a model's sliding window would change its answers; to shorten the context use --max-model-len",
        flags="disable_sliding_window",
    ),
    Reason(
        "the server reads and writes text, so it needs the tokenizer; clients may send token ids to /v1/completions",
        flags="skip_tokenizer_init tokens_only",
    ),
    Reason(
        "requests take text or token ids, no embeddings",
        flags="enable_prompt_embeds",
    ),
    Reason(
        "answers hold text, tokens and logprobs, nothing else of the model's inside",
        values="aux_output_config",
        flags="enable_return_routed_experts return_sampling_mask",
    ),
    Reason(
        "logprobs are those of the model before temperature and other sampling parameters",
        values="logprobs_mode",
        same={"logprobs_mode": "raw_logprobs"},
    ),
    Reason(
        "a request chooses its embeddings' form with its own fields",
        values="pooler_config override_pooler_config",
    ),
    Reason(
        "code of one's own is a plugin here (`plugserve plugin new`, --plugin ./file.py); its hooks see every request",
        values="io_processor_plugin reasoning_parser_plugin tool_parser_plugin",
        lists="logits_processors middleware",
    ),
    Reason(
        "models are not put to sleep; those of --model-dir are loaded on demand and unloaded when idle (--model-ttl)",
        flags="enable_sleep_mode",
    ),
    Reason(
        "weights are read from files at start and never replaced while a model runs",
        values="weight_transfer_config",
    ),
    Reason(
        "requests can be recorded with --record-trace and replayed with `plugserve simulate`",
        flags="enable_trace_replay",
    ),
    Reason(
        "the KV cache stays in one server; --swap-space adds host memory to it",
        values="kv_transfer_config ec_transfer_config kv_events_config",
    ),
    Reason(
        "host memory for the KV cache is plugserve's own: --swap-space",
        values="kv_offloading_backend",
        same={"kv_offloading_backend": "native"},
    ),
    Reason(
        "--cpu-offload-gb keeps weights in host memory",
        values="offload_group_size",
        same={"offload_group_size": "0"},
    ),
    Reason(
        "answers carry no watermark",
        values="watermark_config",
    ),
    Reason(
        "diffusion models are not served; `plugserve models supported` lists what is",
        values="diffusion_config",
    ),
    Reason(
        "there is no profiler behind a route; --otlp-traces-endpoint has the times of each request",
        values="profiler_config",
    ),
    Reason(
        "an adapter has the base model's number format; --dtype sets both",
        values="lora_dtype",
        same={"lora_dtype": "auto"},
    ),
    Reason(
        "an adapter is applied in full or refused; its own adapter_config.json says to which modules",
        values="long_lora_scaling_factors",
        flags="enable_lora_bias",
        lists="lora_target_modules",
    ),
    Reason(
        "prompt adapters are not served; LoRA adapters are: --enable-lora",
        values="max_prompt_adapters max_prompt_adapter_token",
        flags="enable_prompt_adapter",
        lists="prompt_adapters",
    ),
    Reason(
        "a draft model runs on the same device as its model",
        values="speculative_draft_tensor_parallel_size",
        same={"speculative_draft_tensor_parallel_size": "1"},
    ),
    Reason(
        "drafts are kept by rejection sampling alone, which leaves the distribution of answers as it is",
        values="spec_decoding_acceptance_method",
        same={"spec_decoding_acceptance_method": "rejection_sampler"},
    ),
    Reason(
        "--reasoning-parser says how thinking is marked; a plugin can add a parser for other marks",
        values="reasoning_config",
    ),
    Reason(
        "templates get a request's reasoning_effort as it is; clients can send one that the template knows",
        values="reasoning_effort_map",
    ),
    Reason(
        "the template decides what it makes of disabled thinking; clients can send chat_template_kwargs",
        values="anthropic_disabled_thinking_effort",
        same={"anthropic_disabled_thinking_effort": "auto"},
    ),
    Reason(
        "answers have the role assistant",
        values="response_role",
        same={"response_role": "assistant"},
    ),
    Reason(
        "tools are left out of the prompt where tool_choice is none",
        flags="expand_tools_even_if_tool_choice_none",
    ),
    Reason(
        "a tool call is bound by a grammar where tool_choice forces it; clients can send required or a function's name",
        values="tool_strict_level",
        same={"tool_strict_level": "auto"},
    ),
    Reason(
        "the server calls no tools itself; clients do",
        values="tool_server",
    ),
    Reason(
        "there is no other API than HTTP on --port",
        values="grpc_port",
        flags="grpc enable_scale_out",
    ),
    Reason(
        "client certificates and ciphers are not checked here; put a proxy such as Nginx before the server, or use "
        "--api-key",
        values="ssl_ca_certs ssl_cert_reqs ssl_ciphers",
        same={"ssl_cert_reqs": "0"},
    ),
    Reason(
        "/docs and /openapi.json are always served and show nothing of requests; block them at the proxy before the "
        "server",
        flags="disable_fastapi_docs",
    ),
    Reason(
        "the queue is limited by the number of sequences: --max-num-queued-requests, with --max-prompt-tokens",
        values="max_num_queued_tokens",
    ),
)
