"""`plugserve route` as a process: its log, its signals, its errors."""

import asyncio
import re
import signal
import sys

import httpx
import pytest

from plugserve.cli import main
from tests.server.router.stub_upstream import chunk, streams


class RouterProcess:
    def __init__(self, *words):
        self.words, self.lines = words, []

    async def __aenter__(self):
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "plugserve", "route", "--host", "127.0.0.1", "--port", "0", *self.words,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        self.url = await self.line(r"ready on (\S+)")
        self.client = httpx.AsyncClient(base_url=self.url, timeout=20)
        return self

    async def line(self, pattern):
        """Wait for a line of the log; returns the pattern's first group."""
        async with asyncio.timeout(30):
            while data := await self.process.stderr.readline():
                self.lines.append(data.decode())
                if found := re.search(pattern, self.lines[-1]):
                    return found[found.re.groups and 1]
        raise AssertionError("".join(self.lines))

    async def __aexit__(self, *error):
        await self.client.aclose()
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


async def test_a_router_says_what_it_does_and_drains_at_sigterm(stubs):
    one, other = await stubs("a", "b")
    goes_on = asyncio.Event()

    async def then(writer):
        await goes_on.wait()
        writer.write(chunk(b"data: [DONE]\n\n") + chunk(b""))

    one.answer = other.answer = streams(b"data: {}\n\n", then=then)
    async with RouterProcess("--upstream", f"a={one.url}", "--upstream", f"b={other.url}") as router:
        log = "".join(router.lines)
        assert "router, policy prefix" in log
        assert f"upstream a at {one.url}" in log
        assert "upstream b is up; it serves m" in log
        body = {"model": "m", "messages": [], "stream": True}
        async with router.client.stream("POST", "/v1/chat/completions", json=body) as response:
            pieces = response.aiter_raw()
            assert await anext(pieces) == b"data: {}\n\n"
            router.process.send_signal(signal.SIGTERM)
            await router.line("stopping; 1 requests in flight")
            refused = await router.client.post("/v1/chat/completions", json=body)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            goes_on.set()
            assert [piece async for piece in pieces] == [b"data: [DONE]\n\n"]
        assert await router.process.wait() == 0


async def test_sighup_reads_the_keys_again(stubs, tmp_path):
    (stub,) = await stubs("a")
    keys = tmp_path / "keys"
    keys.write_text("old")
    async with RouterProcess("--upstream", stub.url, "--api-key-file", str(keys)) as router:
        router.client.headers["authorization"] = "Bearer new"
        assert (await router.client.get("/v1/models")).status_code == 401
        keys.write_text("new")
        router.process.send_signal(signal.SIGHUP)
        await router.line("reloaded num_keys=1")
        assert (await router.client.get("/v1/models")).status_code == 200


async def test_streams_that_outlast_the_grace_end_with_an_error_event(stubs):
    (stub,) = await stubs("a")

    async def then(writer):
        await asyncio.sleep(30)

    stub.answer = streams(b"data: {}\n\n", then=then)
    async with RouterProcess("--upstream", stub.url, "--shutdown-timeout", "0.1") as router:
        body = {"model": "m", "messages": [], "stream": True}
        async with router.client.stream("POST", "/v1/chat/completions", json=body) as response:
            pieces = response.aiter_raw()
            await anext(pieces)
            router.process.send_signal(signal.SIGTERM)
            rest = b"".join([piece async for piece in pieces])
        assert b"the router is shutting down" in rest
        assert rest.endswith(b"data: [DONE]\n\n")
        assert await router.process.wait() == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "--upstream http://HOST:PORT"),
        (["--upstream", "nowhere"], "http://HOST:PORT"),
        (["http://x:1"], "--upstream http://x:1"),
        (["--upstream", "http://x", "--policy", "best"], "one of prefix, least-loaded, round-robin, got 'best'"),
        (["--upstream", "http://x", "--upstreem", "y"], "--upstream"),
    ],
)
def test_faults_are_one_line_and_exit_code_2(capfd, words, says):
    assert main(["route", *words]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert says in line


def test_serve_refuses_the_routers_setting(capfd):
    assert main(["--upstream", "http://x:1"]) == 2
    assert "plugserve route --upstream" in capfd.readouterr().err


def test_help_lists_the_routers_settings(capsys):
    assert main(["route", "--help"]) == 0
    page = capsys.readouterr().out
    for flag in ("--upstream", "--upstream-key", "--policy", "--affinity-slack", "--host", "--api-key", "--config"):
        assert flag in page
