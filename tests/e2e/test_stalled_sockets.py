"""Sockets that promise a body and stop: more than the server may have descriptors for."""

from __future__ import annotations

import contextlib
import socket
from urllib.parse import urlsplit

import httpx

from tests.e2e.live_server import LiveServer, eventually, scripted_model

STALLED = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"


def test_more_stalled_sockets_than_descriptors_do_not_shut_the_server(smollm2_gguf, tmp_path):
    model = scripted_model(tmp_path)
    with LiveServer(*model, "--shutdown-timeout", "0", open_files=400) as live, contextlib.ExitStack() as held:
        address = (urlsplit(live.url).hostname, urlsplit(live.url).port)

        def stall():
            client = held.enter_context(socket.create_connection(address, timeout=10))
            with contextlib.suppress(ConnectionError):
                client.sendall(STALLED)

        for _ in range(420):
            stall()
        eventually(lambda: is_served(live))
        assert live.complete("The capital of France is", 4).strip().startswith("Paris")
        for _ in range(420):
            stall()
        eventually(lambda: is_served(live))
        lines = [line for line in live.lines if "connections refused or dropped" in line]
        assert 1 <= len(lines) <= 10, live.log
        assert "is lowered to" in live.log
        assert "Traceback" not in live.log


def is_served(live):
    try:
        return live.get("/health").status_code == 200
    except httpx.HTTPError:
        return False
