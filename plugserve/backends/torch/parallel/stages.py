"""Which layers each stage of a pipeline holds, and what a decoder's description is for them."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

from plugserve.core.contracts.model import DecoderSpec
from plugserve.core.errors import ConfigError


def stage_layers(spec: DecoderSpec, num_stages: int) -> list[range]:
    """The layers of each stage, so that the slowest stage is as fast as it can be: the last one's head takes the time
    of as many layers as it has weights of. The first one's embedding takes memory but no time, so it decides only
    between stages of equal time. Raises ConfigError for more stages than layers."""
    if num_stages > spec.num_layers:
        raise ConfigError(
            f"--pipeline-parallel-size {num_stages}: this model has {spec.num_layers} layers; "
            f"use at most {spec.num_layers}"
        )
    embedding = spec.vocab_size * spec.hidden_size
    num_embeddings = 1 if spec.ties_embeddings else 2
    layer = (spec.num_parameters - num_embeddings * embedding) // spec.num_layers
    times, sizes, counts = ([0] * num_stages for _ in range(3))
    times[-1], sizes[0] = embedding, embedding
    for n in range(spec.num_layers):
        is_bare = n < num_stages  # each stage has one layer at least
        stage = n if is_bare else min(range(num_stages), key=lambda s: (times[s] + layer, sizes[s], s))
        times[stage] += layer
        sizes[stage] += layer
        counts[stage] += 1
    return [range(end - count, end) for end, count in zip(accumulate(counts), counts, strict=True)]


def stage_spec(spec: DecoderSpec, layers: range) -> DecoderSpec:
    """spec of layers alone, which count from 0 there."""
    return replace(
        spec,
        num_layers=len(layers),
        windows=spec.windows[layers.start : layers.stop],
        layer_ropes=spec.layer_ropes[layers.start : layers.stop],
    )
