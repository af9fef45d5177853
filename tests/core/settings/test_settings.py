"""Settings: one declaration, three places, one precedence, clear refusals."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from plugserve.core.errors import ConfigError
from plugserve.core.settings.old_names import OLD_NAMES
from plugserve.core.settings.selection import Selection
from plugserve.core.settings.setting_names import flag
from plugserve.core.settings.settings import Settings, setting_facts
from plugserve.core.settings.settings_docs import help_text, settings_table
from plugserve.core.settings.settings_reader import read_selection, read_settings

DOCS = Path(__file__).parents[3] / "docs" / "configuration.md"


class SjfOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    aging_tokens: int = Field(32, ge=0, description="How fast a job ages.")
    loud: bool = False
    words: list[str] = []
    table: dict[str, int] = {}
    api_key: SecretStr | None = None


PLUGINS = {"options": {"sjf": SjfOptions}, "active": ["fcfs", "sjf"], "installed": ["fcfs", "sjf", "prefix-cache"]}


def read(*arguments, environ=None, **more):
    return read_settings(arguments, environ or {}, **(PLUGINS | more))


def settings(*arguments, environ=None, **more):
    return read(*arguments, environ=environ, **more).settings


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write serve.yaml (or another name) in the working directory of the test."""
    monkeypatch.chdir(tmp_path)

    def write(text, name="serve.yaml"):
        (tmp_path / name).write_text(text)
        return name

    return write


def message(*arguments, **more):
    with pytest.raises(ConfigError) as caught:
        read(*arguments, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------- flags


@pytest.mark.parametrize(
    ("arguments", "setting", "value"),
    [
        (["--max-num-seqs", "8"], "max_num_seqs", 8),
        (["--max-num-seqs=8"], "max_num_seqs", 8),
        (["--max_num_seqs", "8"], "max_num_seqs", 8),
        (["--max-num-seqs", "4", "--max-num-seqs", "8"], "max_num_seqs", 8),
        (["--enforce-eager"], "enforce_eager", True),
        (["--no-enforce-eager"], "enforce_eager", False),
        (["--enforce-eager=false"], "enforce_eager", False),
        (["--model", "a", "--model", "b=c"], "model", ["a", "b=c"]),
        (["a", "--model", "b"], "model", ["a", "b"]),
        (["--max-model-len", "16k"], "max_model_len", 16384),
        (["--max-model-len", "auto"], "max_model_len", "auto"),
        (["--max-num-batched-tokens", "auto"], "max_num_batched_tokens", None),
        (["--max-num-batched-tokens", "2k"], "max_num_batched_tokens", 2048),
        (["--kv-cache-memory", "1GiB"], "kv_cache_memory", 1 << 30),
        (["--kv-cache-memory", "512MiB"], "kv_cache_memory", 512 << 20),
        (["--kv-cache-memory", "2g"], "kv_cache_memory", 2 << 30),
        (["--kv-cache-memory", "2GB"], "kv_cache_memory", 2 * 10**9),
        (["--dtype", "half"], "dtype", "float16"),
        (["--dtype", "float"], "dtype", "float32"),
        (["--dtype", "bfloat16"], "dtype", "bfloat16"),
        (["--port", "0"], "port", 0),
        (["--distributed-executor-backend", "mp"], "distributed_executor_backend", "mp"),
    ],
)
def test_flag_is_read(arguments, setting, value):
    assert getattr(settings(*arguments), setting) == value


def test_defaults_change_nothing():
    assert settings() == Settings()
    assert Settings().changed() == {}


def test_settings_are_read_only():
    with pytest.raises(ValueError, match="frozen"):
        Settings().port = 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--max-num-seq", "8"], "unknown setting '--max-num-seq' on the command line. Did you mean '--max-num-seqs'?"),
        (["--max-num-seqs", "0"], "--max-num-seqs must be a whole number of at least 1 (16k means 16384), got '0'"),
        (["--max-num-seqs", "1.5"], "--max-num-seqs must be a whole number of at least 1 (16k means 16384), got '1.5'"),
        (["--max-num-seqs"], "--max-num-seqs needs a value"),
        (["--max-num-seqs", "--enforce-eager"], "--max-num-seqs needs a value"),
        (["--block-size", "24"], "--block-size must be a power of two from 16 to 256, got '24'"),
        (["--port", "99999"], "--port must be a port from 0 to 65535, got '99999'"),
        (["--dtype", "int8"], "--dtype must be one of auto, half, float16, bfloat16, float, float32, got 'int8'"),
        (["--gpu-memory-utilization", "1.5"],
         "--gpu-memory-utilization must be a number above 0 and at most 1, got '1.5'"),
        (["--device", "tpu"], "--device must be one of auto, cpu, cuda, cuda:N, got 'tpu'"),
        (["--api-server-count", "x"],
         "--api-server-count must be a whole number of at least 1 (16k means 16384), got 'x'"),
        (["--enforce-eager", "true"],
         "--enforce-eager takes no value, got 'true'; use --enforce-eager or --no-enforce-eager"),
        (["--enforce-eager=maybe"], "--enforce-eager must be true or false, got 'maybe'"),
        (["a", "b"], "unexpected argument 'b'; to serve several models repeat --model"),
        (["-x"], "unknown setting '-x' on the command line."),
    ],
)  # fmt: skip
def test_wrong_flag_is_one_clear_line(arguments, expected):
    assert message(*arguments) == expected


@pytest.mark.parametrize(
    ("spelt", "near"),
    [
        ("--jsno", "--json"),
        ("--versio", "--version"),
        ("--tp", "--tensor-parallel-size"),
        ("--ctx-size", "--max-model-len"),
        ("-p", "--port"),
        ("--gpu-mem-util", "--gpu-memory-utilization"),
        ("--no-enforce-eagr", "--enforce-eager"),
    ],
)
def test_unknown_flag_names_the_nearest_one(spelt, near):
    assert message(spelt) == f"unknown setting {spelt!r} on the command line. Did you mean {near!r}?"


def test_flag_of_another_command_says_whose_it_is():
    assert message("--json") == "unknown setting '--json' on the command line. --json belongs to `plugserve plugins`"


@pytest.mark.parametrize("text", ["inf", "nan", "1e999"])
def test_no_number_of_seconds_is_endless(text):
    """Settings travel to child processes as JSON, which has no infinity."""
    assert message("--shutdown-timeout", text) == f"--shutdown-timeout must be a number of at least 0, got {text!r}"


def test_empty_host_is_refused():
    assert message("--host", " ") == "--host must be an address, got ' '"


def test_null_list_in_a_file_is_an_empty_one(write):
    assert settings("--config", write("plugin: null\nmodel:\n")).plugin == []


def test_yaml_key_that_is_no_word_is_refused(write):
    assert message("--config", write("? [a, b]\n: 3")).endswith("a key must be a word (line 1)")


@pytest.mark.parametrize("old", OLD_NAMES)
def test_old_name_works_with_one_warning(old):
    new = OLD_NAMES[old]
    is_boolean = new.inverted
    value = {"kv_cache_memory": "1GiB", "api_workers": "3", "gpu_memory_utilization": "0.5"}
    value = value.get(new.new, "3" if new.new == "num_speculative_tokens" else "debug")
    if new.new == "otlp_traces_endpoint":
        value = "http://localhost:4318"
    arguments = [flag("no_" + old)] if is_boolean else [flag(old), value]
    reading = read(*arguments)
    assert list(reading.settings.changed()) == [new.new]
    assert reading.warnings == (f"{arguments[0]} is an old name: use {flag(new.new)}",)


def test_old_opposite_name_is_corrected_to_what_says_the_same(write):
    assert read("--enable-log-requests").warnings[0].endswith("use --no-disable-log-requests")
    assert read("--no-enable-log-requests").warnings[0].endswith("use --disable-log-requests")
    in_file = read("--config", write("enable_log_requests: false")).warnings[0]
    assert in_file.endswith("use disable_log_requests, which says the opposite")


def test_old_opposite_name_means_the_opposite(write):
    assert settings("--enable-log-requests").disable_log_requests is False
    assert settings("--no-enable-log-requests").disable_log_requests is True
    assert settings("--enable-log-requests=false").disable_log_requests is True
    assert settings(environ={"PLUGSERVE_ENABLE_LOG_REQUESTS": "0"}).disable_log_requests is True
    assert settings("--config", write("enable_log_requests: false")).disable_log_requests is True


# ---------------------------------------------------------------- file and environment


def test_command_line_wins_over_environment_over_file_over_default(write):
    file = write("max_num_seqs: 3\nport: 3\nblock_size: 32\nplugins:\n  sjf: {aging_tokens: 3, loud: true, words: [c]}")
    environ = {"PLUGSERVE_MAX_NUM_SEQS": "2", "PLUGSERVE_PORT": "2", "PLUGSERVE_PLUGINS__SJF__AGING_TOKENS": "2",
               "PLUGSERVE_PLUGINS__SJF__WORDS": "b,bb"}  # fmt: skip
    got = settings("--max-num-seqs", "1", "--sjf.aging-tokens", "1", "--config", file, environ=environ)
    assert (got.max_num_seqs, got.port, got.block_size, got.api_workers) == (1, 2, 32, 1)
    assert got.plugins == {"sjf": {"aging_tokens": 1, "loud": True, "words": ["b", "bb"]}}


@pytest.mark.parametrize("name", ["serve.yaml", "serve.yml"])
def test_yaml_file_is_read_with_hyphens_and_underscores(write, name):
    text = (
        "model: [a, b]\nmax-num-seqs: 4\nmax_model_len: 16k\nplugin: prefix-cache\nenforce_eager: yes\nrevision: null"
    )
    got = settings("--config", write(text, name))
    assert (got.model, got.max_num_seqs, got.max_model_len, got.plugin) == (["a", "b"], 4, 16384, ["prefix-cache"])
    assert got.enforce_eager is True
    assert got.revision is None


def test_toml_file_is_read(write):
    got = settings("--config", write("max_num_seqs = 4\n[plugins.sjf]\naging-tokens = 9\n", "serve.toml"))
    assert got.max_num_seqs == 4
    assert got.plugins == {"sjf": {"aging_tokens": 9}}


def test_empty_file_sets_nothing(write):
    assert settings("--config", write("# nothing\n")).changed() == {"config": "serve.yaml"}


def test_file_may_be_named_by_the_environment(write):
    assert settings(environ={"PLUGSERVE_CONFIG": write("port: 5")}).port == 5


def test_lists_in_the_environment_are_commas_or_json():
    assert settings(environ={"PLUGSERVE_MODEL": "a, b"}).model == ["a", "b"]
    assert settings(environ={"PLUGSERVE_MODEL": '["a,b"]'}).model == ["a,b"]


def test_empty_environment_variable_counts_as_not_set():
    assert settings(environ={"PLUGSERVE_PORT": "", "PLUGSERVE_THREADS": " "}) == Settings()


def test_other_environment_variables_are_left_alone():
    assert settings(environ={"PORT": "1", "MODEL": "x", "PLUGSERVE_TRACE_PLUGINS": "1"}) == Settings()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max_num_seq: 3", "unknown setting 'max_num_seq' in serve.yaml. Did you mean 'max_num_seqs'?"),
        ("max_num_seqs: 0", "max_num_seqs in serve.yaml must be a whole number of at least 1 (16k means 16384), got 0"),
        ("max_num_seqs: true",
         "max_num_seqs in serve.yaml must be a whole number of at least 1 (16k means 16384), got True"),
        ("port: null", "port in serve.yaml must be a port from 0 to 65535, got None"),
        ("max_num_seqs: 1\nmax-num-seqs: 2",
         "'max_num_seqs' is set twice in serve.yaml: as max_num_seqs in serve.yaml and as max-num-seqs"),
        ("config: other.yaml", "'config' in serve.yaml: a config file can't name another one"),
        ("- a", "serve.yaml must hold settings as 'key: value' lines, got list"),
        ("plugins: 5", "plugins in serve.yaml must be a table of tables, plugins.NAME.OPTION, got 5"),
        ("plugins: {sjf: {aging_token: 5}}",
         "unknown option 'aging_token' of plugin 'sjf' (plugins.sjf.aging_token in serve.yaml). "
         "Did you mean 'aging_tokens'?"),
        ("plugins: {sjf: {aging_tokens: x}}",
         "plugins.sjf.aging_tokens in serve.yaml (option of plugin 'sjf'): input should be a valid integer, "
         "unable to parse string as an integer, got 'x'"),
        ("plugins: {prefix_cache: {size: 5}}",
         "'plugins.prefix_cache.size' in serve.yaml: plugin 'prefix-cache' is installed but not active; activate it "
         "with --plugin prefix-cache, or by naming it in a slot (--scheduler, --attention, --runner)"),
    ],
)  # fmt: skip
def test_wrong_file_is_one_clear_line(write, text, expected):
    assert message("--config", write(text)) == expected


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("serve.yaml", "a: [", "serve.yaml is not valid YAML"),
        ("serve.yaml", "port: 1\nport: 2", "key 'port' stands twice (line 2)"),
        ("serve.toml", "a =", "serve.toml is not valid TOML"),
        ("serve.ini", "", "--config must be a .yaml, .yml or .toml file, got 'serve.ini'"),
    ],
)
def test_unreadable_file_says_why(write, name, text, expected):
    assert expected in message("--config", write(text, name))


def test_missing_file_says_where_it_was_looked_for(write, tmp_path):
    assert message("--config", "nope.yaml") == (f"--config nope.yaml: No such file or directory (looked in {tmp_path})")


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("PLUGSERVE_MAX_NUM_SEQ", "3",
         "unknown setting 'PLUGSERVE_MAX_NUM_SEQ' in the environment. Did you mean 'PLUGSERVE_MAX_NUM_SEQS'?"),
        ("PLUGSERVE_PORT", "x", "PLUGSERVE_PORT must be a port from 0 to 65535, got 'x'"),
        ("PLUGSERVE_PLUGINS__SJF__AGING_TOKEN", "3",
         "unknown option 'aging_token' of plugin 'sjf' (PLUGSERVE_PLUGINS__SJF__AGING_TOKEN in the environment). "
         "Did you mean 'aging_tokens'?"),
    ],
)  # fmt: skip
def test_wrong_variable_is_one_clear_line(variable, value, expected):
    assert message(environ={variable: value}) == expected


# ---------------------------------------------------------------- plugin options


def test_options_become_flags():
    got = settings(
        "--sjf.aging-tokens", "5", "--sjf.loud", "--sjf.words", "a", "--sjf.words", "b", "--sjf.table", '{"x": 1}'
    )
    assert got.plugin_options("sjf", SjfOptions) == SjfOptions(
        aging_tokens=5, loud=True, words=["a", "b"], table={"x": 1}
    )


def test_option_booleans_have_a_no():
    assert settings("--no-sjf.loud").plugins == {"sjf": {"loud": False}}


def test_whole_option_tables_can_stand_in_the_environment():
    assert settings(environ={"PLUGSERVE_PLUGINS": '{"sjf": {"aging_tokens": 5}}'}).plugins == {
        "sjf": {"aging_tokens": 5}
    }


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--sjf.aging-token", "unknown option 'aging_token' of plugin 'sjf' (--sjf.aging-token on the command line). "
         "Did you mean 'aging_tokens'?"),
        ("--fcfs.speed", "'--fcfs.speed' on the command line: plugin 'fcfs' has no options"),
        ("--prefix-cache.size", "'--prefix-cache.size' on the command line: plugin 'prefix-cache' is installed but not "
         "active; activate it with --plugin prefix-cache, or by naming it in a slot "
         "(--scheduler, --attention, --runner)"),
        ("--sjff.x", "'--sjff.x' on the command line: no installed plugin is named 'sjff'. Did you mean 'sjf'? "
         "`plugserve plugins` lists them"),
    ],
)  # fmt: skip
def test_unknown_option_says_what_is_known(argument, expected):
    assert message(argument, "3") == expected


def test_wrong_option_names_flag_and_plugin():
    assert message("--sjf.aging-tokens", "-1") == (
        "--sjf.aging-tokens (option of plugin 'sjf'): input should be greater than or equal to 0, got '-1'"
    )


# ---------------------------------------------------------------- what this version doesn't do


@pytest.mark.parametrize(
    "arguments",
    [
        ["--tensor-parallel-size", "2"],
        ["--pipeline-parallel-size", "2"],
        ["--distributed-executor-backend", "ray"],
        ["--worker-use-ray"],
        ["--cpu-offload-gb", "1"],
        ["--load-format", "dtensor"],
        ["--load-format", "sharded_state"],
    ],
)
def test_unsupported_setting_is_refused_in_one_line(arguments):
    assert message(*arguments).startswith(f"{' '.join(arguments)} is not supported: this version ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--max-lora-size", "16"],
        ["--trust-remote-code"],
    ],
)
def test_setting_without_effect_warns_once(arguments):
    (warning,) = read(*arguments).warnings
    assert warning.startswith(f"{' '.join(arguments)} has no effect: ")


CHAPTER = """
model: "Qwen/Qwen2.5-7B-Instruct"
tokenizer: null
revision: "main"
tokenizer_mode: auto
trust_remote_code: true
dtype: auto
download_dir: "/data/models"
load_format: auto
tensor_parallel_size: 1
pipeline_parallel_size: 1
worker_use_ray: false
distributed_executor_backend: null
max_model_len: 16384
gpu_memory_utilization: 0.92
swap_space: 4
cpu_offload_gb: 0
num_gpu_blocks_override: null
max_num_seqs: 128
max_num_batched_tokens: null
scheduler_delay_factor: 0.1
enable_lora: false
max_loras: 1
max_lora_rank: 16
max_lora_size: 64
enable_prefix_caching: true
enforce_eager: false
speculative_model: null
num_speculative_tokens: 5
host: "0.0.0.0"
port: 8000
ssl_keyfile: null
ssl_certfile: null
disable_log_requests: true
"""


def test_a_whole_vllm_file_is_taken_and_every_key_without_effect_is_named(write):
    reading = read("--config", write(CHAPTER))
    assert {
        "model": ["Qwen/Qwen2.5-7B-Instruct"],
        "max_model_len": 16384,
        "gpu_memory_utilization": 0.92,
        "max_num_seqs": 128,
        "enable_prefix_caching": True,
        "disable_log_requests": True,
    }.items() <= reading.settings.changed().items()
    warned = sorted(line.split()[0] for line in reading.warnings)
    assert warned == ["max_lora_size", "trust_remote_code"]


def test_defaults_of_unsupported_settings_can_be_given():
    assert read("--tensor-parallel-size", "1", "--swap-space", "0", "--no-enable-lora").warnings == ()


SQL = {"name": "sql", "path": "./sql"}


@pytest.mark.parametrize(
    ("arguments", "modules"),
    [
        (["--lora-modules", "sql=./sql"], [SQL]),
        (["--lora-modules", "sql=./sql", "chat=/a=b", "--port", "1"], [SQL, {"name": "chat", "path": "/a=b"}]),
        (["--lora-modules", "sql=./sql", "--lora-modules", "b=c"], [SQL, {"name": "b", "path": "c"}]),
        (["--lora-modules=sql=./sql"], [SQL]),
        (
            ["--lora-modules", '{"name": "sql", "path": "./sql", "base_model_name": "m"}'],
            [SQL | {"base_model_name": "m"}],
        ),
    ],
)
def test_lora_modules_take_many_words(arguments, modules):
    assert read("--enable-lora", *arguments).settings.lora_modules == modules


def test_lora_modules_stand_in_a_file_as_texts_or_tables(write):
    for text in ("lora_modules: [sql=./sql]", "lora_modules: {sql: ./sql}", "lora_modules: [{name: sql, path: ./sql}]"):
        assert read("--config", write(text)).settings.lora_modules == [SQL]


@pytest.mark.parametrize(
    "word", ["sql", "=./sql", "sql=", '{"name": "sql"}', '{"name": ', "[]", '{"name":"a","x":"b"}']
)
def test_malformed_lora_module_is_refused(word):
    assert "--lora-modules must be NAME=FOLDER" in message("--lora-modules", "good=./good", word)


def test_lora_names_and_folder_are_checked():
    assert "names 'a' twice" in message("--lora-modules", "a=b", "a=c")
    assert message("--lora-dir", "/nowhere/at/all") == "--lora-dir /nowhere/at/all: no such folder"


def test_tls_needs_key_and_certificate(tmp_path):
    key = tmp_path / "key.pem"
    key.touch()
    assert "needs --ssl-certfile as well" in message("--ssl-keyfile", str(key))
    assert "no such file" in message("--ssl-keyfile", str(key), "--ssl-certfile", str(tmp_path / "cert.pem"))
    got = settings("--ssl-keyfile", str(key), "--ssl-certfile", str(key))
    assert got.ssl_keyfile == got.ssl_certfile == str(key)


def test_served_names_must_match_several_models():
    assert settings("a", "--served-model-name", "x", "--served-model-name", "y").served_model_name == ["x", "y"]
    assert message("a", "--model", "b", "--served-model-name", "x") == (
        "--served-model-name names 1 of 2 models; give one for each model, or none"
    )


# ---------------------------------------------------------------- phase 1, child processes, start-up lines


def test_selection_overlooks_what_is_not_selection(write):
    file = write("scheduler: sjf\nmax_num_seqs: nonsense\nunknown: 1\n")
    arguments = ["--sjf.aging-tokens", "3", "--unknown", "--plugin", "a", "--no-plugin", "b", "--config", file]
    got = read_selection(arguments, {"PLUGSERVE_RUNNER": "native", "PLUGSERVE_NONSENSE": "1"})
    assert got == Selection(plugin=("a",), no_plugin=("b",), scheduler="sjf", runner="native")


def test_selection_is_the_same_in_both_phases():
    arguments = ["--enable-prefix-caching", "--plugin", "./one.py", "--scheduling-policy", "sjf"]
    got = settings(*arguments)
    assert got.selection() == read_selection(arguments, {})
    assert got.selection().plugin == (str(Path("one.py").absolute()), "prefix-cache")


def test_settings_survive_json_without_reading_anything_else(monkeypatch):
    arguments = [
        "m",
        "--kv-cache-memory",
        "1GiB",
        "--sjf.aging-tokens",
        "5",
        "--sjf.api-key",
        "hidden",
        "--plugin",
        "x",
    ]
    before = settings(*arguments)
    monkeypatch.setenv("PLUGSERVE_PORT", "1")
    monkeypatch.setenv("PORT", "1")
    after = Settings.model_validate_json(before.model_dump_json())
    assert after == before
    assert after.plugin_options("sjf", SjfOptions).api_key.get_secret_value() == "hidden"


def test_changed_names_what_differs_and_masks_secrets():
    got = settings("--port", "1", "--max-num-seqs", "256", "--sjf.aging-tokens", "5", "--sjf.api-key", "hidden")
    assert got.changed() == {"port": 1, "sjf.aging_tokens": 5, "sjf.api_key": "***"}


# ---------------------------------------------------------------- help and docs


def test_help_shows_every_setting_and_option():
    text = help_text("usage: plugserve", {"sjf": SjfOptions})
    for setting in setting_facts():
        assert re.search(rf"^  {flag(setting)}\b", text, re.MULTILINE), setting
    assert "Options of plugin sjf:\n  --sjf.aging-tokens N" in text


def test_docs_hold_the_generated_table():
    assert settings_table() in DOCS.read_text()


def test_module_writes_the_table_into_a_document(tmp_path):
    document = tmp_path / "configuration.md"
    document.write_text("before\n\n## Settings\n\nan old table\n")
    command = [sys.executable, "-m", "plugserve.core.settings.settings_docs", "--write", str(document)]
    subprocess.run(command, check=True)
    assert document.read_text() == f"before\n\n## Settings\n\n{settings_table()}"


def test_module_prints_the_table():
    printed = subprocess.run(
        [sys.executable, "-m", "plugserve.core.settings.settings_docs"], capture_output=True, text=True, check=True
    ).stdout
    assert printed == settings_table()


def test_two_models_cannot_be_served_under_one_name():
    names = ["--served-model-name", "x", "--served-model-name", "x"]
    assert message("--model", "a", "--model", "b", *names) == (
        "--served-model-name x names two models; give each its own name"
    )
    assert settings("--model", "a", *names).served_model_name == ["x", "x"]


def test_served_name_is_not_empty():
    assert message("--served-model-name", " ") == "--served-model-name must be a name, got ' '"


# ---------------------------------------------------------------- keys and limits


def test_api_keys_are_never_shown():
    found = settings("--api-key", "first-key", "--api-key", "second-key")
    assert found.api_key == ["first-key", "second-key"]
    assert found.changed() == {"api_key": "***"}
    assert settings(environ={"PLUGSERVE_API_KEY": "a,b"}).api_key == ["a", "b"]


@pytest.mark.parametrize("arguments", [["--api-key", ""], ["--api-key", "secret-one", "--api-key", " "]])
def test_empty_api_key_is_refused_without_showing_the_others(arguments):
    told = message(*arguments)
    assert "--api-key" in told
    assert "secret" not in told


@pytest.mark.parametrize(
    ("arguments", "setting", "value"),
    [
        (["--allowed-origins", '["*"]'], "allowed_origins", ["*"]),
        (
            ["--allowed-origins", "https://a.b", "--allowed-origins", '["c", "d"]'],
            "allowed_origins",
            ["https://a.b", "c", "d"],
        ),
        (["--max-num-queued-requests", "0"], "max_num_queued_requests", 0),
        (["--request-timeout", "2.5"], "request_timeout", 2.5),
        (["--max-body-size", "1MiB"], "max_body_size", 1 << 20),
        (["--max-prompt-tokens", "2k"], "max_prompt_tokens", 2048),
        (["--trust-request-chat-template"], "trust_request_chat_template", True),
        (["--allow-special-tokens-in-text"], "allow_special_tokens_in_text", True),
    ],
)
def test_limits_are_read(arguments, setting, value):
    assert getattr(settings(*arguments), setting) == value


@pytest.mark.parametrize(
    "arguments",
    [
        ["--request-timeout", "0"],
        ["--request-timeout", "inf"],
        ["--max-num-queued-requests", "-1"],
        ["--max-body-size", "0"],
        ["--allowed-origins", "[x"],
        ["--allow-credentials"],
        ["--allow-credentials", "--allowed-origins", "*"],
    ],
)
def test_limits_that_make_no_sense_are_refused(arguments):
    assert arguments[0] in message(*arguments)
