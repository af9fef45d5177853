"""--generation-config and --override-generation-config: where requests' defaults come from."""

import json

import pytest

from plugserve.core.errors import ConfigError, ModelError
from plugserve.core.model_files.generation_defaults import generation_defaults
from plugserve.core.model_files.model_source import resolve
from tests.core.model_files.test_model_source import make_folder

OWN = {"temperature": 0.6, "top_p": 0.9, "max_new_tokens": 50}


@pytest.fixture
def source(tmp_path):
    return resolve(str(make_folder(tmp_path / "model", generation_config__json=OWN)))


def test_auto_is_the_models_own_file_and_none_no_file(source):
    assert generation_defaults(source, "auto", {}).sampling == {"temperature": 0.6, "top_p": 0.9}
    assert generation_defaults(source, "none", {}).sampling == {}


@pytest.mark.parametrize("name", ["", "generation_config.json"])
def test_a_folder_has_the_file(source, tmp_path, name):
    (tmp_path / "generation_config.json").write_text(json.dumps({"top_k": 7}))
    assert generation_defaults(source, str(tmp_path / name), {}).sampling == {"top_k": 7}


def test_overrides_are_laid_over_the_file(source):
    found = generation_defaults(source, "auto", {"temperature": 0.1, "min_p": 0.05, "max_new_tokens": 9})
    assert found.sampling == {"temperature": 0.1, "top_p": 0.9, "min_p": 0.05}
    assert found.max_new_tokens == 9
    assert generation_defaults(source, "none", {"top_k": 3}).sampling == {"top_k": 3}


def test_null_takes_a_default_away(source):
    assert generation_defaults(source, "auto", {"temperature": None}).sampling == {"top_p": 0.9}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"temprature": 1}, "--override-generation-config can't set 'temprature'. Did you mean 'temperature'?"),
        ({"top_p": 2}, "--override-generation-config: top_p should be a number above 0 and at most 1, got 2"),
        ({"top_p": 0}, "--override-generation-config: top_p should be a number above 0 and at most 1, got 0"),
        (
            {"temperature": "hot"},
            "--override-generation-config: temperature should be a number from 0 to 100, got 'hot'",
        ),
        ({"max_new_tokens": 0}, "--override-generation-config: max_new_tokens should be a whole number of at least 1"),
    ],
)
def test_a_wrong_override_is_one_line(source, overrides, message):
    with pytest.raises(ConfigError) as caught:
        generation_defaults(source, "auto", overrides)
    assert str(caught.value).startswith(message)


def test_a_folder_without_the_file_and_a_file_with_wrong_values_are_one_line(source, tmp_path):
    with pytest.raises(ConfigError, match=r"must be auto, none .* got '.*nowhere'"):
        generation_defaults(source, str(tmp_path / "nowhere"), {})
    (tmp_path / "generation_config.json").write_text(json.dumps({"top_p": 7}))
    with pytest.raises(ModelError, match="top_p should be a number above 0 and at most 1, got 7"):
        generation_defaults(source, str(tmp_path), {})
