"""Encoders against transformers: each type of model, each pooling, mixed lengths, cross-encoders, weights."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from plugserve.core.errors import ModelError
from tests.backends.torch.encoders.encoder_samples import (
    TYPES,
    LocalEncoder,
    build,
    hidden_states,
    inputs_of,
    modules,
    save,
)  # fmt: skip

LENGTHS = (1, 2, 9, 17, 18, 40, 64)


@pytest.mark.parametrize("model_type", TYPES)
def test_vectors_equal_transformers(tmp_path, model_type):
    """The mean over tokens, of a batch that is padded; without sentence-transformers' files."""
    model = build(model_type)
    local = LocalEncoder(save(tmp_path / "m", model))
    assert (local.info.task, local.info.num_blocks) == ("embed", 0)
    assert local.info.max_model_len == (64 if TYPES[model_type].get("pad_token_id") else 66)
    inputs = inputs_of(LENGTHS)
    expected = np.stack([hidden_states(model, one).mean(0).numpy() for one in inputs])
    np.testing.assert_allclose(local.encode(inputs), expected, atol=1e-5)
    assert max(len(batch) for batch in local.batches) > 1


def pooled(hidden, name):
    count = torch.arange(1, len(hidden) + 1).unsqueeze(1)
    return {
        "cls": hidden[0],
        "max": hidden.max(0).values,
        "mean": hidden.mean(0),
        "mean_sqrt_len": hidden.sum(0) / len(hidden) ** 0.5,
        "weighted_mean": (hidden * count).sum(0) / count.sum(),
        "last": hidden[-1],
    }[name]


KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weighted_mean",
    "pooling_mode_lasttoken": "last",
}


@pytest.mark.parametrize("keys", [*([key] for key in KEYS), ["pooling_mode_mean_tokens", "pooling_mode_cls_token"]])
def test_pooling_is_what_sentence_transformers_files_say(tmp_path, keys):
    model = build()
    config = {"word_embedding_dimension": 32, **dict.fromkeys(KEYS, False), **dict.fromkeys(keys, True)}
    local = LocalEncoder(
        save(tmp_path / "m", model, modules=modules("Pooling", "Normalize"), **{"1_Pooling__config": config})
    )
    inputs = inputs_of(LENGTHS)
    names = [name for key, name in KEYS.items() if key in keys]  # in this order, whatever the file's
    expected = [np.concatenate([pooled(hidden_states(model, one), name) for name in names]) for one in inputs]
    np.testing.assert_allclose(local.encode(inputs), expected, atol=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "last", "mean", "max"])
def test_a_request_may_choose_another_pooling(tmp_path, pooling):
    model = build()
    local = LocalEncoder(save(tmp_path / "m", model))
    inputs = inputs_of((5, 6, 7))
    local.admit(9, inputs[0])  # in the same batch
    expected = [pooled(hidden_states(model, one), pooling) for one in inputs]
    np.testing.assert_allclose(local.encode(inputs, pooling=pooling), np.stack(expected), atol=1e-5)


@pytest.mark.parametrize(("activation", "apply"), [("Tanh", torch.tanh), ("linear.Identity", lambda x: x)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_dense_layers_follow_the_pooling(tmp_path, activation, apply, has_bias):
    model = build()
    config = {"in_features": 32, "out_features": 8, "bias": has_bias, "activation_function": f"torch.nn.{activation}"}
    folder = save(
        tmp_path / "m", model, modules=modules("Pooling", "Dense", "Normalize"),
        **{"1_Pooling__config": {"pooling_mode_mean_tokens": True}, "2_Dense__config": config},
    )  # fmt: skip
    tensors = {"linear.weight": torch.randn(8, 32), "linear.bias": torch.randn(8)}
    if not has_bias:
        del tensors["linear.bias"]
    save_file(tensors, folder / "2_Dense" / "model.safetensors")
    inputs = inputs_of((4, 30))
    means = torch.stack([hidden_states(model, one).mean(0) for one in inputs])
    expected = apply(means @ tensors["linear.weight"].T + tensors.get("linear.bias", 0))
    np.testing.assert_allclose(LocalEncoder(folder).encode(inputs), expected, atol=1e-5)
    save_file({name: tensor[:5].clone() for name, tensor in tensors.items()}, folder / "2_Dense" / "model.safetensors")
    with pytest.raises(ModelError, match=r"2_Dense: tensor linear.weight has shape \[5, 32\], .* asks for \[8, 32\]"):
        LocalEncoder(folder)


# ---------------------------------------------------------------- cross-encoders


@pytest.mark.parametrize("model_type", ["bert", "roberta", "distilbert", "modernbert"])
@pytest.mark.parametrize(
    ("num_labels", "config", "apply"),
    [
        (1, {}, torch.sigmoid),
        (3, {}, lambda x: x),
        (1, {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, lambda x: x),
        (1, {"sbert_ce_default_activation_function": "torch.nn.Tanh"}, torch.tanh),
    ],
)
def test_scores_equal_transformers(tmp_path, model_type, num_labels, config, apply):
    model = build(model_type, num_labels=num_labels)
    local = LocalEncoder(save(tmp_path / "m", model, config=config))
    assert local.info.task == "score"
    tells_pairs = model_type in ("bert", "roberta")
    inputs = inputs_of((12, 20, 21))
    with torch.no_grad():
        kinds = torch.tensor([[0] * 5 + [1] * 15])
        options = {"token_type_ids": kinds} if tells_pairs else {}
        second = apply(model(torch.tensor([inputs[1]]), **options).logits[0])
        others = [apply(model(torch.tensor([inputs[i]])).logits[0]) for i in (0, 2)]
    local.admit(0, inputs[0])
    local.admit(1, inputs[1], second_start=5)
    local.admit(2, inputs[2])
    scores, errors = local.run()
    assert not errors
    for got, expected in zip((scores[0], scores[1], scores[2]), (others[0], second, others[1]), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)


# ---------------------------------------------------------------- weights


def test_a_checkpoint_of_a_pretraining_model_has_a_prefix_and_heads(tmp_path):
    model = build()
    folder = save(tmp_path / "m", model, config={"architectures": ["BertForMaskedLM"]})
    tensors = load_file(folder / "model.safetensors")
    prefixed = {f"bert.{name}": tensor for name, tensor in tensors.items() if not name.startswith("pooler")}
    save_file(prefixed | {"cls.predictions.bias": torch.zeros(3)}, folder / "model.safetensors")
    inputs = inputs_of((7,))
    np.testing.assert_allclose(
        LocalEncoder(folder).encode(inputs)[0], hidden_states(model, inputs[0]).mean(0), atol=1e-5
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("encoder.layer.1.output.dense.bias"),
            "lacks 1 tensors of BertModel, first encoder.layer.1.output",
        ),
        (
            lambda t: t.update({"encoder.layer.0.output.dense.bias": torch.zeros(7)}),
            r"tensor encoder.layer.0.output.dense.bias has shape \[7\], the model's config asks for \[32\]",
        ),
    ],
)
def test_weights_that_do_not_fill_the_model_are_refused(tmp_path, change, message):
    folder = save(tmp_path / "m", build())
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelError, match=message):
        LocalEncoder(folder)


def test_other_formats_and_dummy_weights(tmp_path):
    model = build()
    folder = save(tmp_path / "m", model)
    expected = LocalEncoder(folder).encode(inputs_of(LENGTHS))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    np.testing.assert_array_equal(LocalEncoder(folder).encode(inputs_of(LENGTHS)), expected)
    (folder / "pytorch_model.bin").unlink()
    dummy = LocalEncoder(folder, load_format="dummy").encode(inputs_of(LENGTHS))
    assert np.isfinite(dummy).all()
    assert np.abs(dummy - expected).max() > 0.1


# ---------------------------------------------------------------- lengths


@pytest.mark.parametrize(("asked", "length"), [(None, 20), (12, 12), (40, 40), (66, 66), (67, 20)])
def test_the_length_is_the_makers_unless_the_weights_take_what_is_asked(tmp_path, asked, length, caplog):
    folder = save(tmp_path / "m", build(), sentence_bert_config={"max_seq_length": 20})
    assert LocalEncoder(folder, max_model_len=asked).info.max_model_len == length
    is_named = f"--max-model-len {asked} is above the 20 tokens that this encoder's makers recommend" in caplog.text
    assert is_named == (asked in (40, 66))


def test_ranks_have_no_effect_and_a_line_says_so(tmp_path, caplog):
    LocalEncoder(save(tmp_path, build()), tensor_parallel_size=2)
    assert "--tensor-parallel-size 2 has no effect" in caplog.text
    assert "is an encoder, which runs on one device" in caplog.text
