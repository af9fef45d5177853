"""--host and --port: the address that the server listens on."""

from __future__ import annotations

import socket

import pytest

from plugserve.core.errors import ConfigError
from plugserve.server.supervisor.main import listen


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
