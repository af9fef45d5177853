"""The JSON schema of config files takes what the reader takes, and finds what it refuses."""

import json

import pytest
import yaml
from pydantic import BaseModel, Field

from plugserve.core.settings.settings import setting_facts
from plugserve.core.settings.settings_schema import config_schema
from tests.core.settings.reading import SjfOptions, message, read
from tests.core.settings.schema_check import errors

SCHEMA = config_schema({"sjf": SjfOptions})

GOOD = [
    "max_num_seqs: 64",
    "max_num_seqs: 16k",
    "max-num-seqs: '64'",
    "max_model_len: auto",
    "max_model_len: -1",
    "max_num_batched_tokens: auto",
    "kv_cache_memory: 1GiB",
    "kv_cache_memory: 1073741824",
    "swap_space: 0.5",
    "swap_space: auto",
    "dtype: half",
    "device: cuda:1",
    "log_level: debug",
    "model: a",
    "model: [a, b]",
    "plugin: [prefix-cache, null]",
    "lora_modules: {sql: ./sql}",
    "lora_modules: [sql=./sql, {name: b, path: c}]",
    "enforce_eager: yes",
    "enforce_eager: 'true'",
    "api_key: [a, b]",
    "gpu_mem_util: 0.5",
    "gpu-mem-util: 0.5",
    "speculative_config: {method: ngram}",
    "data_parallel_size: 1",
    "enable-eplb: true",
    "distributed_executor_backend: uni",
    "plugins: {sjf: {aging_tokens: 5, loud: true, words: [a], table: {x: 1}}}",
    "plugins: {sjf: {aging-tokens: '5', words: a, table: null}}",
    "plugins: {sjf: {table: '{\"x\": 1}'}}",
    "plugins: {sjf: null}",
    "plugins:",
    "",
]
BAD = [
    "max_num_seqs: 0",
    "max_num_seqs: many",
    "max_num_seqs: [1]",
    "max_num_seq: 1",
    "port: 70000",
    "dtype: int8",
    "device: tpu",
    "model: {a: b}",
    "enforce_eager: 3",
    "gpu_memory_utilization: 1.5",
    "gpu_mem_util: 1.5",
    "scheduler: [a]",
    "plugins: 5",
    "plugins: {sjf: 3}",
    "plugins: {sjf: {aging_token: 5}}",
    "plugins: {sjf: {aging_tokens: -1}}",
    "plugins: {sjf: {words: {a: b}}}",
    "plugins: {sjf: {table: x}}",
]


@pytest.mark.parametrize("text", GOOD)
def test_schema_takes_what_the_reader_takes(write, text):
    assert errors(yaml.safe_load(text), SCHEMA) == []
    read("--config", write(text))


@pytest.mark.parametrize("text", BAD)
def test_schema_finds_what_the_reader_refuses(write, text):
    assert errors(yaml.safe_load(text), SCHEMA)
    message("--config", write(text))


def test_schema_describes_every_setting_and_takes_null_for_it():
    assert set(SCHEMA["properties"]) == {*setting_facts(), "plugins"} - {"config"}
    for name, schema in SCHEMA["properties"].items():
        assert name == "plugins" or schema["description"].startswith(setting_facts()[name].help)
        assert errors({name: None}, SCHEMA) == []


def test_schema_is_json_and_shows_no_secret():
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA
    assert "default" not in SCHEMA["properties"]["api_key"]
    assert SCHEMA["properties"]["max_num_seqs"]["default"] == 256


class Limit(BaseModel):
    num: int = Field(1, ge=1)


class Nested(BaseModel):
    limits: list[Limit] = []


class Unknown(BaseModel):
    model_config = {"arbitrary_types_allowed": True}
    one: object = Field(None, json_schema_extra=None)
    two: type[object] | None = None


def test_models_of_models_are_described_below_their_plugin():
    schema = config_schema({"nested": Nested})
    assert errors({"plugins": {"nested": {"limits": [{"num": 2}]}}}, schema) == []
    assert errors({"plugins": {"nested": {"limits": [{"num": 0}]}}}, schema)


def test_a_model_without_a_schema_still_has_its_options():
    schema = config_schema({"odd": Unknown})
    assert errors({"plugins": {"odd": {"two": "x"}}}, schema) == []
    assert errors({"plugins": {"odd": {"three": "x"}}}, schema)
