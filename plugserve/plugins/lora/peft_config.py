"""Reads adapter_config.json as PEFT writes it: the scaling, and the features that can't be served. PEFT's features
beyond plain LoRA on projections change a model's output, so each is refused by name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plugserve.core.contracts.regular_files import read_regular_file
from plugserve.core.errors import AdapterError

CONFIG_FILE = "adapter_config.json"

_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to initialise (init_lora_weights) that also change the base model's weights."""

_MUST_BE_EMPTY = {
    "trainable_token_indices": "trains token embeddings",
    "target_parameters": "targets parameters that are not projections",
    "layer_replication": "repeats layers",
    "alora_invocation_tokens": "is an activated LoRA",
    "use_qalora": "is a QA-LoRA",
    "use_bdlora": "is a block-diagonal LoRA",
    "arrow_config": "routes between adapters (Arrow)",
    "monteclora_config": "is a MonteCLoRA",
}
_COSTLY_PATTERN = re.compile(r"[)\]][*+{?]|\(\?")
_LONGEST_PATTERN = 256
_MOST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """The values for scaling and checks. rank_pattern and alpha_pattern are values by a regular expression that a
    module's name ends with (or matches from its start, with ^). targets is None where the config names them by one
    expression.
    """

    rank: int
    alpha: float
    uses_rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    targets: tuple[str, ...] | None

    def rank_of(self, module: str) -> int:
        """The rank that module ("model.layers.0.self_attn.q_proj") should have."""
        return int(self.rank_pattern.get(_matching(self.rank_pattern, module), self.rank))

    def scaling_of(self, module: str) -> float:
        """alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA (Kalajdzievski 2023)."""
        alpha = self.alpha_pattern.get(_matching(self.alpha_pattern, module), self.alpha)
        rank = self.rank_of(module)
        return alpha / math.sqrt(rank) if self.uses_rslora else alpha / rank


def _matching(patterns: Mapping[str, Any], module: str) -> str:
    """The first pattern that fits module, as PEFT picks it; "" for none."""
    for pattern in patterns:
        expression = pattern if pattern.startswith("^") else rf"(.*\.)?({pattern})$"
        if re.match(expression, module):
            return pattern
    return ""


def read_config(folder: Path, max_rank: int) -> AdapterConfig:
    """The config in folder. Raises AdapterError for what can't be read or served."""
    path = folder / CONFIG_FILE
    try:
        raw = json.loads(read_regular_file(path, _MOST_BYTES).decode("utf-8"))
    except FileNotFoundError:
        raise AdapterError(f"{CONFIG_FILE} is missing: a LoRA adapter is a folder as PEFT saves it") from None
    except OSError as error:
        raise AdapterError(f"{CONFIG_FILE} can't be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{CONFIG_FILE} can't be read as JSON: {error}") from None
    if not isinstance(raw, dict):
        raise AdapterError(f"{CONFIG_FILE} should hold a JSON object, got {type(raw).__name__}")
    _refuse_other_kinds(raw)
    config = AdapterConfig(
        rank=_rank(raw.get("r"), "r"),
        alpha=_number(raw.get("lora_alpha", 8), "lora_alpha"),
        uses_rslora=bool(raw.get("use_rslora")),
        rank_pattern={name: _rank(rank, f"rank_pattern {name!r}") for name, rank in _patterns(raw, "rank_pattern")},
        alpha_pattern={
            name: _number(alpha, f"alpha_pattern {name!r}") for name, alpha in _patterns(raw, "alpha_pattern")
        },
        targets=_targets(raw.get("target_modules")),
    )
    for rank in (config.rank, *config.rank_pattern.values()):
        if rank > max_rank:
            raise AdapterError(
                f"LoRA rank {rank} is greater than max_lora_rank {max_rank}; start the server with --max-lora-rank "
                f"{rank} or more"
            )
    return config


def _refuse_other_kinds(raw: Mapping[str, Any]) -> None:
    kind = raw.get("peft_type", "LORA")
    if kind != "LORA":
        raise AdapterError(f"peft_type is {kind!r}; only LORA is supported")
    if raw.get("use_dora"):
        raise AdapterError("use_dora is set: plugserve does not yet support DoRA")
    if raw.get("modules_to_save"):
        raise AdapterError(
            f"modules_to_save is {raw['modules_to_save']}: plugserve only supports modules_to_save being None, because "
            "whole modules would have to be swapped with each request"
        )
    if raw.get("bias", "none") != "none" or raw.get("lora_bias"):
        raise AdapterError("the adapter trains biases (bias, lora_bias): only bias 'none' is supported")
    init = raw.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower().startswith(_CHANGES_BASE):
        raise AdapterError(
            f"init_lora_weights is {init!r}, which changes the base model too; convert the adapter to a plain LoRA "
            "(PEFT: save_pretrained(path_initial_model_for_weight_conversion=...))"
        )
    for field, what in _MUST_BE_EMPTY.items():
        if raw.get(field):
            raise AdapterError(f"the adapter {what} ({field}): only plain LoRA is supported")


def _rank(value: Any, field: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise AdapterError(f"{CONFIG_FILE}: {field} must be a rank of at least 1, got {value!r}")
    return value


def _number(value: Any, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise AdapterError(f"{CONFIG_FILE}: {field} must be a number, got {value!r}")
    return float(value)


def _patterns(raw: Mapping[str, Any], field: str) -> list[tuple[str, Any]]:
    """The entries of rank_pattern or alpha_pattern. An expression that could backtrack without end is refused."""
    given = raw.get(field) or {}
    if not isinstance(given, dict):
        raise AdapterError(f"{CONFIG_FILE}: {field} must be an object, got {type(given).__name__}")
    for pattern in given:
        try:
            re.compile(pattern)
        except re.error as error:
            raise AdapterError(f"{CONFIG_FILE}: {field} {pattern!r} is not a regular expression: {error}") from None
        if len(pattern) > _LONGEST_PATTERN or _COSTLY_PATTERN.search(pattern) or pattern.count("*") > 2:
            raise AdapterError(f"{CONFIG_FILE}: {field} {pattern[:80]!r} is more complex than module names need")
    return list(given.items())


def _targets(value: Any) -> tuple[str, ...] | None:
    if value is None or isinstance(value, str):
        return None
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise AdapterError(f"{CONFIG_FILE}: target_modules must be a list of names or one expression, got {value!r}")
    return tuple(value)
