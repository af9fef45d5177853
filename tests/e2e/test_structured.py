"""Structured output of the real model."""

import json

SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "is_capital": {"type": "boolean"}},
    "required": ["city", "is_capital"],
    "additionalProperties": False,
}


def chat(server, schema):
    return server.post(
        "/v1/chat/completions",
        messages=[{"role": "user", "content": "Name the capital of France. Answer in JSON."}],
        max_tokens=60,
        temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
    )


def test_schema_binds_the_answer(server):
    choice = chat(server, SCHEMA).json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    answer = json.loads(choice["message"]["content"])
    assert answer["city"] in ("Paris", "Rome")
    assert isinstance(answer["is_capital"], bool)
    assert set(answer) == {"city", "is_capital"}


def test_bad_schema_is_refused_and_no_process_restarts(server):
    chat(server, SCHEMA)
    pids = {child.pid for child in server.children()}
    response = chat(server, {"type": "no-such-type"})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "response_format"
    assert {child.pid for child in server.children()} == pids
    assert chat(server, SCHEMA).status_code == 200
