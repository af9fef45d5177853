"""Token ids outside the model's embedding rows: ignored where they only stop, else they fail their own request."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch

from plugserve.core.engine.build import EngineBuilder
from plugserve.core.settings.settings import Settings
from plugserve.core.wire.messages import FINISH_ERROR, FINISH_LENGTH
from tests.core.engine.test_engine import Client, make_engine
from tests.core.harness import LocalEngine

STRAYS = [
    {"logit_bias": {1000: 1.0}},
    {"logit_bias": {-1: 1.0}},
    {"allowed_token_ids": (1, 1000)},
    {"bad_words": ((1, 2), (5, 1000))},
]


def test_eos_and_stop_ids_beyond_the_rows_are_ignored():
    engine, _ = make_engine(eos=(2000,), vocab_size=1000)
    client = Client(engine)
    client.send(1, [1, 2, 3], 4, min_tokens=2, stop_token_ids=(1000, 2**31 - 1, -1))
    while engine.has_work:
        engine.step()
        client.receive()
    assert client.finish == {1: FINISH_LENGTH}
    assert len(client.tokens[1]) == 4


@pytest.mark.parametrize("params", STRAYS)
def test_other_ids_beyond_the_rows_fail_their_request_alone(params):
    engine, _ = make_engine(vocab_size=1000)
    client = Client(engine)
    client.send(1, [1, 2, 3], 4)
    client.send(2, [1, 2, 3], 4, **params)
    while engine.has_work:
        engine.step()
        client.receive()
    assert client.finish == {1: FINISH_LENGTH, 2: FINISH_ERROR}
    (name,) = params
    assert f"{name} holds token id" in client.errors[2]


CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 200,
    "tie_word_embeddings": True,
}


def _weights():
    layer = "model.layers.0."
    shapes = {
        "model.embed_tokens": (200, 16),
        "model.norm": (16,),
        layer + "input_layernorm": (16,),
        layer + "post_attention_layernorm": (16,),
        layer + "self_attn.q_proj": (16, 16),
        layer + "self_attn.k_proj": (8, 16),
        layer + "self_attn.v_proj": (8, 16),
        layer + "self_attn.o_proj": (16, 16),
        layer + "mlp.gate_proj": (32, 16),
        layer + "mlp.up_proj": (32, 16),
        layer + "mlp.down_proj": (16, 32),
    }
    torch.manual_seed(0)
    return {f"{name}.weight": torch.randn(shape) for name, shape in shapes.items()}


def test_a_batch_with_a_mismatched_checkpoint_is_answered_whole():
    with LocalEngine(CONFIG, _weights(), eos=(256,)) as local:
        client = Client(local.engine)
        client.send(1, [1, 2, 3], 4)
        client.send(2, [1, 2, 3], 4, min_tokens=3)
        client.send(3, [1, 2, 3], 4, min_tokens=3, stop_token_ids=(250,))
        while local.engine.has_work:
            local.engine.step()
            client.receive()
    assert client.finish == {1: FINISH_LENGTH, 2: FINISH_LENGTH, 3: FINISH_LENGTH}


@pytest.mark.parametrize(("ids", "known", "says"), [((2, 256), (2,), "ids=256"), ((256,), (), "answers end at")])
def test_the_start_warns_of_end_of_text_ids_that_the_model_lacks(ids, known, says, monkeypatch, caplog):
    monkeypatch.setattr("plugserve.core.engine.build.eos_token_ids", lambda source: ids)
    builder = EngineBuilder.__new__(EngineBuilder)
    builder._source, builder._settings = SimpleNamespace(name="m"), Settings()
    with caplog.at_level(logging.WARNING):
        assert builder._eos_ids(200) == known
    assert says in caplog.text
    assert "the model has 200 tokens" in caplog.text
