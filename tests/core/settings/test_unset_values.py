"""Null and empty values in a file leave the default; None on the command line asks for it; odd ones are refused."""

import pytest
import yaml

from plugserve.core.errors import ConfigError
from plugserve.core.settings.old_names import OLD_NAMES
from plugserve.core.settings.settings import Settings, setting_facts
from plugserve.core.settings.vllm_names.translations import TRANSLATIONS
from tests.core.settings.reading import message, read, settings

NULLS = [None, "", {}, []]
LISTS = ["model", "served_model_name", "plugin", "no_plugin", "lora_modules", "api_key", "allowed_origins",
         "allowed_methods", "allowed_headers", "upstream", "upstream_key"]  # fmt: skip


def given(write, **values):
    return read("--config", write(yaml.safe_dump(values)))


@pytest.mark.parametrize("name", setting_facts())
def test_null_means_the_default_for_every_setting(write, name):
    reading = given(write, **{name: None})
    assert reading.settings == Settings(config="serve.yaml")
    assert reading.warnings == ()
    assert (name in reading.given) == (name == "config")


@pytest.mark.parametrize("value", NULLS)
def test_what_templates_write_for_nothing_means_the_default(write, value):
    names = [name for name in setting_facts() if name not in (*LISTS, "config")]
    assert given(write, **dict.fromkeys(names, value)).settings == Settings(config="serve.yaml")


def test_null_entries_of_lists_are_left_out(write):
    got = given(write, model=[None, "a", None], plugin=[None], allowed_methods=[None, None], lora_modules=[None, "a=b"])
    assert got.settings.model == ["a"]
    assert got.settings.plugin == []
    assert got.settings.allowed_methods == ["*"]
    assert got.settings.lora_modules == [{"name": "a", "path": "b"}]


def test_empty_list_is_a_value_of_a_list(write):
    assert given(write, allowed_methods=[]).settings.allowed_methods == []


def test_empty_key_is_never_a_server_without_keys(write):
    assert "api_key in serve.yaml must be" in message("--config", write("api_key: ''"))
    assert "api_key in serve.yaml must be" in message("--config", write("api_key: ['']"))


@pytest.mark.parametrize(
    "table", ["", "null", "{sjf: null}", "{sjf: ''}", "{sjf: {aging_tokens: null, loud: ~, words: null, table: null}}",
              "{sjf: {aging_tokens: '', loud: '', words: '', table: ''}}", "{sjf: {words: [null]}}"]
)  # fmt: skip
def test_null_means_the_default_for_plugins_and_their_options(write, table):
    assert settings("--config", write(f"plugins: {table}")).plugins == {}


def test_null_entries_are_left_out_of_an_options_list(write):
    assert settings("--config", write("plugins: {sjf: {words: [a, null]}}")).plugins == {"sjf": {"words": ["a"]}}


def test_toml_has_empty_texts_instead_of_null(write):
    file = write('max_model_len = ""\nport = ""\nrevision = ""\nenforce_eager = ""', "serve.toml")
    assert settings("--config", file) == Settings(config="serve.toml")


def test_a_key_may_be_given_twice_if_one_is_null(write):
    assert settings("--config", write("max_num_seqs: null\nmax-num-seqs: 2")).max_num_seqs == 2


def test_unknown_key_is_an_error_although_it_is_null(write):
    assert "unknown setting 'max_num_seq'" in message("--config", write("max_num_seq: null"))
    assert "unknown option 'speed'" in message("--config", write("plugins: {sjf: {speed: null}}"))


@pytest.mark.parametrize("word", ["None", "null", ""])
def test_none_on_the_command_line_overrides_the_file_by_the_default(write, word):
    file = write("max_model_len: 8\ntokenizer: x")
    got = settings("--config", file, "--max-model-len", word, "--tokenizer", word)
    assert (got.max_model_len, got.tokenizer) == (None, None)


def test_none_in_the_environment_overrides_the_file_by_the_default(write):
    file = write("max_model_len: 8\ntokenizer: x")
    environ = {"PLUGSERVE_MAX_MODEL_LEN": "null", "PLUGSERVE_TOKENIZER": "None"}
    got = settings("--config", file, environ=environ)
    assert (got.max_model_len, got.tokenizer) == (None, None)


def test_none_is_no_value_of_a_setting_that_always_has_one():
    assert message("--port", "None") == "--port must be a port from 0 to 65535, got 'None'"


ODD = [0, -1, 1.5, True, "\x00", 10**30, float("inf"), float("nan"), ["a"], [[1]], [{"a": None}], {"a": {"b": [1]}},
       {1: 2}, "x", "{", '{"model": {"a": 1}}', {"method": 5}, {"backend": ["x"]}]  # fmt: skip


@pytest.mark.parametrize("name", [*setting_facts(), *OLD_NAMES, *TRANSLATIONS])
def test_a_value_of_any_type_is_read_or_refused_in_one_line(name):
    for value in ODD:
        try:
            read(keywords={name: value})
        except ConfigError as error:
            assert "\n" not in str(error)  # noqa: PT017
