"""`plugserve batch`, with a model that answers from a script in its process, and through a server."""

import collections
import json
import signal
import subprocess
import sys
import time

import pytest

from plugserve import cli
from tests.e2e.live_server import LiveServer
from tests.offline.conftest import SCRIPTED

NUM_LINES = 500


def chat(custom_id, content="the capital of France"):
    body = {"messages": [{"role": "user", "content": content}], "temperature": 0}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def lines_with_faults():
    """500 lines, ten of them bad."""
    lines = [json.dumps(chat(f"r{number}")) for number in range(NUM_LINES)]
    lines[10], lines[60] = "{not json", json.dumps({**chat("r60"), "url": "/v1/nothing"})
    lines[110], lines[160] = json.dumps(chat("r0")), json.dumps({**chat("r160"), "method": "GET"})
    lines[210] = json.dumps({**chat("r210"), "body": {"messages": []}})
    for number in (260, 310, 360, 410, 460):
        lines[number] = json.dumps({**chat(f"r{number}"), "body": {**chat("")["body"], "temperature": 9}})
    return lines


@pytest.fixture
def start(tmp_path, scripted):
    """start(*words) -> the running command; the model takes step_s a step."""
    script = scripted()["plugins"]["scripted"]["script"]
    model = ["--plugin", str(SCRIPTED), "--runner", "scripted", "--scripted.script", script]

    def run(*words, step_s=0.0):
        own = [*model, "--scripted.step-s", str(step_s), "--max-num-seqs", "8"]
        command = [sys.executable, "-m", "plugserve", "batch", *map(str, words), *own]
        return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    return run


def results_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_complete(results):
    """Every line of lines_with_faults has its one result."""
    kinds = collections.Counter((one["response"] or {}).get("status_code") for one in results)
    assert kinds == {200: NUM_LINES - 10, 400: 6, None: 4}
    assert len({one["id"] for one in results}) == NUM_LINES
    answers = [one for one in results if one["response"] and one["response"]["status_code"] == 200]
    assert len({one["custom_id"] for one in answers}) == NUM_LINES - 10
    contents = {one["response"]["body"]["choices"][0]["message"]["content"] for one in answers}
    assert contents == {"Paris, of course. END It is large."}


def test_500_lines_survive_a_kill_and_end_complete(tmp_path, start):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(lines_with_faults()))
    first = start(source, target, step_s=0.01)
    while not target.exists() or target.read_bytes().count(b"\n") < 50:
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    num_before = target.read_bytes().count(b"\n")
    assert num_before < NUM_LINES
    with target.open("ab") as file:
        file.write(b'{"id": "batch_req_0')  # what a kill within a write leaves
    second = start(source, target)
    _, shown = second.communicate(timeout=60)
    assert second.returncode == 0, shown
    assert_complete(results_of(target))
    assert "500 lines: 490 answered, 10 with an error in their result (4 of them can't be read as a request)" in shown
    assert f"{num_before} were there before" in shown


def test_an_interrupt_ends_the_run_and_says_how_to_go_on(tmp_path, start):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(lines_with_faults()))
    command = start(source, target, step_s=0.02)
    while not target.exists() or not target.read_bytes().count(b"\n"):
        assert command.poll() is None, command.stderr.read()
        time.sleep(0.01)
    command.send_signal(signal.SIGINT)
    _, shown = command.communicate(timeout=60)
    assert command.returncode == 130
    assert shown.splitlines()[-1] == "interrupted; the same command goes on from here"
    assert all(one["id"] for one in results_of(target))
    assert len(results_of(target)) < NUM_LINES


def test_a_server_answers_with_its_key(tmp_path, scripted, capsys):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(lines_with_faults()))
    script = scripted()["plugins"]["scripted"]["script"]
    model = ["--plugin", SCRIPTED, "--runner", "scripted", "--scripted.script", script]
    with LiveServer(*model, "--api-key", "secret") as live:
        assert cli.main(["batch", str(source), str(tmp_path / "refused.jsonl"), "--url", live.url]) == 0
        statuses = {(one["response"] or {}).get("status_code") for one in results_of(tmp_path / "refused.jsonl")}
        assert statuses == {401, None}
        code = cli.main(["batch", str(source), str(target), "--url", live.url + "/v1", "--api-key", "secret"])
        assert code == 0, capsys.readouterr().err
        assert_complete(results_of(target))
        source.write_text(source.read_text().replace("capital of France", "capital", 1))
        assert cli.main(["batch", str(source), str(target), "--url", live.url, "--api-key", "secret"]) == 0
        assert "1 answered line has changed and is answered anew" in capsys.readouterr().err


def test_a_server_that_is_gone_ends_the_run_with_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("plugserve.offline.http_answers._FIRST_PAUSE_S", 0.001)
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps(chat("a")))
    assert cli.main(["batch", str(source), str(target), "--url", "http://127.0.0.1:9"]) == 1
    shown = capsys.readouterr().err
    assert "plugserve: error: http://127.0.0.1:9 can't be reached: ConnectionRefusedError" in shown
    assert "The same command goes on from here." in shown
    assert target.read_bytes() == b""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["in.jsonl"], "batch needs two files"),
        (["no.jsonl", "out.jsonl"], "no.jsonl can't be read: No such file"),
        (["in.jsonl", "in.jsonl"], "can't replace it"),
        (
            ["in.jsonl", "out.jsonl", "--concurrency", "0"],
            "--concurrency must be a whole number from 1 to 4096, got '0'",
        ),
        (["in.jsonl", "out.jsonl", "--url", "ftp://x"], "--url must be a server's address"),
        (["in.jsonl", "out.jsonl", "--url", "x", "--dtype", "float32"], "--dtype has no effect with --url"),
        (["in.jsonl", "out.jsonl", "--url"], "--url needs a value"),
    ],
)
def test_a_wrong_command_is_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_text(json.dumps(chat("a")))
    assert cli.main(["batch", *words]) == 2
    assert message in capsys.readouterr().err
