"""Makes the model that the torch runner runs from a config: a Decoder for a DecoderSpec; a ModelDefinition is used
unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plugserve.backends.torch.models.collectives import SINGLE_RANK, Collectives
from plugserve.backends.torch.models.decoder import Decoder
from plugserve.core.contracts.model import DecoderSpec, ModelDefinition
from plugserve.core.errors import ConfigError
from plugserve.core.model_files.architectures import Architectures, describe
from plugserve.core.model_files.families import FAMILIES


def make_model(
    config: Mapping[str, Any], architectures: Architectures = FAMILIES, collectives: Collectives = SINGLE_RANK
) -> ModelDefinition:
    """The model of a Hugging Face config, without tensors yet: with several ranks, this one's share. Raises ModelError,
    and ConfigError for a model that ranks can't share."""
    described = describe(config, architectures)
    if isinstance(described, DecoderSpec):
        return Decoder(described, collectives=collectives)
    num_ranks, num_stages = collectives.num_ranks, collectives.pipeline.num_stages
    if num_ranks * num_stages > 1:
        raise ConfigError(
            f"{described.architecture} can't be shared by {num_ranks * num_stages} ranks: its plugin brings a "
            "ModelDefinition, which runs on one device; use --tensor-parallel-size 1 and --pipeline-parallel-size 1"
        )
    return described


def parameter_shapes(config: Mapping[str, Any], architectures: Architectures = FAMILIES) -> dict[str, tuple[int, ...]]:
    """The name and shape of every tensor that a checkpoint of the config's model must bring."""
    return {name: parameter.shape for name, parameter in make_model(config, architectures).parameters().items()}
