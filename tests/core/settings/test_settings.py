"""Settings: one declaration, three places, one precedence, clear refusals."""

from pathlib import Path

import pytest

from plugserve.core.settings.old_names import OLD_NAMES
from plugserve.core.settings.setting_names import flag
from plugserve.core.settings.settings import Settings
from tests.core.settings.reading import SjfOptions, message, read, settings

DOCS = Path(__file__).parents[3] / "docs" / "configuration.md"


VALUES = {
    "kv_cache_memory": "1GiB",
    "gpu_memory_utilization": "0.5",
    "log_level": "debug",
    "chat_template_content_format": "string",
    "otlp_traces_endpoint": "http://localhost:4318",
    "tensor_parallel_size": "1",
    "pipeline_parallel_size": "1",
}
"""Values for settings that take no 3."""


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
        (["--goodput", "ttft:200", "e2el:5e3"], "goodput", ["ttft:200", "e2el:5000"]),
        (["--goodput", "ttft:200,tpot:50"], "goodput", ["ttft:200", "tpot:50"]),
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
        (["--goodput", "ttft:0"],
         "--goodput must be pairs such as ttft:200 e2el:5000, of ttft, tpot and e2el, got ['ttft:0']"),
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


@pytest.mark.parametrize(("spelt", "near"), [("--jsno", "--json"), ("--versio", "--version")])
def test_unknown_flag_names_the_nearest_one(spelt, near):
    assert message(spelt) == f"unknown setting {spelt!r} on the command line. Did you mean {near!r}?"


def test_flag_of_another_command_says_whose_it_is():
    assert message("--json") == "unknown setting '--json' on the command line. --json belongs to `plugserve plugins`"


@pytest.mark.parametrize("text", ["inf", "nan", "1e999"])
def test_no_number_of_seconds_is_endless(text):
    """Settings travel to child processes as JSON, which has no infinity."""
    assert message("--shutdown-timeout", text) == f"--shutdown-timeout must be a number of at least 0, got {text!r}"


@pytest.mark.parametrize("text", ["itl:5", "ttft", "ttft:inf"])
def test_objective_needs_a_known_name_and_milliseconds(text):
    assert message("--goodput", text).endswith(f"of ttft, tpot and e2el, got [{text!r}]")


def test_empty_host_is_refused():
    assert message("--host", " ") == "--host must be an address, got ' '"


def test_yaml_key_that_is_no_word_is_refused(write):
    assert message("--config", write("? [a, b]\n: 3")).endswith("a key must be a word (line 1)")


@pytest.mark.parametrize("old", OLD_NAMES)
def test_other_name_works_with_one_warning(old):
    new = OLD_NAMES[old]
    value = VALUES.get(new.new, "3")
    arguments = [flag("no_" + old)] if new.inverted else [flag(old), value]
    reading = read(*arguments)
    assert new.new in reading.given
    assert reading.warnings == (f"{arguments[0]} is taken as {flag(new.new)}",)


def test_old_opposite_name_is_corrected_to_what_says_the_same(write):
    assert read("--enable-log-requests").warnings[0].endswith("is taken as --no-disable-log-requests")
    assert read("--no-enable-log-requests").warnings[0].endswith("is taken as --disable-log-requests")
    in_file = read("--config", write("enable_log_requests: false")).warnings[0]
    assert in_file.endswith("is taken as disable_log_requests, which means the opposite")


def test_old_opposite_name_means_the_opposite(write):
    assert settings("--enable-log-requests").disable_log_requests is False
    assert settings("--no-enable-log-requests").disable_log_requests is True
    assert settings("--enable-log-requests=false").disable_log_requests is True
    assert settings(environ={"PLUGSERVE_ENABLE_LOG_REQUESTS": "0"}).disable_log_requests is True
    assert settings("--config", write("enable_log_requests: false")).disable_log_requests is True


@pytest.mark.parametrize(
    "arguments",
    [
        ["--models", '{"my-model": {"model": "some/folder"}}', "--models.other.model", "b"],
        ["--models.my-model.model", "some/folder", "--models.other.model=b"],
    ],
)
def test_table_may_be_given_key_by_key(arguments):
    assert settings(*arguments).models == {"my-model": {"model": "some/folder"}, "other": {"model": "b"}}


def test_keys_of_a_table_need_values_and_a_table():
    assert message("--models.a.b") == "--models.a.b needs a value"
    assert message("--models.a", "x", "--models.a.b", "y") == "--models: a is 'x' already, and has no keys"
    assert message("--models", "[1]", "--models.a", "y") == "--models must be a JSON object, got '[1]'"


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


@pytest.mark.parametrize("service", ["PLUGSERVE", "PLUGSERVE_ROUTER"])
def test_the_variables_of_a_kubernetes_service_are_no_settings(service):
    links = {
        f"{service}_SERVICE_HOST": "10.0.0.1",
        f"{service}_SERVICE_PORT": "8000",
        f"{service}_SERVICE_PORT_HTTP": "8000",
        f"{service}_PORT": "tcp://10.0.0.1:8000",
        f"{service}_PORT_8000_TCP": "tcp://10.0.0.1:8000",
        f"{service}_PORT_8000_TCP_PROTO": "tcp",
        f"{service}_PORT_8000_TCP_PORT": "8000",
        f"{service}_PORT_8000_TCP_ADDR": "10.0.0.1",
    }
    assert settings(environ=links) == Settings()
    given = settings(environ=links | {"PLUGSERVE_PORT": "9000", "PLUGSERVE_MAX_NUM_SEQS": "3"})
    assert (given.port, given.max_num_seqs) == (9000, 3)


def test_other_environment_variables_are_left_alone():
    assert settings(environ={"PORT": "1", "MODEL": "x", "PLUGSERVE_TRACE_PLUGINS": "1"}) == Settings()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max_num_seq: 3", "unknown setting 'max_num_seq' in serve.yaml. Did you mean 'max_num_seqs'?"),
        ("max_num_seqs: 0", "max_num_seqs in serve.yaml must be a whole number of at least 1 (16k means 16384), got 0"),
        ("max_num_seqs: true",
         "max_num_seqs in serve.yaml must be a whole number of at least 1 (16k means 16384), got True"),
        ("api_key: ''", "api_key in serve.yaml must be a text that is not empty, got a value that is not shown"),
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
        ("serve.yaml", "port: 1\nport: 2", "key 'port' is given twice (line 2)"),
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
