"""Settings that are refused or have no effect, the first phase, child processes, help and docs, keys and limits."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from plugserve.core.errors import ConfigError
from plugserve.core.settings.selection import Selection
from plugserve.core.settings.setting_groups import GROUPS
from plugserve.core.settings.setting_names import flag
from plugserve.core.settings.settings import Settings, setting_facts
from plugserve.core.settings.settings_docs import settings_table
from plugserve.core.settings.settings_help import MOST_USED, help_on, help_page
from plugserve.core.settings.settings_reader import read_selection
from plugserve.core.settings.vllm_names.vllm_docs import vllm_tables
from tests.chapter_settings import CHAPTER
from tests.core.settings.reading import SjfOptions, message, read, settings

DOCS = Path(__file__).parents[3] / "docs" / "configuration.md"


# ---------------------------------------------------------------- what this version doesn't do


@pytest.mark.parametrize(
    "other", [["--cpu-offload-gb", "2"], ["--speculative-model", "a/b"]], ids=lambda other: other[0]
)
def test_what_a_pipeline_does_not_do_is_refused_in_one_line(other):
    refusal = message("--pipeline-parallel-size", "2", *other)
    assert refusal == f"{' '.join(other)} can't go with --pipeline-parallel-size 2: leave one of the two out"


@pytest.mark.parametrize(
    ("arguments", "executor"),
    [
        ([], None),
        (["-tp", "2"], "mp"),
        (["-tp", "2", "--distributed-executor-backend", "uni"], "mp"),
        (["--distributed-executor-backend", "ray"], "ray"),
        (["--distributed-executor-backend", "mine/pipes"], "mine/pipes"),
        (["--worker-use-ray"], "ray"),
    ],
)
def test_ranks_are_started_by_mp_unless_another_executor_is_named(arguments, executor):
    assert read(*arguments).settings.selection().executor == executor


def test_the_old_name_of_ray_warns_and_contradicts_another_executor():
    assert read("--worker-use-ray").warnings == ("--worker-use-ray is taken as --distributed-executor-backend ray",)
    assert "contradict each other" in message("--worker-use-ray", "--distributed-executor-backend", "mp")
    assert "is not supported: ranks are" in message("--distributed-executor-backend", "external_launcher")


@pytest.mark.parametrize("mode", ["mistral", "custom"])
def test_a_tokenizer_that_is_not_read_is_refused_with_a_way_out(mode):
    assert re.match(f"--tokenizer-mode {mode} is not supported: .* --tokenizer", message("--tokenizer-mode", mode))


@pytest.mark.parametrize("mode", ["auto", "hf"])
def test_the_fast_tokenizer_is_taken_without_a_word(mode):
    assert not read("--tokenizer-mode", mode).warnings


@pytest.mark.parametrize(
    "arguments",
    [
        ["--max-lora-size", "16"],
        ["--trust-remote-code"],
        ["--tokenizer-mode", "slow"],
    ],
)
def test_setting_without_effect_warns_once(arguments):
    (warning,) = read(*arguments).warnings
    assert warning.startswith(f"{' '.join(arguments)} has no effect: ")


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


def test_a_tokenizer_for_several_models_is_said():
    (warning,) = read("--model", "a", "--model", "b", "--tokenizer", "t").warnings
    assert warning.startswith("--tokenizer t is the tokenizer of all 2 models; models: in a --config file sets one")
    assert read("--model", "a", "--tokenizer", "t").warnings == ()


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


def test_changed_masks_passwords_in_urls():
    got = settings("--otlp-traces-endpoint", "https://ada:hidden@host/x", "--model", "http://a/b@c")
    assert got.changed() == {"otlp_traces_endpoint": "https://***@host/x", "model": ["http://a/b@c"]}


def test_changed_names_what_differs_and_masks_secrets():
    got = settings("--port", "1", "--max-num-seqs", "256", "--sjf.aging-tokens", "5", "--sjf.api-key", "hidden")
    assert got.changed() == {"port": 1, "sjf.aging_tokens": 5, "sjf.api_key": "***"}


# ---------------------------------------------------------------- help and docs


def test_help_on_all_shows_every_setting_and_option():
    text = help_on("all", {"sjf": SjfOptions})
    for setting in setting_facts():
        assert re.search(rf"^  {flag(setting)}\b", text, re.MULTILINE), setting
    assert "Options of plugin sjf:\n  --sjf.aging-tokens N" in text


def test_help_is_one_page():
    text = help_page("usage: plugserve\n" + 10 * "a command\n", {})
    assert len(text.splitlines()) <= 62
    assert max(map(len, text.splitlines())) <= 110
    shown = [line.split()[0] for line in text.splitlines() if line.startswith("  --") and "--help" not in line]
    assert shown == [flag(name) for name in MOST_USED]


@pytest.mark.parametrize("group", GROUPS)
def test_help_on_a_group_shows_its_settings_alone(group):
    words = [group, *re.findall(r"\w+", group.lower())]
    text = help_on(words[0], {})
    shown = [name for name in setting_facts() if re.search(rf"^  {flag(name)}\b(?!-)", text, re.MULTILINE)]
    assert shown == [name for name, facts in setting_facts().items() if facts.group == group]
    assert all(help_on(word, {}) == text for word in words)


def test_help_on_a_plugin_or_a_setting():
    assert help_on("sjf", {"sjf": SjfOptions}).startswith("Options of plugin sjf:\n  --sjf.aging-tokens N")
    for word in ("max-num-seqs", "--max-num-seqs", "max_num_seqs"):
        text = help_on(word, {})
        assert "takes a whole number of at least 1 (16k means 16384); default 256" in text
        assert "PLUGSERVE_MAX_NUM_SEQS" in text


def test_help_on_an_unknown_topic_names_the_topics():
    with pytest.raises(ConfigError, match=r"--help=serverr: no such topic\. Did you mean 'server'\? Topics: model"):
        help_on("serverr", {})


def test_docs_hold_the_generated_table():
    assert settings_table() in DOCS.read_text()
    assert vllm_tables() in (DOCS.parent / "vllm.md").read_text()


@pytest.mark.parametrize(
    ("module", "heading", "table"),
    [("settings_docs", "## Settings", settings_table()), ("vllm_names.vllm_docs", "## The tables", vllm_tables())],
)
def test_module_writes_the_table_into_a_document(tmp_path, module, heading, table):
    document = tmp_path / "page.md"
    document.write_text(f"before\n\n{heading}\n\nan old table\n")
    command = [sys.executable, "-m", f"plugserve.core.settings.{module}", "--write", str(document)]
    subprocess.run(command, check=True)
    assert document.read_text() == f"before\n\n{heading}\n\n{table}"


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


@pytest.mark.parametrize("endpoint", ["ftp://h:1", "http://", "http:// h", "grpc:///v1", "://h", "/v1/traces"])
def test_address_of_a_collector_that_can_not_be_one_is_refused(endpoint):
    with pytest.raises(ConfigError, match="must be an URL such as http://localhost:4318/v1/traces or grpc://"):
        settings("--otlp-traces-endpoint", endpoint)


@pytest.mark.parametrize("endpoint", ["h:4317", "grpc://[::1]:4317", "https://h/own", "http://h:4318/"])
def test_address_of_a_collector(endpoint):
    assert settings("--otlp-traces-endpoint", endpoint).otlp_traces_endpoint == endpoint


def test_detailed_traces_are_lists_with_commas_or_flags():
    assert settings("--collect-detailed-traces", "model,worker").collect_detailed_traces == ["model", "worker"]
    with pytest.raises(ConfigError, match="--collect-detailed-traces"):
        settings("--collect-detailed-traces", "every")
