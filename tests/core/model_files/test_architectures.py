"""Which architecture a config.json means, and what is said of one that no plugin provides."""

import re

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from plugserve.core.errors import ModelError
from plugserve.core.model_files.architectures import architecture_names, describe
from plugserve.core.model_files.families import CLASS_OF_MODEL_TYPE, FAMILIES

TINY = {
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": 61,
}


def test_model_types_mean_what_transformers_takes_them_for():
    assert {name: MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name] for name in CLASS_OF_MODEL_TYPE} == CLASS_OF_MODEL_TYPE
    assert set(CLASS_OF_MODEL_TYPE.values()) == set(FAMILIES)


@pytest.mark.parametrize("model_type", CLASS_OF_MODEL_TYPE)
def test_config_without_architectures_is_taken_by_its_model_type(model_type):
    named = describe({**TINY, "architectures": [CLASS_OF_MODEL_TYPE[model_type]]})
    assert describe({**TINY, "model_type": model_type}) == named
    assert describe({**TINY, "model_type": model_type, "architectures": None}) == named


def test_architectures_win_over_model_type():
    assert describe({**TINY, "architectures": ["Qwen2ForCausalLM"], "model_type": "llama"}).has_qkv_bias


def test_a_plugins_architecture_is_found_by_model_type():
    assert architecture_names({"model_type": "my_model"}, {"MyModelForCausalLM": None}) == ["MyModelForCausalLM"]
    assert architecture_names({"model_type": "other"}, {"MyModelForCausalLM": None}) == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "architecture MambaForCausalLM is not supported; supported are "),
        ({"model_type": "mamba"}, "architecture of model_type 'mamba' is not supported; supported are "),
    ],
)
def test_the_error_names_the_hook_that_adds_an_architecture(config, message):
    with pytest.raises(ModelError, match=re.escape(message) + r"Llama.*with the hook plugserve_architectures"):
        describe(config)


def test_config_that_names_no_model_says_what_to_add():
    with pytest.raises(ModelError, match="neither architectures nor model_type: add one"):
        describe(TINY)
