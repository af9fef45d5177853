"""An encoder of transformers, filled with weights that a weight format reads.

transformers maps the checkpoint's names to the model's (prefixes, older names); what is missing, misshapen or left over
is reported here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch

from plugserve.core.errors import ModelError, one_line
from plugserve.core.model_files.encoder_files import SCORE

log = logging.getLogger(__name__)

_POOLER: Final = "pooler."


def encoder_class(folder: Path, task: str, overrides: Mapping[str, Any]) -> tuple[type[Any], Any]:
    """transformers' class and config for the encoder in folder. overrides: see ModelSource. Raises ModelError."""
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

    auto = AutoModelForSequenceClassification if task == SCORE else AutoModel
    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False, **overrides)
        found: Any = auto._model_mapping[type(config)]
    except Exception as error:  # a config value that transformers refuses, or a model that it lacks
        raise ModelError(f"{folder}: transformers can't make this encoder: {one_line(error)[:300]}") from None
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # weights are dequantised as they are read
    if hasattr(config, "reference_compile"):
        config.reference_compile = False  # ModernBERT would compile itself in the first batch
    return found, config


def encoder_shapes(folder: Path, task: str, overrides: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors that a checkpoint brings, by name."""
    made, config = encoder_class(folder, task, overrides)
    with torch.device("meta"):
        return {name: tuple(one.shape) for name, one in made(config).named_parameters()}


def load_encoder(
    folder: Path,
    task: str,
    overrides: Mapping[str, Any],
    weights: Iterable[tuple[str, torch.Tensor]],
    dtype: torch.dtype,
    device: torch.device,
) -> Any:
    """The model on its device, ready to run. Raises ModelError for weights that don't fill it."""
    made, config = encoder_class(folder, task, overrides)
    with _quiet():
        try:
            model, report = made.from_pretrained(
                None,
                config=config,
                state_dict=dict(weights),
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below
            )
        except (ModelError, MemoryError):
            raise
        except Exception as error:
            raise ModelError(f"{folder}: transformers can't load this encoder: {one_line(error)[:300]}") from None
    _check(folder, made.__name__, task, report)
    return model.eval().requires_grad_(False).to(device)


def _check(folder: Path, name: str, task: str, report: dict[str, Any]) -> None:
    for tensor, found, wanted in sorted(report["mismatched_keys"]):
        raise ModelError(f"tensor {tensor} has shape {list(found)}, the model's config asks for {list(wanted)}")
    missing = {one for one in report["missing_keys"] if task == SCORE or not one.startswith(_POOLER)}
    if missing:
        raise ModelError(f"{folder}: the checkpoint lacks {len(missing)} tensors of {name}, first {min(missing)}")
    left = {one for one in report["unexpected_keys"] if not one.endswith("position_ids")}
    if left and task == SCORE:
        raise ModelError(f"{folder}: {name} has no place for {len(left)} tensors, first {min(left)}")
    if left:
        log.info("tensors of heads are not loaded: model=%s count=%d first=%s", folder, len(left), min(left))


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar and no report of transformers': the same facts become errors here."""
    from transformers.utils import logging as untyped

    transformers_logging: Any = untyped
    level = transformers_logging.get_verbosity()
    had_bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if had_bar:
            transformers_logging.enable_progress_bar()
