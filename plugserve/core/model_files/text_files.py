"""Writes the files of a model's folder beside its weights: config, tokenizer, chat template, generation config.
Torch-free."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Final

from plugserve.core.contracts.weights import ModelSource
from plugserve.core.model_files.json_file import read_json_object
from plugserve.core.model_files.model_source import eos_token_ids, load_text_model, read_config, sampling_defaults

_COPIED: Final = ("*.json", "*.jinja", "*.txt", "*.model", "LICENSE*", "*.md")
_NOT_COPIED: Final = ("*.index.json", "config.json")


def write_text_files(source: ModelSource, folder: Path) -> None:
    """Everything but weights, for weights that are not quantised any more."""
    if source.kind == "gguf":
        _write_gguf_files(source, folder)
        return
    config = read_json_object(source.path / "config.json", is_required=True)
    for key in ("quantization_config", "compression_config"):
        config.pop(key, None)
    _write(folder / "config.json", config)
    for path in sorted({path for pattern in _COPIED for path in source.path.glob(pattern)}):
        if path.is_file() and not any(path.match(pattern) for pattern in _NOT_COPIED):
            shutil.copyfile(path, folder / path.name)


def _write_gguf_files(source: ModelSource, folder: Path) -> None:
    """Hugging Face's files from the GGUF file's metadata."""
    _write(folder / "config.json", read_config(source))
    text = load_text_model(source)
    text.tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer_config: dict[str, Any] = dict(text.special_tokens)
    if text.chat_template is not None:
        tokenizer_config["chat_template"] = text.chat_template
    _write(folder / "tokenizer_config.json", tokenizer_config)
    _write(folder / "generation_config.json", {**sampling_defaults(source), "eos_token_id": [*eos_token_ids(source)]})


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
