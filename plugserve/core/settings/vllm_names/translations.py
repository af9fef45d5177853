"""Settings of vLLM whose values become plugserve's settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from plugserve.core.errors import ConfigError, did_you_mean
from plugserve.core.settings.vllm_names.json_value import json_object
from plugserve.core.settings.vllm_names.speculation import (
    longest_match,
    shortest_match,
    speculative_config,
    speculative_method,
    speculative_model,
)
from plugserve.core.settings.vllm_names.vllm_name import Taken, VllmName, as_text, shown

_READ_QUANTISATIONS: Final = frozenset(
    ["awq", "awq_marlin", "compressed-tensors", "fp8", "gguf", "gptq", "gptq_marlin", "marlin", "gptq_bitblas"]
)
_GRAMMAR_BACKENDS: Final = frozenset({"auto", "guidance", "xgrammar", "outlines", "lm-format-enforcer"})
_ATTENTION: Final = {
    "auto": "auto",
    "torch_sdpa": "torch-sdpa",
    "triton_attn": "triton-paged",
    "triton_attn_vllm_v1": "triton-paged",
}
_OTHER_ATTENTION: Final = frozenset(
    [
        "flash_attn",
        "flash_attn_vllm_v1",
        "flashinfer",
        "flashinfer_vllm_v1",
        "flash_attn_diffkv",
        "flex_attention",
        "xformers",
        "rocm_attn",
        "rocm_flash",
        "rocm_aiter_fa",
        "rocm_aiter_unified_attn",
        "cpu_attn",
        "tree_attn",
        "turboquant",
        "pallas",
        "pallas_vllm_v1",
    ]
)


def quantization(value: Any, place: str) -> Taken:
    """The checkpoint itself says how it is quantised."""
    if as_text(value) not in _READ_QUANTISATIONS:
        raise ConfigError(
            f"{shown(value, place)} is not supported: checkpoints in awq, gptq, fp8 and compressed-tensors and GGUF "
            "files are read; weights are not quantised at load"
        )
    return Taken(
        warnings=(
            f"{shown(value, place)} has no effect here: a checkpoint's own files say how it is quantised, and weights "
            "are dequantised at load; a model that is not quantised stays as it is",
        )
    )


def attention_backend(value: Any, place: str) -> Taken:
    """vLLM's names of attention backends; others are plugserve's."""
    word = as_text(value)
    if word in _OTHER_ATTENTION:
        return Taken(
            {"attention": "auto"},
            warnings=(f"{shown(value, place)} has no effect here: auto chooses among plugserve's own backends",),
        )
    return Taken({"attention": _ATTENTION.get(word, value)}, warnings=(f"{place} is taken as --attention",))


def attention_config(value: Any, place: str) -> Taken:
    given = json_object(value, place)
    backend = given.get("backend")
    taken = Taken() if backend is None else attention_backend(backend, f"backend of {place}")
    others = sorted(key for key in given if key != "backend")
    more = (f"{', '.join(others)} of {place}: no effect here, backends choose their kernels",) if others else ()
    return Taken(taken.values, warnings=(*taken.warnings, *more))


def structured_outputs_config(value: Any, place: str) -> Taken:
    """A JSON object of vLLM's StructuredOutputsConfig."""
    given = {key.replace("-", "_"): entry for key, entry in json_object(value, place).items() if entry is not None}
    known = {*_STRUCTURED, "backend", "reasoning_parser", "disable_fallback"}
    for key, entry in given.items():
        if key not in known:
            raise ConfigError(f"{place} has the unknown key {key!r}.{did_you_mean(key, sorted(known))}")
        if key in _STRUCTURED and as_text(entry) not in ("false", ""):
            raise ConfigError(f"{shown(entry, f'{key} of {place}')} is not supported: {_STRUCTURED[key]}")
    parser = given.get("reasoning_parser")
    values = {"reasoning_parser": parser} if parser else {}
    return Taken(values, warnings=_grammar_backend(given.get("backend", "auto"), f"backend of {place}").warnings)


_STRUCTURED: Final[Mapping[str, str]] = {
    "disable_any_whitespace": "white space between the parts of a JSON answer follows the model; say in the prompt "
    "that it shall be compact",
    "disable_additional_properties": "write additionalProperties: false into the schema",
    "enable_in_reasoning": "a grammar binds the answer, not the thinking before it",
    "reasoning_parser_plugin": "a plugin can provide a reasoning parser: --plugin ./file.py",
}


def _grammar_backend(value: Any, place: str) -> Taken:
    word = as_text(value).partition(":")[0]
    if word not in _GRAMMAR_BACKENDS:
        raise ConfigError(f"{shown(value, place)} is not supported: structured output has one backend, guidance")
    if word in ("auto", "guidance"):
        return Taken()
    return Taken(warnings=(f"{shown(value, place)} has no effect here: grammars run on llguidance",))


def whitespace_flag(value: Any, place: str) -> Taken:
    raise ConfigError(f"{shown(value, place)} is not supported: {_STRUCTURED['disable_any_whitespace']}")


def properties_flag(value: Any, place: str) -> Taken:
    raise ConfigError(f"{shown(value, place)} is not supported: {_STRUCTURED['disable_additional_properties']}")


def runner(value: Any, place: str) -> Taken | None:
    """vLLM's --runner says what a model is used for; plugserve's names the plugin that runs it."""
    word = as_text(value)
    if word in ("auto", "generate"):
        return Taken({"runner": "auto"})
    if word == "pooling":
        return Taken({"runner": "auto"}, warnings=kind_of_model(value, place).warnings)
    return None


def kind_of_model(value: Any, place: str) -> Taken:
    """--task, --convert: what a model is used for."""
    if as_text(value) in ("embed", "embedding", "pooling", "score"):
        why = "a model's own files say what it is for, and /v1/embeddings is served for every one"
        return Taken(warnings=(f"{shown(value, place)} has no effect here: {why}",))
    raise ConfigError(
        f"{shown(value, place)} is not supported: models generate text and embeddings; leave it at auto or generate"
    )


def compilation_config(value: Any, place: str) -> Taken:
    """A level from 0 to 3, or a JSON object: only whether CUDA graphs are captured matters here."""
    word = as_text(value)
    if word.isdigit():
        return optimization_level(value, place)
    given = json_object(value, place)
    eager = as_text(given.get("cudagraph_mode", "")) == "none" or as_text(given.get("use_cudagraph", "")) == "false"
    others = sorted(key for key in given if key not in ("cudagraph_mode", "use_cudagraph"))
    return Taken({"enforce_eager": True} if eager else {}, warnings=_not_compiled(", ".join(others), place))


def optimization_level(value: Any, place: str) -> Taken:
    """Level 0 captures no CUDA graphs."""
    word = as_text(value).removeprefix("o")
    if word == "0":
        return Taken({"enforce_eager": True}, warnings=(f"{shown(value, place)} is taken as --enforce-eager",))
    if word not in ("1", "2", "3"):
        raise ConfigError(f"{place} must be a level from 0 to 3, got {value!r}")
    return Taken(warnings=_not_compiled(f"level {word}", place))


def _not_compiled(what: str, place: str) -> tuple[str, ...]:
    if not what:
        return ()
    return (f"{what} of {place}: no effect here, plugserve compiles its own kernels; --enforce-eager turns graphs off",)


def device_ids(value: Any, place: str) -> Taken:
    ids = [part.strip() for part in ",".join(map(str, value)).split(",") if part.strip()]
    if len(ids) == 1 and ids[0].isdigit():
        return Taken({"device": f"cuda:{ids[0]}"}, warnings=(f"{place} is taken as --device cuda:{ids[0]}",))
    raise ConfigError(
        f"{shown(value, place)} is not supported: --device cuda:N names one device, CUDA_VISIBLE_DEVICES those that "
        "are visible"
    )


def kv_offloading_size(value: Any, place: str) -> Taken:
    return Taken({"swap_space": value}, warnings=(f"{place} is taken as --swap-space",))


def rope_scaling(value: Any, place: str) -> Taken:
    return _override({"rope_scaling": json_object(value, place)}, place)


def rope_theta(value: Any, place: str) -> Taken:
    try:
        theta = float(value)
    except (TypeError, ValueError):
        theta = 0.0
    if not 0 < theta < float("inf"):
        raise ConfigError(f"{place} must be a number above 0, got {value!r}")
    return _override({"rope_theta": theta}, place)


def _override(entries: dict[str, Any], place: str) -> Taken:
    return Taken(entries={"hf_overrides": entries}, warnings=(f"{place} is taken as a key of --hf-overrides",))


TRANSLATIONS: Final[Mapping[str, tuple[VllmName, str]]] = {
    "speculative_config": (
        VllmName(speculative_config, is_json=True),
        "`--speculative-model`, or `--plugin ngram`; `--num-speculative-tokens`",
    ),
    "spec_method": (VllmName(speculative_method), "`--plugin ngram`"),
    "ngram_prompt_lookup_max": (VllmName(longest_match), "the option max-n of the plugin ngram"),
    "ngram_prompt_lookup_min": (VllmName(shortest_match), "the option min-n of the plugin ngram"),
    "structured_outputs_config": (
        VllmName(structured_outputs_config, is_json=True),
        "`--reasoning-parser`; any backend is llguidance",
    ),
    "guided_decoding_backend": (VllmName(_grammar_backend), "any backend is llguidance"),
    "guided_decoding_disable_fallback": (
        VllmName(lambda value, place: Taken(), "flag", same=("false",)),
        "there is one backend",
    ),
    "guided_decoding_disable_any_whitespace": (VllmName(whitespace_flag, "flag", same=("false",)), "refused if set"),
    "guided_decoding_disable_additional_properties": (
        VllmName(properties_flag, "flag", same=("false",)),
        "refused if set",
    ),
    "quantization": (VllmName(quantization, same=("none", "auto")), "a checkpoint's own files say it"),
    "attention_backend": (VllmName(attention_backend), "`--attention`"),
    "attention_config": (VllmName(attention_config, is_json=True), "`--attention`"),
    "task": (VllmName(kind_of_model, same=("auto", "generate")), "auto and generate are what is served"),
    "convert": (VllmName(kind_of_model, same=("auto", "none")), "auto and none are what is served"),
    "compilation_config": (VllmName(compilation_config, is_json=True), "cudagraph_mode NONE is `--enforce-eager`"),
    "optimization_level": (VllmName(optimization_level), "0 is `--enforce-eager`"),
    "device_ids": (VllmName(device_ids, "list", takes_many=True), "`--device cuda:N`"),
    "kv_offloading_size": (VllmName(kv_offloading_size), "`--swap-space`"),
    "rope_scaling": (VllmName(rope_scaling, is_json=True), "a key of `--hf-overrides`"),
    "rope_theta": (VllmName(rope_theta), "a key of `--hf-overrides`"),
}
"""By name: how it is read, and what it becomes, for the docs."""

OWN_VALUES: Final[Mapping[str, Callable[[Any, str], Taken | None]]] = {
    "runner": runner,
    "speculative_model": speculative_model,
}
"""plugserve's settings to which vLLM gives values of its own; None leaves a value as it is."""
