"""The table of models: how it is written, and what each model's own settings become."""

import pytest

from plugserve.core.errors import ConfigError
from plugserve.core.settings.model_entries import ModelEntry, by_every_name, entry_from_table, settings_of, with_table
from plugserve.core.settings.settings_reader import read_settings

TABLE = """
port: 9000
max_num_seqs: 4
models:
  small:
    model: org/small
    ttl: 60
    aliases: tiny
    max-model-len: 2k
    kv_cache_memory_bytes: 1MiB
  kept: {model: /models/kept, pinned: true, dtype: null}
  org/plain:
  short: other/model
"""


def read(tmp_path, text=TABLE):
    file = tmp_path / "serve.yaml"
    file.write_text(text)
    return read_settings(["--config", str(file)], {}).settings


def test_entries_hold_the_settings_that_differ_from_the_servers(tmp_path):
    settings = read(tmp_path)
    small = entry_from_table(settings, "small")
    assert (small.reference, small.names, small.aliases, small.ttl_s) == ("org/small", ("small",), ("tiny",), 60)
    assert not small.is_pinned
    own = settings_of(settings, small)
    assert (own.model, own.max_model_len, own.kv_cache_memory) == (["org/small"], 2048, 2**20)
    assert (own.max_num_seqs, own.port, own.models) == (4, 9000, {})
    kept = entry_from_table(settings, "kept")
    assert kept.is_pinned
    assert kept.is_preloaded
    assert settings_of(settings, kept).dtype == "auto"
    assert entry_from_table(settings, "org/plain").reference == "org/plain"
    assert entry_from_table(settings, "short").reference == "other/model"


def test_the_table_may_be_json_on_the_command_line_and_in_the_environment():
    table = '{"a": {"model": "x/y", "preload": true}}'
    for arguments, environ in (["--models", table], {}), ([], {"PLUGSERVE_MODELS": table}):
        entry = entry_from_table(read_settings(arguments, environ).settings, "a")
        assert entry.is_preloaded
        assert not entry.is_pinned


def test_the_table_adds_to_a_model_that_is_given_otherwise(tmp_path):
    settings = read(tmp_path, "models: {given: {pinned: false, dtype: float32, aliases: [also]}}")
    given = ModelEntry("given", "/m/given", ("given",), ("alias",), is_pinned=True, is_preloaded=True)
    entry = with_table(settings, given)
    assert (entry.reference, entry.is_pinned, entry.is_preloaded) == ("/m/given", False, True)
    assert entry.aliases == ("alias", "also")
    assert entry.overrides == {"dtype": "float32"}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("{a: {port: 1}}", "models in .*: a: port is a setting of the whole server"),
        ("{a: {enable_lora: true}}", "a: enable_lora is a setting of the whole server"),
        ("{a: {max_model_lem: 1}}", "Did you mean 'max_model_len'"),
        ("{a: {dtype: bf}}", "a: dtype must be one of auto, half"),
        ("{a: {ttl: -1}}", "a: ttl: .*greater than or equal to 0, got -1"),
        ("{a: {pinned: 3}}", "a: pinned: .*got 3"),
        ("{a: {tokenizer_mode: mistral}}", "tokenizer_mode mistral is not supported"),
        ("{a: {aliases: b}, b: {}}", "'b' names both 'a' and 'b'"),
        ("{a: 3}", "must be a table of models by name"),
        ("[a]", "must be a table of models by name"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_the_model_and_the_key(tmp_path, table, message):
    with pytest.raises(ConfigError, match=message) as caught:
        read(tmp_path, f"models: {table}")
    assert "\n" not in str(caught.value)


def test_names_come_before_aliases():
    first = ModelEntry("a", "a", ("shown",), ("b",))
    second = ModelEntry("b", "b", ("b",), ("shown",))
    assert {name: entry.name for name, entry in by_every_name([first, second]).items()} == {
        "shown": "a",
        "a": "a",
        "b": "b",
    }
