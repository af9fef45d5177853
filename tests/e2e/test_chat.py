"""`plugserve chat` with a server of its own."""

import os
import subprocess
import sys

import psutil

from plugserve.cli import main


def test_chat_starts_a_server_answers_and_stops_it(tmp_path):
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PLUGSERVE_")}
    environ |= {"PLUGSERVE_SERVED_MODEL_NAME": "mine", "CHAT_TEST": str(tmp_path)}
    words = ["--set", "temperature=0", "--set", "max_tokens=8", "--max-model-len", "512"]
    found = subprocess.run(
        [sys.executable, "-m", "plugserve", "chat", *words],
        input="Name the capital of France.", capture_output=True, text=True, env=environ,
    )  # fmt: skip
    assert (found.stdout, found.stderr, found.returncode) == ("The capital of France is Paris.\n", "", 0)
    assert not [one for one in psutil.process_iter() if _environ(one).get("CHAT_TEST") == str(tmp_path)]


def _environ(process):
    try:
        return process.environ()
    except psutil.Error:
        return {}


def test_the_servers_own_error_is_the_chats(monkeypatch, capsys, tmp_path):
    (tmp_path / "in").write_text("hello")
    with open(tmp_path / "in") as given:
        monkeypatch.setattr("sys.stdin", given)
        assert main(["chat", "--model", "/no/such/model"]) == 2
    error = capsys.readouterr().err
    assert "/no/such/model" in error
    assert error.count("\n") == 1
