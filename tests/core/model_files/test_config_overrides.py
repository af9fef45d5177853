"""--hf-overrides: values over those of a model's config.json, wherever it is read."""

import dataclasses
import json

import pytest

from plugserve.core.errors import ConfigError
from plugserve.core.model_files.model_source import context_length, eos_token_ids, read_config, resolve
from plugserve.core.wire.runtime_folder import as_source
from tests.core.model_files.test_model_source import CONFIG, make_folder, tiny_gguf

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}


def found(tmp_path, config, overrides):
    return resolve(str(make_folder(tmp_path / "model", CONFIG | config)), config_overrides=overrides)


def test_values_replace_those_of_the_file_and_add_to_them(tmp_path):
    source = found(tmp_path, {"max_position_embeddings": 2048}, {"max_position_embeddings": 64, "rope_theta": 5e5})
    assert context_length(read_config(source)) == 64
    assert read_config(source)["rope_theta"] == 5e5


def test_rope_scaling_is_replaced_as_a_whole(tmp_path):
    config = {"max_position_embeddings": 2048, "rope_scaling": LLAMA3}
    source = found(tmp_path, config, {"rope_scaling": YARN})
    assert read_config(source)["rope_scaling"] == YARN
    assert context_length(read_config(source)) == 8192


def test_null_takes_a_value_away(tmp_path):
    source = found(tmp_path, {"rope_scaling": LLAMA3}, {"rope_scaling": None})
    assert read_config(source)["rope_scaling"] is None


@pytest.mark.parametrize("overrides", [{"text_config": {"head_dim": 32}}, {"head_dim": 32}])
def test_a_nested_text_config_is_changed_key_by_key(tmp_path, overrides):
    config = {"text_config": {"head_dim": 64, "hidden_size": 128}, "head_dim": 8}
    read = read_config(found(tmp_path, config, overrides))
    assert (read["head_dim"], read["hidden_size"]) == (32, 128)


def test_ids_that_end_a_text_are_overridden(tmp_path):
    assert eos_token_ids(found(tmp_path, {}, {"eos_token_id": [7, 9]})) == (7, 9)


def test_a_gguf_files_config_is_overridden(tmp_path):
    source = resolve(str(tiny_gguf(tmp_path / "model.gguf")), config_overrides={"max_position_embeddings": 33})
    assert read_config(source)["max_position_embeddings"] == 33


def test_processes_get_the_overrides_with_the_model(tmp_path):
    source = found(tmp_path, {}, {"rope_scaling": YARN})
    line = json.dumps(dataclasses.asdict(source), default=str)
    assert as_source(json.loads(line)) == source


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_hidden_layers": "four"}, "--hf-overrides: num_hidden_layers should be a whole number"),
        ({"rope_scaling": "yarn"}, "--hf-overrides: rope_scaling should be an object, got 'yarn'"),
        ({"rope_scaling": {"factor": -1}}, "--hf-overrides: rope_scaling.factor should be a number"),
        ({"text_config": {"hidden_size": -1}}, "--hf-overrides: text_config: hidden_size should be"),
        ({"use_thing": "yes"}, "--hf-overrides: use_thing should be true or false, as the model's config has it"),
        ({"mood": 3}, "--hf-overrides: mood should be a text, as the model's config has it, got 3"),
    ],
)
def test_a_value_of_another_type_is_one_line(tmp_path, overrides, message):
    with pytest.raises(ConfigError) as caught:
        found(tmp_path, {"use_thing": True, "mood": "calm"}, overrides)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
