"""The last lines of a start: an address, and a command that works when it is pasted into a shell."""

import json
import logging
import shlex
import subprocess

import pytest

from plugserve.server.supervisor.ready_lines import ServerAddress, announce_ready, warn_of_open_server
from tests.core.settings.reading import read


def words_of(address, model="m", example="chat"):
    """The command as a shell splits it, with a key in the environment."""
    command = address.curl(model, example).replace("curl", "printf '%s\\0'", 1)
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, env={"PLUGSERVE_API_KEY": "k 1"}, check=True
    )
    return done.stdout.split("\0")[:-1]


def test_every_address_is_reached_on_this_machine():
    assert words_of(ServerAddress("0.0.0.0", 8000))[0] == "http://127.0.0.1:8000/v1/chat/completions"
    assert words_of(ServerAddress("::", 8000))[0] == "http://[::1]:8000/v1/chat/completions"
    assert words_of(ServerAddress("10.0.0.5", 80, root_path="/llm"))[0] == "http://10.0.0.5:80/llm/v1/chat/completions"


def test_https_a_key_and_a_socket_are_in_the_command():
    assert words_of(ServerAddress("127.0.0.1", 1, is_https=True))[:2] == [
        "-k",
        "https://127.0.0.1:1/v1/chat/completions",
    ]
    assert "Authorization: Bearer k 1" in words_of(ServerAddress("127.0.0.1", 1, needs_key=True))
    words = words_of(ServerAddress("localhost", 0, "/tmp/a b.sock"))
    assert words[:3] == ["--unix-socket", "/tmp/a b.sock", "http://localhost/v1/chat/completions"]


@pytest.mark.parametrize("name", ["it's", 'a "quoted" $HOME `name`', "ü"])
def test_any_models_name_survives_the_shell(name):
    assert json.loads(words_of(ServerAddress("127.0.0.1", 1), name)[-1])["model"] == name


def test_the_request_is_one_that_the_model_answers():
    address = ServerAddress("127.0.0.1", 1)
    assert "prompt" in json.loads(words_of(address, example="completions")[-1])
    assert "input" in json.loads(words_of(address, example="embeddings")[-1])
    assert words_of(address, example="models") == ["http://127.0.0.1:1/v1/models"]


def test_the_address_is_that_of_the_settings_and_the_socket():
    address = ServerAddress.of(read("--root-path", "x").settings, ("::1", 9, 0, 0), needs_key=False)
    assert address.url == "http://[::1]:9/x"
    address = ServerAddress.of(read("--uds", "/tmp/s").settings, "/tmp/s", needs_key=False)
    assert address.url == "unix:/tmp/s"


@pytest.mark.parametrize(
    ("address", "is_warned"),
    [
        (ServerAddress("0.0.0.0", 1), True),
        (ServerAddress("::", 1), True),
        (ServerAddress("10.1.2.3", 1), True),
        (ServerAddress("0.0.0.0", 1, needs_key=True), False),
        (ServerAddress("127.0.0.2", 1), False),
        (ServerAddress("::1", 1), False),
        (ServerAddress("localhost", 1), False),
        (ServerAddress("localhost", 0, "/tmp/s"), False),
    ],
)
def test_a_server_without_a_key_that_others_may_reach_gets_a_warning(caplog, address, is_warned):
    caplog.set_level(logging.INFO)
    warn_of_open_server(address)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert bool(warnings) == is_warned
    assert all("no API key is set" in warning for warning in warnings)


def test_the_lines_name_the_documentation_and_end_with_the_address(caplog):
    caplog.set_level(logging.INFO)
    announce_ready(ServerAddress("127.0.0.1", 8000, root_path="/llm"), 1.5, model="m", example="chat", has_page=True)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[:2] == ["page: http://127.0.0.1:8000/llm/", "documentation: http://127.0.0.1:8000/llm/docs"]
    assert shlex.split(lines[2].partition(": ")[2])[0] == "curl"
    assert lines[3] == "ready on http://127.0.0.1:8000/llm after 1.50 s (stop with Ctrl-C)"
