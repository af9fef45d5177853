"""Addresses of servers on command lines."""

import http.client

import pytest

from plugserve.core.errors import ConfigError
from plugserve.core.wire.server_address import ServerAddress, key_header


@pytest.mark.parametrize(
    ("given", "shown", "host", "port", "prefix"),
    [
        ("localhost:8000", "http://localhost:8000", "localhost", 8000, ""),
        ("http://a.example/v1", "http://a.example", "a.example", None, ""),
        ("https://a.example/llm/v1/", "https://a.example/llm", "a.example", None, "/llm"),
        ("http://[::1]:9/", "http://[::1]:9", "::1", 9, ""),
    ],
)
def test_addresses(given, shown, host, port, prefix):
    address = ServerAddress.read(given)
    assert (str(address), address.host, address.port, address.prefix) == (shown, host, port, prefix)
    assert ServerAddress.read(shown) == address


@pytest.mark.parametrize(
    "given", ["", "ftp://a", "http://", "http://a:99999", "http://a:0", "http://a:b", "http://[::1"]
)
def test_what_is_no_address_is_one_line(given):
    with pytest.raises(ConfigError, match="--url must be a server's address such as http://localhost:8000, got "):
        ServerAddress.read(given)


def test_connections_and_keys():
    assert type(ServerAddress.read("a:1").connection(3)) is http.client.HTTPConnection
    connection = ServerAddress.read("https://a").connection(3)
    assert (type(connection), connection.port, connection.timeout) == (http.client.HTTPSConnection, 443, 3)
    assert (key_header("k"), key_header("")) == ({"Authorization": "Bearer k"}, {})
