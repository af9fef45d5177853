"""Encoders: which configs describe one, and what sentence-transformers' files say on pooling, prompts and lengths.
Torch-free.

An encoder reads a text as a whole. It gives a vector (embed), or scores a pair of texts through a head
(cross-encoder: score).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from plugserve.core.contracts.regular_files import read_regular_file
from plugserve.core.errors import ModelError
from plugserve.core.model_files.json_file import read_json_object, shown

GENERATE: Final = "generate"
EMBED: Final = "embed"
SCORE: Final = "score"
"""What a model does: generate tokens, embed texts, score pairs of texts."""

ENCODER_TYPES: Final = frozenset(
    {
        "albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "ernie",
        "modernbert", "mpnet", "nomic_bert", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl",
    }
)  # fmt: skip
"""model_type of the encoders that are served. Vectors don't depend on the padding of a batch: ConvBERT's do."""

_POSITIONS_AFTER_PADDING: Final = frozenset(
    {"camembert", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl"}
)
"""Those that number positions from pad_token_id + 1 on, so that as many fewer fit."""
_HEADS: Final = {"ForSequenceClassification": SCORE, "Model": EMBED, "ForMaskedLM": EMBED, "ForPreTraining": EMBED}
_POOLING_KEYS: Final[Mapping[str, str]] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weighted_mean",
    "pooling_mode_lasttoken": "last",
}
"""sentence-transformers' keys, in the order in which several are concatenated."""
_POOLING_WORDS: Final = {**{name: name for name in _POOLING_KEYS.values()}, "mean_tokens": "mean", "lasttoken": "last",
                         "cls_token": "cls", "mean_sqrt_len_tokens": "mean_sqrt_len", "max_tokens": "max",
                         "weightedmean": "weighted_mean", "weightedmean_tokens": "weighted_mean"}  # fmt: skip
POOLINGS: Final = tuple(_POOLING_KEYS.values())
ACTIVATIONS: Final = ("identity", "sigmoid", "softmax", "tanh", "relu", "gelu")
"""Activations of score heads and of dense layers."""
_DEFAULT_LENGTH: Final = 512
_UNBOUNDED: Final = 1 << 30  # tokenizers say 1e30 for no limit


@dataclass(frozen=True, slots=True)
class DenseFiles:
    """A linear layer behind the pooling: its folder, sizes and activation."""

    folder: str
    in_features: int
    out_features: int
    has_bias: bool
    activation: str


@dataclass(frozen=True, slots=True)
class EncoderFacts:
    """An encoder's facts from its files. max_positions is the longest input that its weights take, max_length what its
    makers recommend.

    embed: poolings are concatenated, dense layers follow; normalizes is None where the files don't say; prompts are put
    before texts, by name; dimensions may be asked for instead of all (empty: none; any_dimension: any number of the
    first). score: activation is that of the head, whose outputs are num_labels.
    """

    task: str
    architecture: str
    max_length: int
    max_positions: int
    poolings: tuple[str, ...] = ("mean",)
    dense: tuple[DenseFiles, ...] = ()
    normalizes: bool | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str = ""
    pools_prompts: bool = True
    dimensions: tuple[int, ...] = ()
    any_dimension: bool = False
    lowercases: bool = False
    num_labels: int = 1
    activation: str = "identity"


def is_encoder(config: Mapping[str, Any]) -> bool:
    """The config is that of an encoder."""
    return config.get("model_type") in ENCODER_TYPES and not config.get("is_decoder")


def task_of(config: Mapping[str, Any]) -> str:
    """GENERATE, EMBED or SCORE, by the config alone. Raises ModelError for an encoder with another head."""
    if not is_encoder(config):
        return GENERATE
    names = config.get("architectures") or []
    if not names:
        return EMBED
    for suffix, task in _HEADS.items():
        if str(names[0]).endswith(suffix):
            return task
    raise ModelError(
        f"architecture {names[0]} is not supported; encoders are served as embedding models (BertModel, "
        "BertForMaskedLM) and as cross-encoders (BertForSequenceClassification)"
    )


def encoder_facts(folder: Path, config: Mapping[str, Any]) -> EncoderFacts:
    """The facts of the encoder in folder, whose config.json is config. Raises ModelError."""
    task = task_of(config)
    positions = _positions(config)
    facts: dict[str, Any] = {
        "task": task,
        "architecture": str((config.get("architectures") or [config.get("model_type")])[0]),
        "max_positions": positions,
        "max_length": min(positions, _recommended_length(folder)),
        "lowercases": _lowercases(folder),
    }
    if task == SCORE:
        facts |= _head(folder, config)
    else:
        facts |= {**_modules(folder), **_prompts(folder), **_dimensions(folder, config)}
    return EncoderFacts(**facts)


# ---------------------------------------------------------------- lengths


def _positions(config: Mapping[str, Any]) -> int:
    found = config.get("max_position_embeddings") or config.get("n_positions") or _DEFAULT_LENGTH
    if config.get("model_type") in _POSITIONS_AFTER_PADDING:
        padding = config.get("pad_token_id")
        found -= (1 if padding is None else int(padding)) + 1
    return max(1, int(found))


def _sentence_config(folder: Path) -> dict[str, Any]:
    """sentence_bert_config.json, which has other names for other models (sentence_roberta_config.json)."""
    for path in sorted(folder.glob("sentence_*_config.json")):
        return read_json_object(path, is_required=False)
    return {}


def _recommended_length(folder: Path) -> int:
    config = _sentence_config(folder)
    if config.get("max_seq_length") is not None:
        return _count(folder, "max_seq_length", config["max_seq_length"])
    length = read_json_object(folder / "tokenizer_config.json", is_required=False).get("model_max_length")
    return int(length) if isinstance(length, int | float) and 1 <= length < _UNBOUNDED else _UNBOUNDED


def _lowercases(folder: Path) -> bool:
    return _sentence_config(folder).get("do_lower_case") is True


def _count(folder: Path, name: str, value: Any) -> int:
    if type(value) is not int or not 1 <= value < _UNBOUNDED:
        raise ModelError(f"{folder}: {name} should be a whole number above 0, got {shown(value)}")
    return value


# ---------------------------------------------------------------- modules


def _modules(folder: Path) -> dict[str, Any]:
    """Pooling, dense layers and normalisation, in the order of modules.json. Without it: the mean."""
    path = folder / "modules.json"
    if not path.is_file():
        return {}
    poolings: tuple[str, ...] = ("mean",)
    dense: list[DenseFiles] = []
    facts: dict[str, Any] = {"normalizes": False}
    for kind, name in _listed_modules(path):
        if facts["normalizes"] or (kind == "Pooling" and dense):
            raise ModelError(f"{path}: a module {kind} behind the others is not supported; supported is the order "
                             "Transformer, Pooling, Dense, Normalize")  # fmt: skip
        if kind == "Pooling":
            config = read_json_object(folder / name / "config.json", is_required=True)
            poolings = _poolings(folder / name, config)
            facts["pools_prompts"] = config.get("include_prompt", True) is not False
        elif kind == "Dense":
            dense.append(_dense(folder, name))
        elif kind == "Normalize":
            facts["normalizes"] = True
        elif kind != "Transformer":
            raise ModelError(
                f"{path}: module {kind} is not supported; supported are Transformer, Pooling, Dense, Normalize"
            )
    return {**facts, "poolings": poolings, "dense": tuple(dense)}


def _listed_modules(path: Path) -> Iterator[tuple[str, str]]:
    """(class without its package, folder) of every module."""
    try:
        modules = json.loads(read_regular_file(path, 1 << 20))
        listed = [(str(one["type"]).rpartition(".")[2], str(one.get("path") or "")) for one in modules]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ModelError(f"{path} should hold a JSON list of modules with type and path") from None
    for kind, name in listed:
        if Path(name).name != name:
            raise ModelError(f"{path}: {shown(name)} is not a folder beside it")
        yield kind, name


def _poolings(folder: Path, config: Mapping[str, Any]) -> tuple[str, ...]:
    given = config.get("pooling_mode")
    if given is not None:
        words = given if isinstance(given, list) else [given]
        found = tuple(_POOLING_WORDS[str(word)] for word in words if str(word) in _POOLING_WORDS)
        if len(found) != len(words) or not found:
            raise ModelError(
                f"{folder}: pooling_mode {shown(given)} is not supported; supported: {', '.join(POOLINGS)}"
            )
        return found
    found = tuple(name for key, name in _POOLING_KEYS.items() if config.get(key) is True)
    if not found:
        raise ModelError(f"{folder}: config.json chooses no pooling; set one of {', '.join(_POOLING_KEYS)} to true")
    return found


def _dense(folder: Path, name: str) -> DenseFiles:
    config = read_json_object(folder / name / "config.json", is_required=True)
    return DenseFiles(
        name,
        _count(folder / name, "in_features", config.get("in_features")),
        _count(folder / name, "out_features", config.get("out_features")),
        config.get("bias", True) is not False,
        _activation(folder / name, config.get("activation_function", "torch.nn.modules.activation.Tanh")),
    )


def _activation(folder: Path, name: Any) -> str:
    """A torch class's name as one of ACTIVATIONS."""
    found = str(name).rpartition(".")[2].removesuffix("()").lower()
    if found not in ACTIVATIONS:
        raise ModelError(f"{folder}: activation {shown(name)} is not supported; supported are {', '.join(ACTIVATIONS)}")
    return found


# ---------------------------------------------------------------- prompts, dimensions, heads


def _prompts(folder: Path) -> dict[str, Any]:
    path = folder / "config_sentence_transformers.json"
    config = read_json_object(path, is_required=False)
    prompts, default = config.get("prompts") or {}, config.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise ModelError(f"{path}: prompts should be texts by name")
    if default is not None and default not in prompts:
        raise ModelError(f"{path}: default_prompt_name {shown(default)} is not one of prompts")
    return {"prompts": prompts, "default_prompt": prompts[default] if default is not None else ""}


def _dimensions(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Matryoshka models say so with matryoshka_dimensions (which are good) or is_matryoshka (all are)."""
    listed = config.get("matryoshka_dimensions")
    if listed is not None:
        if not isinstance(listed, list) or not listed:
            raise ModelError(f"{folder}: matryoshka_dimensions should be a list of numbers, got {shown(listed)}")
        return {"dimensions": tuple(sorted(_count(folder, "matryoshka_dimensions", one) for one in listed))}
    return {"any_dimension": config.get("is_matryoshka") is True}


def _head(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    labels = config.get("id2label")
    num_labels = len(labels) if isinstance(labels, dict) and labels else config.get("num_labels", 2)
    num_labels = _count(folder, "num_labels", num_labels)
    sentence = config.get("sentence_transformers")
    name = sentence.get("activation_fn") if isinstance(sentence, Mapping) else None
    name = name or config.get("sbert_ce_default_activation_function")
    default = "sigmoid" if num_labels == 1 else "identity"
    return {"num_labels": num_labels, "activation": _activation(folder, name) if name else default}
