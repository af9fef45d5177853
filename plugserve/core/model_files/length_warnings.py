"""What is said about a --max-model-len that a model was not made for."""

from __future__ import annotations

from plugserve.core.contracts.weights import ModelSource
from plugserve.core.model_files.encoder_files import EncoderFacts, encoder_facts, is_encoder
from plugserve.core.model_files.model_source import context_length, read_config

_ONE_MODEL = "models: in a --config file sets it for one model"


def length_warning(source: ModelSource, asked: int | str | None) -> str:
    """The warning about asked, --max-model-len, for a model in files; "" where there is none."""
    config = read_config(source)
    if not isinstance(asked, int):
        return ""
    if is_encoder(config):
        return encoder_length_warning(asked, encoder_facts(source.path, config))
    return decoder_length_warning(asked, context_length(config))


def decoder_length_warning(asked: int, longest: int) -> str:
    """longest: the context length of the model's config."""
    if asked <= longest:
        return ""
    return (
        f"--max-model-len {asked} is above the model's own {longest}: tokens beyond that are at positions that it was "
        "not trained for"
    )


def encoder_length_warning(asked: int, facts: EncoderFacts) -> str:
    """Encoders take no more than their positions; then --max-model-len has no effect."""
    if asked > facts.max_positions:
        return (
            f"max_model_len is {facts.max_length}: --max-model-len {asked} is more than the {facts.max_positions} "
            "positions of this encoder"
        )
    if asked > facts.max_length:
        return (
            f"--max-model-len {asked} is above the {facts.max_length} tokens that this encoder's makers recommend; "
            f"{_ONE_MODEL}"
        )
    return ""
