"""A draft model on its way from the settings into the engine: weights, memory, and tokens that stay the same."""

from __future__ import annotations

import json
from array import array

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.engine.build import EngineBuilder
from plugserve.core.errors import ConfigError, ModelError
from plugserve.core.model_files.model_source import resolve
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.settings import Settings
from tests.core.engine.test_combinations import CONFIG
from tests.core.harness import randomise

KV_BYTES = 1 << 20


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A target of two layers, a draft of its first one under its embeddings, and one that is a model of its own."""
    torch.manual_seed(0)
    model = randomise(LlamaForCausalLM(LlamaConfig(**CONFIG)).float())
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    config = model.config.to_dict() | {"architectures": ["LlamaForCausalLM"]}
    one_layer = {name: tensor for name, tensor in weights.items() if "layers.1." not in name}
    parts = {
        "target": (config, weights),
        "shared": (
            config | {"num_hidden_layers": 1, "share_embeddings": "target"},
            {name: tensor for name, tensor in one_layer.items() if name.startswith(("model.layers", "model.norm"))},
        ),
        "common": (
            config | {"num_hidden_layers": 1, "share_embeddings": "target"},
            {name: tensor for name, tensor in one_layer.items() if name.startswith(("model.layers", "model.norm"))}
            | {"draft_token_ids": torch.arange(5, 45, dtype=torch.int32)},
        ),
        "foreign": (
            config | {"num_hidden_layers": 1, "share_embeddings": "target"},
            {name: tensor for name, tensor in one_layer.items() if name.startswith(("model.layers", "model.norm"))}
            | {"draft_token_ids": torch.tensor([3, 61], dtype=torch.int32)},
        ),
        "own": (config | {"num_hidden_layers": 1}, one_layer),
        "narrow": (config | {"num_hidden_layers": 1, "share_embeddings": "target", "hidden_size": 16}, one_layer),
    }
    made = {}
    for name, (its_config, its_weights) in parts.items():
        made[name] = tmp_path_factory.mktemp(name)
        (made[name] / "config.json").write_text(json.dumps(its_config))
        save_file(its_weights, made[name] / "model.safetensors")
    return made


def build(folders, **settings):
    settings = Settings(device="cpu", attention="torch-sdpa", kv_cache_memory=KV_BYTES, threads=1, **settings)
    host = PluginHost.load(settings.selection())
    builder = EngineBuilder(settings, host, resolve(str(folders["target"])))
    engine, runner, info = builder.build()
    return engine, runner, info, builder.slots


def answers(engine):
    done = {id: [] for id in range(4)}
    for id in done:
        engine.admit((b"w", id), array("i", [3 + id, 5, 8] * 7), SamplingParams(max_tokens=50, seed=0, temperature=0.0))
    while engine.has_work:
        engine.step()
        for _, outputs in engine.take_outputs():
            tokens, at = array("i", outputs.tokens), 0
            for id, count in zip(outputs.ids, outputs.num_tokens, strict=True):
                done[id] += tokens[at : at + count]
                at += count
    return done


@pytest.mark.parametrize("kind", ["shared", "common", "own"])
def test_a_named_draft_model_drafts_and_stands_in_the_ledger(kind, folders):
    plain, runner, plain_info, _ = build(folders)
    expected = answers(plain)
    runner.close()
    draft = str(folders[kind])
    engine, runner, info, slots = build(folders, speculative_model=draft, adaptive_speculation=False)
    assert answers(engine) == expected
    runner.close()
    assert slots["draft proposer"] == "draft-model"
    assert engine.stats.num_draft_tokens > 100
    assert engine.stats.plugin_seconds["draft-model propose"] > 0
    # one layer beside two: a third of the memory
    assert info.draft_kv_bytes * 3 == pytest.approx(info.kv_cache_bytes)
    assert info.kv_cache_bytes <= KV_BYTES
    assert info.num_blocks == plain_info.num_blocks * 2 // 3
    layer, embeddings, head_of_40 = 31104, 2 * 61 * 32 * 4, 40 * 32 * 4
    assert info.draft_weight_bytes == info.weight_bytes - plain_info.weight_bytes
    assert info.draft_weight_bytes == {"shared": layer, "common": layer + head_of_40, "own": layer + embeddings}[kind]


def test_a_draft_with_a_head_of_some_tokens_has_the_whole_ones_logits_there_and_proposes_no_others(folders):
    logits = {}
    for kind in ("shared", "common"):
        engine, runner, _, _ = build(folders, speculative_model=str(folders[kind]))
        engine.admit((b"w", 0), array("i", [3, 5, 8] * 7), SamplingParams(max_tokens=8, seed=0, temperature=0.0))
        for _ in range(4):
            engine.step()
        with torch.inference_mode():
            logits[kind] = runner.loaded.draft.forward([0], [0], [21])
        engine.drain()
        runner.close()
    whole, some = logits["shared"], logits["common"]
    assert torch.allclose(some[:, 5:45], whole[:, 5:45], rtol=1e-5, atol=1e-6)
    assert some[:, :5].eq(-torch.inf).all()
    assert some[:, 45:].eq(-torch.inf).all()
    assert some.shape == whole.shape == (1, 61)


def test_draft_tokens_that_the_served_model_does_not_have_are_refused(folders):
    with pytest.raises(ModelError, match="draft_token_ids are not ids of the served model's 61"):
        build(folders, speculative_model=str(folders["foreign"]))


def test_shared_embeddings_of_another_size_are_refused(folders):
    with pytest.raises(ConfigError, match="shares the served model's embeddings but has 61 x 16, not 61 x 32"):
        build(folders, speculative_model=str(folders["narrow"]))


def test_a_draft_model_that_nobody_uses_is_refused(folders):
    with pytest.raises(ConfigError, match="--speculative-model x has no effect: no active plugin drafts"):
        build(folders, speculative_model="x", no_plugin=["draft-model"])


def test_speculation_in_a_pipeline_is_refused(folders):
    with pytest.raises(ConfigError, match=r"--pipeline-parallel-size 2 can't go with speculation \(ngram\)"):
        build(folders, plugin=["ngram"], pipeline_parallel_size=2)
