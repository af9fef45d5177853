"""A model's files, and weight formats, which read its tensors as a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model that was found on this machine (downloaded if need be).

    name is what /v1/models lists; aliases are other names that requests may use. path is a folder with config.json
    and safetensors, or a .gguf file. tokenizer_path is what --tokenizer named (a folder, tokenizer.json or .gguf).
    task is "generate", for encoders "embed" or "score".
    config_overrides are values over those of its config.json (--hf-overrides).
    """

    name: str
    aliases: tuple[str, ...]
    kind: Literal["folder", "gguf"]
    path: Path
    tokenizer_path: Path | None = None
    task: str = "generate"
    config_overrides: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class WeightSource:
    """A model whose weights are read: its folder or file, its config (Hugging Face's keys), and a function that returns
    the shape of each tensor that the model will ask for, by name."""

    path: Path
    config: Mapping[str, Any]
    shapes: Callable[[], Mapping[str, Sequence[int]]]
    show_progress: bool = True


@runtime_checkable
class WeightFormat(Protocol):
    """Reads weights. Lives in the engine process and is used while a model loads."""

    is_automatic: bool
    """False: only used when --load-format names it."""

    def refusal(self, source: WeightSource) -> str | None:
        """Why it can't read source, in half a line, or None. --load-format auto takes the first that doesn't refuse."""

    def open(self, source: WeightSource) -> Iterable[tuple[str, torch.Tensor]]:
        """(Hugging Face's name, tensor on the CPU) of every tensor, in any floating dtype. Raises ModelError, before
        the first tensor for what headers show."""
