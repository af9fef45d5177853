"""vLLM's settings of speculative decoding as plugserve's."""

from __future__ import annotations

from typing import Any, Final

from plugserve.core.errors import ConfigError, did_you_mean
from plugserve.core.settings.vllm_names.json_value import json_object
from plugserve.core.settings.vllm_names.vllm_name import Taken, as_text, shown

NGRAM: Final = "ngram"
_NGRAM_METHODS: Final = ("ngram", "[ngram]", "ngram_gpu")
_WITHOUT_EFFECT: Final = frozenset(
    [
        "enforce_eager",
        "quantization",
        "moe_backend",
        "attention_backend",
        "kv_cache_dtype",
        "max_model_len",
        "disable_padded_drafter_batch",
        "disable_eagle_block_drop",
        "disable_lookahead_block_hashes",
        "draft_lm_head_quantization",
        "use_local_argmax_reduction",
        "num_speculative_tokens_per_batch_size",
        "enable_adaptive_verification",
        "index_share_for_mtp_iteration",
        "disable_by_batch_size",
        "disable_mqa_scorer",
        "disable_logprobs",
        "draft_load_config",
        "parallel_drafting",
    ]
)
_SAME: Final = {
    "draft_tensor_parallel_size": "1",
    "tensor_parallel_size": "1",
    "rejection_sample_method": "standard",
    "acceptance_method": "rejection_sampler",
    "use_heterogeneous_vocab": "false",
}
_READ: Final = frozenset(
    {"method", "model", "num_speculative_tokens", "prompt_lookup_min", "prompt_lookup_max", "draft_sample_method"}
)
_KNOWN: Final = _READ | _WITHOUT_EFFECT | _SAME.keys()


def speculative_config(value: Any, place: str) -> Taken:
    """A JSON object of vLLM's SpeculativeConfig."""
    given = {key.replace("-", "_"): entry for key, entry in json_object(value, place).items() if entry is not None}
    method = _method(given, place)
    _refuse_others(given, place)
    idle = sorted(_WITHOUT_EFFECT & given.keys())
    warnings = (f"{', '.join(idle)} of {place}: no effect here, drafts are made in one way",) if idle else ()
    values = {key: given[key] for key in ("num_speculative_tokens",) if key in given}
    if method == NGRAM:
        return Taken(values, (NGRAM,), {NGRAM: _lookup(given)}, warnings)
    if "model" not in given:
        raise ConfigError(f"{place} needs the key model, the draft model, or the method ngram")
    return Taken(values | {"speculative_model": given["model"]}, (), _draws(given, place), warnings)


def _method(given: dict[str, Any], place: str) -> str:
    method = given.get("method")
    if method is None and given.get("model") in _NGRAM_METHODS:
        method = NGRAM
    return _known_method("draft_model" if method is None else method, f"method of {place}")


def _known_method(value: Any, place: str) -> str:
    word = as_text(value)
    if word in _NGRAM_METHODS:
        return NGRAM
    if word != "draft_model":
        raise ConfigError(
            f"{shown(value, place)} is not supported: drafts come from a draft model (draft_model) or from the text so "
            "far (ngram)"
        )
    return word


def _refuse_others(given: dict[str, Any], place: str) -> None:
    for key, value in given.items():
        if key not in _KNOWN and not key.startswith("suffix_decoding_"):
            raise ConfigError(f"{place} has the unknown key {key!r}.{did_you_mean(key, sorted(_KNOWN))}")
        if key in _SAME and as_text(value) != _SAME[key]:
            raise ConfigError(
                f"{shown(value, f'{key} of {place}')} is not supported: only {_SAME[key]} is; leave the key out"
            )


def _lookup(given: dict[str, Any]) -> dict[str, Any]:
    """The options of the plugin ngram; a bound that is given alone is both, as in vLLM."""
    shortest, longest = given.get("prompt_lookup_min"), given.get("prompt_lookup_max")
    if shortest is None and longest is None:
        return {}
    return {"min_n": longest if shortest is None else shortest, "max_n": shortest if longest is None else longest}


def _draws(given: dict[str, Any], place: str) -> dict[str, dict[str, Any]]:
    """The options of the plugin draft-model."""
    way = given.get("draft_sample_method")
    if way is None:
        return {}
    draws = {"greedy": "greedy", "probabilistic": "sampled"}.get(as_text(way))
    if draws is None:
        raise ConfigError(f"draft_sample_method of {place} must be greedy or probabilistic, got {way!r}")
    return {"draft-model": {"draws": draws}}


def speculative_method(value: Any, place: str) -> Taken:
    """--spec-method: ngram, or draft_model, which --speculative-model turns on."""
    return Taken(plugins=(NGRAM,)) if _known_method(value, place) == NGRAM else Taken()


def speculative_model(value: Any, place: str) -> Taken | None:
    """--speculative-model [ngram] of older versions."""
    return Taken({"speculative_model": None}, (NGRAM,)) if value == "[ngram]" else None


def shortest_match(value: Any, place: str) -> Taken:
    return Taken(options={NGRAM: {"min_n": value}})


def longest_match(value: Any, place: str) -> Taken:
    return Taken(options={NGRAM: {"max_n": value}})
