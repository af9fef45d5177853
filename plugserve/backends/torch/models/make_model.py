"""Makes the model that the torch runner runs from a config: a Decoder for a DecoderSpec; a ModelDefinition is used
unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plugserve.backends.torch.models.decoder import Decoder
from plugserve.core.contracts.model import DecoderSpec, ModelDefinition
from plugserve.core.model_files.architectures import Architectures, describe
from plugserve.core.model_files.families import FAMILIES


def make_model(config: Mapping[str, Any], architectures: Architectures = FAMILIES) -> ModelDefinition:
    """The model of a Hugging Face config, without tensors yet. Raises ModelError."""
    described = describe(config, architectures)
    return Decoder(described) if isinstance(described, DecoderSpec) else described


def parameter_shapes(config: Mapping[str, Any], architectures: Architectures = FAMILIES) -> dict[str, tuple[int, ...]]:
    """The name and shape of every tensor that a checkpoint of the config's model must bring."""
    return {name: parameter.shape for name, parameter in make_model(config, architectures).parameters().items()}
