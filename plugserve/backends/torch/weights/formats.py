"""The built-in weight formats, and the choice of the one that reads a model. Torch-free until something is read.

Nothing is kept: a tensor lives as long as its consumer holds it. Quantised checkpoints are dequantised on the way.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

from plugserve.core.contracts.weights import WeightFormat, WeightSource
from plugserve.core.errors import ConfigError, ModelError, did_you_mean
from plugserve.core.model_files.gguf_file import is_gguf
from plugserve.core.model_files.load_formats import format_used
from plugserve.core.model_files.sharded_files import SHARDED_PATTERN, is_sharded_file

if TYPE_CHECKING:
    import torch

Weights = Iterable[tuple[str, "torch.Tensor"]]

log = logging.getLogger(__name__)

_TORCH_FILES: Final = ("*.bin", "*.pt", "*.pth")


class SafetensorsFormat:
    """a folder with *.safetensors, one file or shards"""

    is_automatic = True

    def refusal(self, source: WeightSource) -> str | None:
        if not _holds(source, ("*.safetensors", "*.safetensors.index.json")):
            return "no *.safetensors there"
        if all(is_sharded_file(path) for path in source.path.glob("*.safetensors*")):
            return "its *.safetensors are those of sharded_state"
        return None

    def open(self, source: WeightSource) -> Weights:
        from plugserve.backends.torch.weights.quantized import dequantized
        from plugserve.backends.torch.weights.safetensors_files import iterate_safetensors

        return dequantized(source, lambda: iterate_safetensors(source.path, show_progress=source.show_progress))


class ShardedStateFormat:
    """a folder with model-rank-R-part-P.safetensors, saved by plugserve save-sharded or vLLM; ranks are joined"""

    is_automatic = True

    def refusal(self, source: WeightSource) -> str | None:
        return None if _holds(source, (SHARDED_PATTERN,)) else f"no {SHARDED_PATTERN} there"

    def open(self, source: WeightSource) -> Weights:
        from plugserve.backends.torch.weights.quantized import dequantized
        from plugserve.backends.torch.weights.sharded_state import iterate_sharded

        return dequantized(
            source, lambda: iterate_sharded(source.path, source.shapes(), show_progress=source.show_progress)
        )


class GgufFormat:
    """a .gguf file (llama.cpp), quantised or not"""

    is_automatic = True

    def refusal(self, source: WeightSource) -> str | None:
        return None if source.path.is_file() and is_gguf(source.path) else "not a GGUF file"

    def open(self, source: WeightSource) -> Weights:
        from plugserve.backends.torch.weights.gguf_tensors import iterate_gguf

        return iterate_gguf(source.path, show_progress=source.show_progress)


class TorchFormat:
    """a folder with *.bin, *.pt or *.pth, one file or shards; read with weights_only, which runs no code"""

    is_automatic = True

    def refusal(self, source: WeightSource) -> str | None:
        return None if _holds(source, _TORCH_FILES) else f"no {', '.join(_TORCH_FILES)} there"

    def open(self, source: WeightSource) -> Weights:
        from plugserve.backends.torch.weights.quantized import dequantized
        from plugserve.backends.torch.weights.torch_files import iterate_torch_files

        return dequantized(source, lambda: iterate_torch_files(source.path, show_progress=source.show_progress))


class DistributedFormat:
    """a folder with .metadata and *.distcp, saved by torch.distributed.checkpoint; shards of DTensors are joined"""

    is_automatic = True

    def refusal(self, source: WeightSource) -> str | None:
        return None if _holds(source, (".metadata", "*.distcp")) else "no .metadata and *.distcp there"

    def open(self, source: WeightSource) -> Weights:
        from plugserve.backends.torch.weights.distributed_checkpoint import iterate_distributed
        from plugserve.backends.torch.weights.quantized import dequantized

        return dequantized(
            source, lambda: iterate_distributed(source.path, source.shapes(), show_progress=source.show_progress)
        )


class DummyFormat:
    """no files: seeded random weights of the true shapes, scaled so that activations stay in range"""

    is_automatic = False

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed

    def refusal(self, source: WeightSource) -> str | None:
        return None

    def open(self, source: WeightSource) -> Weights:
        import torch

        from plugserve.backends.torch.weights.dummy import dummy_tensor

        shapes = source.shapes().items()
        return ((name, dummy_tensor(name, shape, torch.float32, self._seed)) for name, shape in shapes)


BUILT_IN: Mapping[str, WeightFormat] = {
    "safetensors": SafetensorsFormat(),
    "sharded_state": ShardedStateFormat(),
    "gguf": GgufFormat(),
    "pt": TorchFormat(),
    "dtensor": DistributedFormat(),
    "dummy": DummyFormat(),
}


def open_weights(source: WeightSource, load_format: str, formats: Mapping[str, WeightFormat] = BUILT_IN) -> Weights:
    """(Hugging Face's name, tensor) of a model, in the format that load_format names or the first that reads it, which
    is logged with the reason.

    Raises ModelError before the first tensor for what headers show: a missing shard, an unsupported type.
    """
    load_format, warning = format_used(load_format, formats)
    if warning:
        log.warning("%s", warning)
    if load_format == "auto":
        return _open_first(source, formats)
    chosen = formats.get(load_format)
    if chosen is None:
        raise ConfigError(
            f"--load-format {load_format} is not known; known are auto, {', '.join(formats)}."
            f"{did_you_mean(load_format, formats)}"
        )
    reason = chosen.refusal(source)
    if reason:
        raise ModelError(f"--load-format {load_format} does not fit {source.path}: {reason}")
    return chosen.open(source)


def _open_first(source: WeightSource, formats: Mapping[str, WeightFormat]) -> Weights:
    reasons: list[str] = []
    for name, one in formats.items():
        if not one.is_automatic:
            continue
        reason = one.refusal(source)
        if reason is None:
            because = f"the first that fits ({'; '.join(reasons)})" if reasons else "the first in order, and it fits"
            log.info("load format auto chose=%s path=%s because=%s", name, source.path, because)
            return one.open(source)
        reasons.append(f"{name}: {reason}")
    raise ModelError(f"{source.path} holds no weights that can be read ({'; '.join(reasons)})")


def _holds(source: WeightSource, patterns: tuple[str, ...]) -> bool:
    return source.path.is_dir() and any(next(source.path.glob(pattern), None) for pattern in patterns)
