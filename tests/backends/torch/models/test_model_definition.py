"""A model in torch from a plugin: run by the torch runner as the built-in decoder is, declined by other backends."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from plugserve.backends.torch.models.make_model import make_model, parameter_shapes
from plugserve.core.contracts.model import ModelDefinition
from plugserve.core.errors import ConfigError, ModelError
from plugserve.core.model_files.architectures import describe, describe_decoder
from plugserve.core.model_files.families import FAMILIES
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.settings import Settings
from plugserve.plugins.prefix_cache.lru_cache import BlockHashCache
from tests.backends.torch.models.gpt2_plugin import Gpt2
from tests.backends.torch.models.test_families import TINY
from tests.core.harness import LocalEngine, hugging_face_greedy, randomise

PLUGIN = Path(__file__).with_name("gpt2_plugin.py")
VOCAB = 131


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCAB, n_positions=256, n_embd=32, n_layer=3, n_head=4, eos_token_id=None)
    return randomise(GPT2LMHeadModel(config).float())


@pytest.fixture(scope="module")
def config(model):
    return model.config.to_dict() | {"architectures": ["GPT2LMHeadModel"]}


@pytest.fixture(scope="module")
def architectures():
    host = PluginHost.load(Settings(plugin=[str(PLUGIN)]).selection())
    return {name: host.factory("architectures", name)[0] for name in host.names("architectures")}


def test_greedy_text_is_hugging_faces_in_chunks_and_from_cached_blocks(model, config, architectures):
    rng = random.Random(1)
    shared = [rng.randrange(VOCAB) for _ in range(64)]
    prompts = [shared + [rng.randrange(VOCAB) for _ in range(length)] for length in (1, 9, 40)]
    prompts += [[rng.randrange(VOCAB) for _ in range(length)] for length in (1, 17, 100)]
    expected = [hugging_face_greedy(model, prompt, 12) for prompt in prompts]
    with LocalEngine(
        config, model.state_dict(), architectures=architectures, tokens=24, prefix_cache=BlockHashCache(),
        max_model_len=256,
    ) as local:  # fmt: skip
        assert local.generate(prompts, max_tokens=12) == expected
        assert local.generate(prompts, max_tokens=12) == expected
        assert local.engine.stats.num_prefix_hit_tokens >= 3 * 64


def test_the_definition_says_what_a_checkpoint_brings(model, config, architectures):
    assert isinstance(make_model(config, architectures), ModelDefinition)
    expected = {name.removeprefix("transformer."): tuple(one.shape) for name, one in model.state_dict().items()}
    del expected["lm_head.weight"]
    assert parameter_shapes(config, architectures) == expected


def test_the_built_in_decoder_is_a_definition_and_says_how_it_is_cut():
    decoder = make_model({**TINY, "architectures": ["LlamaForCausalLM"]})
    assert isinstance(decoder, ModelDefinition)
    parameters = decoder.parameters()
    axes = {name.removeprefix("model.layers.0."): one.shard_axis for name, one in parameters.items()}
    assert {axes[f"self_attn.{part}_proj.weight"] for part in "qkv"} == {0}
    assert axes["mlp.gate_proj.weight"] == axes["mlp.up_proj.weight"] == axes["model.embed_tokens.weight"] == 0
    assert axes["self_attn.o_proj.weight"] == axes["mlp.down_proj.weight"] == 1
    assert axes["input_layernorm.weight"] is None
    assert parameters["model.layers.0.self_attn.k_proj.weight"].shape == (32, 32)


def test_other_backends_decline_torch_code(config, architectures):
    with pytest.raises(ModelError, match=r"torch code .* --runner native can't run; use --runner torch"):
        describe_decoder(config, architectures, "native")
    spec = {**TINY, "architectures": ["LlamaForCausalLM"]}
    assert describe_decoder(spec, architectures, "native") == describe(spec)


def test_adapters_for_a_model_that_takes_none_are_refused(model, config, architectures):
    with pytest.raises(ConfigError, match="GPT2LMHeadModel takes no LoRA adapters: leave --enable-lora out"):
        LocalEngine(config, model.state_dict(), architectures=architectures, max_loras=1, max_model_len=256)


def test_anything_else_is_refused_with_what_is_expected():
    with pytest.raises(ModelError, match="returned dict, not a DecoderSpec or a ModelDefinition"):
        describe({"architectures": ["X"]}, {"X": lambda config: {}})


def test_a_checkpoint_that_does_not_fit_is_reported(model, config):
    weights = dict(model.state_dict())
    definition = Gpt2(config)
    definition.allocate(dtype=torch.float32, device=torch.device("cpu"), max_positions=64)
    missing = {name: tensor for name, tensor in weights.items() if "c_fc" not in name}
    with pytest.raises(ModelError, match=r"the checkpoint lacks 6 tensors, first h.0.mlp.c_fc.bias"):
        definition.load(missing.items())
    with pytest.raises(ModelError, match="tensor other has no place in GPT2LMHeadModel"):
        definition.load([*weights.items(), ("other", torch.zeros(1))])
    weights["transformer.ln_f.bias"] = torch.zeros(3)
    with pytest.raises(ModelError, match=r"tensor ln_f.bias has shape \[3\], the model's config asks for \[32\]"):
        definition.load(weights.items())


def test_built_in_architectures_stay_beside_the_plugins(architectures):
    assert set(architectures) == {*FAMILIES, "GPT2LMHeadModel"}
