"""The hint for an unknown name: the setting that does the same thing, or none.

Names are compared word by word. A word that plugserve's own names use is no misspelling of another one, so
--min-model-len doesn't lead to --max-model-len.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from plugserve.core.settings.old_names import OLD_NAMES
from plugserve.core.settings.settings import setting_facts
from plugserve.core.settings.vllm_names.translations import TRANSLATIONS

COMMAND_FLAGS: Final = ("json", "inspect", "version", "help")
"""Flags of the commands themselves, which are no settings."""

SAME_THING: Final[Mapping[str, str]] = {
    "m": "model",
    "model_path": "model",
    "model_id": "model",
    "model_name": "model",
    "hf_repo": "model",
    "alias": "served_model_name",
    "tokenizer_path": "tokenizer",
    "p": "port",
    "listen": "host",
    "bind": "host",
    "hostname": "host",
    "tp_size": "tensor_parallel_size",
    "pp_size": "pipeline_parallel_size",
    "num_shard": "tensor_parallel_size",
    "max_seq_len": "max_model_len",
    "max_context_len": "max_model_len",
    "max_total_tokens": "max_model_len",
    "context_length": "max_model_len",
    "context_size": "max_model_len",
    "ctx_size": "max_model_len",
    "n_ctx": "max_model_len",
    "num_ctx": "max_model_len",
    "max_running_requests": "max_num_seqs",
    "max_concurrent_requests": "max_num_queued_requests",
    "max_batch_size": "max_num_seqs",
    "max_num_sequences": "max_num_seqs",
    "parallel": "max_num_seqs",
    "max_batch_prefill_tokens": "max_num_batched_tokens",
    "chunked_prefill_size": "max_num_batched_tokens",
    "mem_fraction_static": "gpu_memory_utilization",
    "cuda_memory_fraction": "gpu_memory_utilization",
    "gpu_memory_fraction": "gpu_memory_utilization",
    "kv_cache_size": "kv_cache_memory",
    "page_size": "block_size",
    "api_keys": "api_key",
    "key_file": "api_key_file",
    "ssl_key": "ssl_keyfile",
    "ssl_cert": "ssl_certfile",
    "ssl_key_file": "ssl_keyfile",
    "ssl_cert_file": "ssl_certfile",
    "tls_key": "ssl_keyfile",
    "tls_cert": "ssl_certfile",
    "cors_allow_origin": "allowed_origins",
    "cors_origins": "allowed_origins",
    "workers": "api_workers",
    "num_workers": "api_workers",
    "num_threads": "threads",
    "threads_http": "api_workers",
    "timeout": "request_timeout",
    "max_waiting_requests": "max_num_queued_requests",
    "max_queue_size": "max_num_queued_requests",
    "max_input_length": "max_prompt_tokens",
    "max_input_tokens": "max_prompt_tokens",
    "model_draft": "speculative_model",
    "draft_model": "speculative_model",
    "speculative_draft_model_path": "speculative_model",
    "draft_max": "num_speculative_tokens",
    "speculative_num_draft_tokens": "num_speculative_tokens",
    "speculate": "num_speculative_tokens",
    "lora": "lora_modules",
    "lora_paths": "lora_modules",
    "lora_adapters": "lora_modules",
    "max_loras_per_batch": "max_loras",
    "enable_auto_tools": "enable_auto_tool_choice",
    "enable_tools": "enable_auto_tool_choice",
    "tool_parser": "tool_call_parser",
    "prefix_caching": "enable_prefix_caching",
    "prefix_cache": "enable_prefix_caching",
    "enable_prefix_cache": "enable_prefix_caching",
    "automatic_prefix_caching": "enable_prefix_caching",
    "disable_cuda_graph": "enforce_eager",
    "eager": "enforce_eager",
    "schedule_policy": "scheduler",
    "scheduler_policy": "scheduler",
    "plugins": "plugin",
    "verbosity": "log_level",
    "log_json": "log_format",
    "no_log_requests": "disable_log_requests",
    "otlp_traces": "otlp_traces_endpoint",
    "cache_dir": "download_dir",
    "huggingface_hub_cache": "download_dir",
    "jinja_template": "chat_template",
    "chat_template_file": "chat_template",
    "config_file": "config",
    "settings_file": "config",
    "offload_gb": "cpu_offload_gb",
}
"""Names that users of other servers try, with the setting that does the same thing."""

_SHORTEST_PREFIX: Final = 3


def flag_hint(spelt: str) -> str:
    """The hint for an unknown flag, or an empty text."""
    name = spelt.lstrip("-").replace("-", "_")
    if spelt.startswith("--") and name in COMMAND_FLAGS:
        return f" {spelt} belongs to `plugserve plugins`"
    known = [*_known(), *COMMAND_FLAGS]
    found = same_thing(name, known) or (same_thing(name[3:], known) if name.startswith("no_") else None)
    return f" Did you mean '--{found.replace('_', '-')}'?" if found else ""


def name_hint(name: str, spelt: str) -> str:
    """The hint in the spelling of the place: PLUGSERVE_X in the environment, x in a file."""
    found = same_thing(name, _known())
    if found is None:
        return ""
    return f" Did you mean '{'PLUGSERVE_' + found.upper() if spelt.startswith('PLUGSERVE_') else found}'?"


def _known() -> list[str]:
    return [*setting_facts(), *OLD_NAMES, *TRANSLATIONS]


def same_thing(name: str, known: Sequence[str]) -> str | None:
    """The known name that does what name would: from the table of other servers' names, else by its spelling."""
    if name in SAME_THING:
        return SAME_THING[name]
    words = name.split("_")
    vocabulary = {word for one in setting_facts() for word in one.split("_")} | _OPPOSITES
    misspelt = [_own(one) for one in known if _is_misspelt(words, one.split("_"), vocabulary)]
    if misspelt:
        return misspelt[0]
    shortened = {_own(one) for one in known if _is_shortened(words, one.split("_"))}
    return shortened.pop() if len(shortened) == 1 else None


def _own(name: str) -> str:
    """plugserve's name for a setting; another name whose boolean means the opposite is returned unchanged."""
    old = OLD_NAMES.get(name)
    return name if old is None or old.inverted else old.new


_OPPOSITES: Final = frozenset({"min", "max", "enable", "disable", "input", "output", "first", "last"})


def _is_misspelt(words: Sequence[str], known: Sequence[str], vocabulary: Collection[str]) -> bool:
    """Equal but for slips within words, or for where one word ends."""
    if "".join(words) == "".join(known) or sorted(words) == sorted(known):
        return True
    return len(words) == len(known) and all(
        ours == theirs
        or _is_plural(theirs, ours)
        or (min(len(theirs), len(ours)) >= _SHORTEST_PREFIX and theirs.startswith(ours))
        or (theirs not in vocabulary and is_slip(theirs, ours))
        for theirs, ours in zip(words, known, strict=True)
    )


def is_slip(one: str, other: str) -> bool:
    """one is other with a letter or two left out, added, replaced or swapped with the next."""
    return _num_slips(one, other) <= _most(other)


def _is_plural(one: str, other: str) -> bool:
    return one in (other + "s", other + "es") or other in (one + "s", one + "es")


def _most(word: str) -> int:
    """Slips that a misspelt word may have."""
    return 0 if len(word) < 3 else 1 if len(word) < 6 else 2


def _is_shortened(words: Sequence[str], known: Sequence[str]) -> bool:
    """Two or more words, each a beginning of known's: gpu_mem for gpu_memory_utilization."""
    return 2 <= len(words) <= len(known) and all(
        ours == theirs or (len(theirs) >= _SHORTEST_PREFIX and ours.startswith(theirs))
        for theirs, ours in zip(words, known, strict=False)
    )


def _num_slips(one: str, other: str) -> int:
    """Damerau-Levenshtein distance: letters left out, added, replaced, or swapped with the next."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        above, row = row, [i]
        for j, wanted in enumerate(other, 1):
            cost = min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (letter != wanted))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == wanted:
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
        before = above
    return row[-1]
