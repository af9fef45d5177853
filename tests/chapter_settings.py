"""The config file of the brief's chapter on vLLM, key by key."""

CHAPTER = """\
model: "Qwen/Qwen2.5-7B-Instruct"
tokenizer: null
revision: "main"
tokenizer_mode: auto
trust_remote_code: true
dtype: auto
download_dir: "/data/models"
load_format: auto

tensor_parallel_size: 1
pipeline_parallel_size: 1
worker_use_ray: false
distributed_executor_backend: null

max_model_len: 16384
gpu_memory_utilization: 0.92
swap_space: 4
cpu_offload_gb: 0
num_gpu_blocks_override: null
max_num_seqs: 128
max_num_batched_tokens: null
scheduler_delay_factor: 0.1

enable_lora: false
max_loras: 1
max_lora_rank: 16
max_lora_size: 64

enable_prefix_caching: true
enforce_eager: false
speculative_model: null
num_speculative_tokens: 5

host: "0.0.0.0"
port: 8000
ssl_keyfile: null
ssl_certfile: null
disable_log_requests: true
"""
