"""--host and --port, --uds: the address that the server listens on."""

from __future__ import annotations

import os
import socket
import stat

import pytest

from plugserve.core.errors import ConfigError
from plugserve.server.supervisor.listener import listen, listen_on_path, listening
from tests.core.settings.reading import message, read
from tests.server.conftest import running
from tests.server.fakes import FakeEngine, says, served


def accepts(host, port):
    with socket.socket() as client:
        client.settimeout(5)
        return client.connect_ex((host, port)) == 0


def test_only_the_host_that_is_named_accepts():
    with listen("127.0.0.2", 0) as listener:
        port = listener.getsockname()[1]
        assert accepts("127.0.0.2", port)
        assert not accepts("127.0.0.1", port)


def test_the_default_host_accepts_on_every_address():
    with listen("0.0.0.0", 0) as listener:
        port = listener.getsockname()[1]
        assert accepts("127.0.0.1", port)
        assert accepts("127.0.0.2", port)


def test_the_port_that_is_named_is_taken_and_refused_to_the_next():
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
    with listen("127.0.0.1", port) as second:
        assert second.getsockname() == ("127.0.0.1", port)
        with pytest.raises(ConfigError, match=f"port {port} on 127.0.0.1 is in use; choose another with --port"):
            listen("127.0.0.1", port)


@pytest.mark.parametrize("host", ["256.0.0.1", "no.such.host.invalid"])
def test_a_host_that_is_no_address_of_this_machine_is_one_line(host):
    with pytest.raises(ConfigError, match=f"can't listen on --host {host} --port 0"):
        listen(host, 0)


# ---- Unix sockets


def settings(path, *words):
    return read("--uds", str(path), *words).settings


async def test_requests_come_over_a_unix_socket(tmp_path, tokenizer, make_state):
    path = tmp_path / "server.sock"
    with listening(settings(path)) as listener:
        state = make_state(served(FakeEngine(says(tokenizer, "hello")), tokenizer))
        async with running(state, listener=listener) as server:
            assert (await server.chat()).json()["choices"][0]["message"]["content"] == "hello"
            assert len(await server.chat_events()) > 1
    assert not path.exists()


@pytest.mark.parametrize(
    ("words", "mode"), [((), 0o660), (("--uds-mode", "0600"), 0o600), (("--uds-mode", "666"), 0o666)]
)
def test_the_sockets_mode_is_the_setting_whatever_the_umask(tmp_path, words, mode):
    before = os.umask(0o027)
    try:
        with listening(settings(tmp_path / "s", *words)):
            assert stat.S_IMODE(os.stat(tmp_path / "s").st_mode) == mode
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


def test_a_socket_that_no_process_listens_on_is_replaced(tmp_path):
    path = tmp_path / "s"
    listen_on_path(str(path), 0o600).close()
    assert path.is_socket()
    with listening(settings(path)), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_a_socket_in_use_is_left_alone(tmp_path):
    path = tmp_path / "s"
    with listening(settings(path)):
        with pytest.raises(ConfigError, match="is in use: another process listens on it"):
            listen_on_path(str(path), 0o600)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_the_socket_of_a_server_that_came_later_is_not_removed(tmp_path):
    path = tmp_path / "s"
    with listening(settings(path)):
        path.unlink()
        later = listen_on_path(str(path), 0o600)
    assert path.is_socket()
    later.close()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("file", "is there and is no socket; choose another path, or remove it"),
        ("folder", "is there and is no socket"),
        ("missing/s", "there is no folder .*missing; make it first"),
        ("x" * 120, "a socket's path at most 107; take a shorter one"),
        ("file/s", "there is no folder"),
    ],
)
def test_a_path_that_can_hold_no_socket_is_one_line(tmp_path, name, expected):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match=expected) as caught:
        listen_on_path(str(tmp_path / name), 0o600)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "kept"


def test_a_host_and_a_port_beside_a_socket_are_named_in_a_warning():
    (warning,) = read("--uds", "/tmp/s", "--port", "80").warnings
    assert warning == "--port: no effect with --uds, the server listens on that socket alone"


@pytest.mark.parametrize("mode", ["460", "rw", "8", "0o000", "432"])
def test_a_mode_that_locks_the_owner_out_is_refused(mode):
    assert message("--uds-mode", mode).startswith("--uds-mode must be an octal mode that lets the owner read and write")
