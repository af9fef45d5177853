"""Pooled hidden states against Hugging Face, prompts cut into chunks, through the whole engine."""

from __future__ import annotations

import random
from array import array

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.wire.messages import FINISH_STOP
from tests.core.harness import LocalEngine, randomise

TINY = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 199,
    "max_position_embeddings": 512,
}
LENGTHS = [1, 2, 15, 16, 17, 100, 130]


@pytest.fixture(scope="module")
def model():
    return randomise(LlamaForCausalLM(LlamaConfig(**TINY)).float())


@pytest.fixture(scope="module")
def prompts():
    rng = random.Random(3)
    return [[rng.randrange(199) for _ in range(length)] for length in LENGTHS]


def config_of(model):
    return model.config.to_dict() | {"architectures": ["LlamaForCausalLM"]}


@torch.no_grad()
def expected(model, prompt, pooling):
    hidden = model(torch.tensor([prompt]), output_hidden_states=True).hidden_states[-1][0]
    return (hidden.mean(0) if pooling == "mean" else hidden[-1]).numpy()


def pooled(local, prompts, pooling, also=()):
    """Vectors by prompt; also: prompts that generate meanwhile."""
    for id, prompt in enumerate(also, start=len(prompts)):
        local.engine.admit((b"w", id), array("i", prompt), SamplingParams(max_tokens=60, seed=0, temperature=0.0))
    for id, prompt in enumerate(prompts):
        params = SamplingParams(max_tokens=0, seed=0, pooling=pooling)
        local.engine.admit((b"w", id), array("i", prompt), params)
    vectors = {}
    while local.engine.has_work:
        local.engine.step()
        for _, message in local.engine.take_outputs():
            assert not message.errors
            for id, finish, count in zip(message.ids, message.finish, message.num_tokens, strict=True):
                if id in message.pooled:
                    assert (finish, count) == (FINISH_STOP, 0)
                    assert id not in vectors
                    vectors[id] = np.frombuffer(message.pooled[id], dtype="<f4")
    assert len(vectors) == len(prompts)
    return [vectors[id] for id in range(len(prompts))]


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("tokens_per_step", [512, 24])
def test_pooled_hidden_states_equal_hugging_face(model, prompts, pooling, tokens_per_step):
    with LocalEngine(config_of(model), model.state_dict(), tokens=tokens_per_step) as local:
        vectors = pooled(local, prompts, pooling, also=prompts[:3])
    for vector, prompt in zip(vectors, prompts, strict=True):
        np.testing.assert_allclose(vector, expected(model, prompt, pooling), atol=2e-5)


def test_preempted_prompt_is_pooled_anew(model, prompts):
    long = [prompt for prompt in prompts if len(prompt) > 14]
    with LocalEngine(config_of(model), model.state_dict(), num_blocks=14, max_model_len=160, tokens=8) as local:
        vectors = pooled(local, long, "mean", also=long[:3])
        assert local.engine.stats.num_preemptions > 0
    for vector, prompt in zip(vectors, long, strict=True):
        np.testing.assert_allclose(vector, expected(model, prompt, "mean"), atol=2e-5)


def test_prompt_may_fill_the_whole_context(model, prompts):
    with LocalEngine(config_of(model), model.state_dict(), max_model_len=130) as local:
        np.testing.assert_allclose(
            pooled(local, prompts[-1:], "last")[0], expected(model, prompts[-1], "last"), atol=2e-5
        )


@pytest.mark.parametrize("fields", [{"pooling": "max"}, {"pooling": "mean", "max_tokens": 1}])
def test_impossible_pooling_is_refused(model, fields):
    with LocalEngine(config_of(model), model.state_dict()) as local:
        params = SamplingParams(**{"max_tokens": 0, "seed": 0} | fields)
        local.engine.admit((b"w", 1), array("i", [1, 2]), params)
        assert "pooling" in local.engine.take_outputs()[0][1].errors[1]
