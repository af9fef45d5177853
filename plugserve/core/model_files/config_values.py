"""Checks the values of config.json and generation_config.json before they are used.

A key is checked where it is given; families.py defines the meaning of keys and the keys that an architecture needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from plugserve.core.errors import ModelError
from plugserve.core.model_files.json_file import shown

Check = Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    """Finite, and small enough for a double."""
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 1 << 63
    return isinstance(value, float) and math.isfinite(value)


def _whole(least: int, most: int) -> Check:
    return lambda value: type(value) is int and least <= value <= most


def _number(least: float, most: float = 1e18, *, excludes_least: bool = False) -> Check:
    return lambda value: _is_number(value) and least <= value <= most and not (excludes_least and value == least)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool) or value in (0, 1)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(_number(0.0, 1e6, excludes_least=True)(one) for one in value)


def _are_ids(value: Any) -> bool:
    """A token id or several; -1 means none. Entries of a list that are not numbers are ignored."""
    ids = [one for one in value if type(one) is int] if isinstance(value, list) else [value]
    return all(type(one) is int and -1 <= one < 1 << 31 for one in ids)


_POSITIVE: Final = "a number above 0"
_SIZE: Final = (lambda value: type(value) is int and value >= 1, "a whole number above 0")
_MOST: Final[Mapping[str, int]] = {
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 24,
    "num_hidden_layers": 1 << 14,
    "num_attention_heads": 1 << 16,
    "num_key_value_heads": 1 << 16,
    "head_dim": 1 << 16,
    "vocab_size": 1 << 26,
    "max_position_embeddings": 1 << 31,
    "original_max_position_embeddings": 1 << 31,
    "n_positions": 1 << 31,
    "n_ctx": 1 << 31,
    "max_seq_len": 1 << 31,
    "seq_length": 1 << 31,
    "max_sequence_length": 1 << 31,
}
"""Sizes, and the largest that any model could have."""

_CONFIG: Final[Mapping[str, tuple[Check, str]]] = {
    **dict.fromkeys(_MOST, _SIZE),
    "sliding_window": (_whole(0, 1 << 31), "a whole number or null"),
    "max_window_layers": (_whole(0, 1 << 31), "a whole number of at least 0"),
    "rms_norm_eps": (_number(0.0, 1.0), "a number from 0 to 1"),
    "rope_theta": (_number(0.0, excludes_least=True), _POSITIVE),
    "rope_local_base_freq": (_number(0.0, excludes_least=True), _POSITIVE),
    "partial_rotary_factor": (_number(0.0, 1.0, excludes_least=True), "a number above 0 and at most 1"),
    "query_pre_attn_scalar": (_number(0.0, excludes_least=True), _POSITIVE),
    "attn_logit_softcapping": (_number(0.0), "a number or null"),
    "final_logit_softcapping": (_number(0.0), "a number or null"),
    "tie_word_embeddings": (_is_flag, "true or false"),
    "attention_bias": (_is_flag, "true or false"),
    "mlp_bias": (_is_flag, "true or false"),
    "use_sliding_window": (_is_flag, "true or false"),
    "hidden_act": (_is_text, "a text"),
    "hidden_activation": (_is_text, "a text"),
    "model_type": (_is_text, "a text"),
    "dtype": (_is_text, "a text"),
    "torch_dtype": (_is_text, "a text"),
    "architectures": (_are_texts, "a list of texts"),
    "layer_types": (_are_texts, "a list of texts"),
    "rope_scaling": (_is_object, "an object"),
    "rope_parameters": (_is_object, "an object"),
    "text_config": (_is_object, "an object"),
    "quantization_config": (_is_object, "an object"),
    "compression_config": (_is_object, "an object"),
    "eos_token_id": (_are_ids, "a token id or a list of them"),
}
_ROPE: Final[Mapping[str, tuple[Check, str]]] = {
    "rope_type": (_is_text, "a text"),
    "type": (_is_text, "a text"),
    "rope_theta": (_number(0.0, excludes_least=True), _POSITIVE),
    "factor": (_number(0.0, 1e6, excludes_least=True), _POSITIVE),
    "low_freq_factor": (_number(0.0, 1e6, excludes_least=True), _POSITIVE),
    "high_freq_factor": (_number(0.0, 1e6, excludes_least=True), _POSITIVE),
    "attention_factor": (_number(0.0, 1e6), _POSITIVE),
    "beta_fast": (_number(0.0, 1e6, excludes_least=True), _POSITIVE),
    "beta_slow": (_number(0.0, 1e6, excludes_least=True), _POSITIVE),
    "mscale": (_number(0.0, 1e6), "a number"),
    "mscale_all_dim": (_number(0.0, 1e6), "a number"),
    "short_mscale": (_number(0.0, 1e6), "a number"),
    "long_mscale": (_number(0.0, 1e6), "a number"),
    "short_factor": (_are_numbers, "a list of numbers above 0"),
    "long_factor": (_are_numbers, "a list of numbers above 0"),
    "partial_rotary_factor": (_number(0.0, 1.0, excludes_least=True), "a number above 0 and at most 1"),
    "original_max_position_embeddings": _SIZE,
}
_SAMPLING: Final[Mapping[str, tuple[Check, str]]] = {
    "temperature": (_number(0.0, 100.0), "a number from 0 to 100"),
    "top_p": (_number(0.0, 1.0, excludes_least=True), "a number above 0 and at most 1"),
    "top_k": (_whole(-1, 1 << 31), "a whole number of at least -1"),
    "min_p": (_number(0.0, 1.0), "a number from 0 to 1"),
    "repetition_penalty": (_number(0.0, 100.0, excludes_least=True), "a number above 0"),
    "max_new_tokens": (_whole(1, 1 << 31), "a whole number of at least 1"),
    "eos_token_id": (_are_ids, "a token id or a list of them"),
}


def check_config(path: Path | str, config: Mapping[str, Any]) -> None:
    """Raise ModelError for a value of config.json that is invalid for its key. null counts as not given."""
    _check(path, "", config, _CONFIG)
    for key in ("rope_scaling", "rope_parameters"):
        rope = config.get(key)
        if rope is not None:
            _check(path, f"{key}.", rope, _ROPE)
            for name, nested in rope.items():  # by layer type
                if isinstance(nested, dict):
                    _check(path, f"{key}.{name}.", nested, _ROPE)


def check_generation_config(path: Path | str, config: Mapping[str, Any]) -> None:
    """Raise ModelError for a value of generation_config.json that would be invalid in a request."""
    _check(path, "", config, _SAMPLING)


def _check(path: Path | str, prefix: str, values: Mapping[str, Any], rules: Mapping[str, tuple[Check, str]]) -> None:
    for key, (is_right, accepts) in rules.items():
        value = values.get(key)
        if value is not None and not is_right(value):
            raise ModelError(f"{path}: {prefix}{key} should be {accepts}, got {shown(value)}")
        if type(value) is int and value > _MOST.get(key, value):
            raise ModelError(f"{path}: {prefix}{key} should be at most {_MOST[key]}, got {shown(value)}")
