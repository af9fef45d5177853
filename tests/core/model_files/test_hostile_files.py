"""Whatever a model's files hold: one line that names the file, never a traceback, a hang or a huge allocation."""

from __future__ import annotations

import copy
import json
import os
import random
import socket

import numpy as np
import pytest
from safetensors.numpy import save_file

from plugserve.core.contracts.model import DecoderSpec
from plugserve.core.errors import ModelError, UserError
from plugserve.core.model_files.architectures import describe
from plugserve.core.model_files.checkpoint_folder import quantisation_of
from plugserve.core.model_files.families import FAMILIES
from plugserve.core.model_files.model_source import (
    context_length,
    eos_token_ids,
    load_text_model,
    read_config,
    resolve,
    sampling_defaults,
)
from tests.core.model_files.test_model_source import make_folder

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 100,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "max_position_embeddings": 256,
    "rope_theta": 10000.0,
    "rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 128},
    "sliding_window": 32,
    "use_sliding_window": True,
    "max_window_layers": 1,
    "layer_types": ["full_attention", "full_attention"],
    "tie_word_embeddings": True,
    "attention_bias": False,
    "eos_token_id": [2, 3],
    "torch_dtype": "float32",
    "text_config": {"hidden_size": 64},
    "query_pre_attn_scalar": 16,
    "final_logit_softcapping": 30.0,
    "sliding_window_pattern": 6,
    "partial_rotary_factor": 1.0,
}
FILES = {
    "config.json": CONFIG,
    "generation_config.json": {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "eos_token_id": 2, "max_new_tokens": 9},
    "tokenizer_config.json": {
        "bos_token": {"content": "<s>"},
        "chat_template": [{"name": "default", "template": "{{ messages }}"}],
        "added_tokens_decoder": {"0": {"content": "<s>", "special": True}},
        "tokenizer_class": "Qwen2Tokenizer",
    },
    "special_tokens_map.json": {"eos_token": "</s>"},
    "chat_template.json": {"chat_template": "{{ messages }}"},
    "vocab.json": {"a": 0, "b": 1, "ab": 2},
    "model.safetensors.index.json": {"weight_map": {"a": "model.safetensors", "b": "model.safetensors"}},
}
WRONG = [
    None, True, False, 0, 1, -1, 2**31, 2**64, 10**400, 0.5, -0.0, float("nan"), float("inf"), 1e308, "", "text", "7",
    "\x00\n", "\ud800", [], [1], ["text"], [[]], [None], [True], {}, {"a": {}}, {"factor": "2"}, {"rope_type": []},
    {"quant_method": 7}, [float("nan")],
]  # fmt: skip
NUM_MUTANTS = 1200


def _places(value, path=()):
    """Every place inside a JSON value."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _places(inner, (*path, key))


def _mutant(random):
    """(file, text): one of the files with one or two of its values replaced, or broken as a whole."""
    name = random.choice(list(FILES))
    if random.random() < 0.1:
        return name, random.choice(
            ["", "[", "[" * 100_000, '{"a":' * 100_000, "true", "[]", '"x"', "\ufeff{}", "9" * 9999]
        )
    value = copy.deepcopy(FILES[name])
    if name == "config.json":
        value["architectures"] = [random.choice(list(FAMILIES))]
    for _ in range(random.choice((1, 1, 2))):
        *outer, last = random.choice([path for path in _places(value) if path] or [("x",)])
        target = value
        for key in outer:
            target = target[key]
        target[last] = copy.deepcopy(random.choice(WRONG))
    return name, json.dumps(value)


def _read_everything(folder):
    """What the supervisor, an engine and a worker read of a model before its weights."""
    source = resolve(str(folder))
    config = read_config(source)
    context_length(config)
    quantisation_of(config)
    eos_token_ids(source)
    sampling_defaults(source)
    assert isinstance(describe(config), DecoderSpec)
    load_text_model(source)


@pytest.fixture
def folder(tmp_path):
    made = make_folder(tmp_path / "model", CONFIG, weights=False)
    save_file({"a": np.zeros(12_500), "b": np.zeros(12_500, np.float32)}, made / "model.safetensors")
    for name, value in FILES.items():
        (made / name).write_text(json.dumps(value))
    (made / "merges.txt").write_text("a b\n")
    return made


def test_mutated_files_end_in_one_line_or_are_read(folder):
    _read_everything(folder)
    numbers = random.Random(7)
    refusals = []
    for _ in range(NUM_MUTANTS):
        name, text = _mutant(numbers)
        (folder / name).write_text(text)
        try:
            _read_everything(folder)
        except UserError as error:
            refusals.append(str(error))
        except Exception as error:
            raise AssertionError(f"{name}: {text[:300]}") from error
        (folder / name).write_text(json.dumps(FILES[name]))
    assert NUM_MUTANTS / 4 < len(refusals) < NUM_MUTANTS
    assert max(map(len, refusals)) < 800
    assert all(refusal.encode() for refusal in refusals)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("architectures", True, "architectures should be a list of texts, got True"),
        ("head_dim", 2**64, "head_dim should be at most 65536, got 18446744073709551616"),
        ("vocab_size", 2**31, "vocab_size should be at most"),
        ("vocab_size", "100", "got '100'"),
        ("rms_norm_eps", float("nan"), "rms_norm_eps should be a number from 0 to 1, got nan"),
        ("rope_theta", "1e4", "rope_theta should be a number above 0, got '1e4'"),
        ("rope_scaling", [1], "rope_scaling should be an object, got [1]"),
        ("rope_scaling", {"rope_type": "yarn", "factor": "2"}, "rope_scaling.factor should be a number above 0"),
        ("rope_parameters", {"full_attention": {"factor": -1}}, "rope_parameters.full_attention.factor"),
        ("layer_types", 7, "layer_types should be a list of texts, got 7"),
        ("eos_token_id", 2**70, "eos_token_id should be a token id"),
        ("max_position_embeddings", 2**60, "max_position_embeddings should be"),
        ("quantization_config", 7, "quantization_config should be an object, got 7"),
        ("hidden_act", {"a": "x" * 1000}, "hidden_act should be a text, got {'a': 'xxx"),
    ],
)
def test_a_wrong_value_is_named_with_its_file_and_key(folder, key, value, says):
    (folder / "config.json").write_text(json.dumps({**CONFIG, key: value}))
    with pytest.raises(ModelError) as caught:
        resolve(str(folder))
    assert says in str(caught.value)
    assert str(caught.value).startswith(str(folder / "config.json"))
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("key", "value"), [("temperature", "hot"), ("top_p", 7), ("top_k", 0.5), ("max_new_tokens", 0), ("top_k", True)]
)
def test_sampling_defaults_that_no_request_could_have_are_refused(folder, key, value):
    (folder / "generation_config.json").write_text(json.dumps({key: value}))
    with pytest.raises(ModelError, match=f"generation_config.json: {key} should be"):
        sampling_defaults(resolve(str(folder), load_format="dummy"))


def test_a_config_that_asks_for_more_than_its_weights_can_hold_is_refused_before_memory_is_taken(folder):
    (folder / "config.json").write_text(json.dumps({**CONFIG, "vocab_size": 2**26}))
    with pytest.raises(ModelError, match=r"describes 4295041024 parameters .* more than the \d+ bytes"):
        resolve(str(folder))


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json", "vocab.json"])
def test_deep_nesting_is_one_line(folder, name):
    (folder / name).write_text("[" * 100_000)
    with pytest.raises(ModelError, match=r"nested too deeply|can't be read"):
        _read_everything(folder)


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json", "chat_template.jinja"])
@pytest.mark.parametrize("kind", ["FIFO", "socket", "folder", "device"])
def test_files_that_are_no_files_are_refused_without_opening_them(folder, name, kind, monkeypatch):
    path = folder / name
    path.unlink(missing_ok=True)
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        monkeypatch.chdir(folder)
        socket.socket(socket.AF_UNIX).bind(name)
    with pytest.raises(ModelError, match=f"it is a {kind}, not a regular file"):
        _read_everything(folder)


def test_a_home_folder_of_nobody_is_not_found():
    with pytest.raises(ModelError, match="not found"):
        resolve("~no-such-user/model")
