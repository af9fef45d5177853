"""The scripted runner, and the tables of the suites' results."""

import json

import pytest

from benchmarks.clients.__main__ import HERE, print_table, server_args
from benchmarks.clients.suites import SUITES, Case
from tests.e2e.live_server import LiveServer

CITY = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
SCRIPT = [
    {"when": "city of France", "say": ["Paris is one.", '{"town": "Paris"}', '{"city": "Rome"}']},
    {"when": "hopeless", "say": "no JSON"},
    {"when": "", "say": "Hello there, dear friend!"},
]


@pytest.fixture(scope="module")
def scripted(smollm2_gguf, tmp_path_factory):
    script = tmp_path_factory.mktemp("script") / "script.json"
    script.write_text(json.dumps(SCRIPT))
    args = ["--plugin", HERE / "scripted.py", "--runner", "scripted", "--scripted.script", script]
    with LiveServer(*args) as live:
        yield live


def ask(server, text, **fields):
    return server.post("/v1/chat/completions", messages=[{"role": "user", "content": text}], **fields)


def bound(server, text):
    return ask(server, text, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": CITY}})


def test_script_answers_and_ends(scripted):
    choice = ask(scripted, "Name a city of France.").json()["choices"][0]
    assert choice["message"]["content"] == "Paris is one."
    assert choice["finish_reason"] == "stop"
    assert ask(scripted, "Good morning").json()["choices"][0]["message"]["content"] == "Hello there, dear friend!"


def test_answer_is_the_first_that_the_grammar_allows(scripted):
    assert bound(scripted, "Name a city of France.").json()["choices"][0]["message"]["content"] == '{"city": "Rome"}'


def test_script_without_a_fitting_answer_fails_the_request(scripted):
    response = bound(scripted, "hopeless")
    assert response.status_code == 500
    assert "fits the request's grammar" in response.json()["error"]["message"]


def test_logprobs_and_vectors_are_there_for_clients_that_ask(scripted):
    answer = ask(scripted, "Good morning", logprobs=True, top_logprobs=2, max_tokens=3).json()
    assert [len(entry["top_logprobs"]) for entry in answer["choices"][0]["logprobs"]["content"]] == [2, 2, 2]
    vectors = scripted.post("/v1/embeddings", input=["a", "b"]).json()["data"]
    assert vectors[0]["embedding"] != vectors[1]["embedding"]


def test_missing_script_stops_the_start(smollm2_gguf):
    live = LiveServer("--plugin", HERE / "scripted.py", "--runner", "scripted")
    assert live.process.wait(60) == 2
    live._reader.join(5)
    assert "--runner scripted needs --scripted.script FILE" in live.log


def test_table_succeeds_if_each_case_passed_on_one_engine(capsys):
    failed, passed = Case("s", "a", "failed", "it | said no"), Case("s", "a", "passed")
    assert print_table({"model": [failed], "scripted": [passed]})
    assert "| s | a | failed | passed | it \\| said no |" in capsys.readouterr().out
    assert not print_table({"model": [failed], "scripted": [failed]})
    assert not print_table({"model": [failed]})


def test_every_suite_starts_its_server_with_what_it_needs():
    args = server_args("scripted", SUITES["schemathesis"])
    assert args[args.index("--max-model-len") + 1] == "256"
    assert args[args.index("--runner") + 1] == "scripted"
