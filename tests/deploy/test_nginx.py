"""Nginx before a server's Unix socket, with the block that docs/operations.md shows."""

import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.e2e.live_server import LiveServer, eventually

pytestmark = pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")

PAGE = Path(__file__).parents[2] / "docs/operations.md"
FILE = """
daemon off;
{user}
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        {block}
    }}
}}
"""


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def url(tmp_path_factory, smollm2_gguf):
    """The address of Nginx."""
    folder = tmp_path_factory.mktemp("nginx")
    socket_path = folder / "plugserve.sock"
    (block,) = re.findall(r"```nginx\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    file = folder / "nginx.conf"
    port = free_port()
    block = block.replace("/run/plugserve/plugserve.sock", str(socket_path))
    user = "user root root;" if os.geteuid() == 0 else ""  # else its workers are nobody
    file.write_text(FILE.format(folder=folder, port=port, block=block, user=user))
    with LiveServer("--uds", socket_path, "--root-path", "/llm"):
        nginx = subprocess.Popen(["nginx", "-e", folder / "error.log", "-c", file])
        try:
            eventually(lambda: nginx.poll() is not None or socket.socket().connect_ex(("127.0.0.1", port)) == 0)
            yield f"http://127.0.0.1:{port}"
        finally:
            nginx.terminate()
            nginx.wait(30)


def test_the_server_is_found_under_the_proxys_path(url):
    assert httpx.get(url + "/llm/health").status_code == 200
    assert httpx.get(url + "/health").status_code == 404
    assert httpx.get(url + "/llm/openapi.json").json()["servers"] == [{"url": "/llm"}]


def test_an_answer_comes_through_while_it_is_made(url):
    body = {"prompt": "One, two, three", "max_tokens": 64, "temperature": 0, "stream": True, "ignore_eos": True}
    with httpx.stream("POST", url + "/llm/v1/completions", json=body, timeout=60) as answer:
        assert answer.status_code == 200
        pieces = list(answer.iter_raw())
    assert len(pieces) > 8
    assert b"".join(pieces).endswith(b"data: [DONE]\n\n")
