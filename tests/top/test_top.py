"""`plugserve top` on a server in this process: its screen, its keys, and a server that goes away."""

import asyncio
import json
import os
import pty
import socket
import subprocess
import sys
import time

import pytest

from plugserve import cli
from plugserve.server.operations.access import Access
from plugserve.top.screen import screen
from tests.server.conftest import make_state, running, tokenizer  # noqa: F401 - fixtures
from tests.server.fakes import FakeEngine, says, served

SNAPSHOT = {
    "time": 1e9, "version": "0.2.0", "uptime_s": 3725.0,
    "models": [
        {
            "name": "big\x1b[2J", "state": "loaded", "dtype": "bfloat16", "device": "cuda:0", "weight_bytes": 3 << 29,
            "kv_cache_bytes": 1 << 30, "max_model_len": 8192, "adapters": ["law"],
            "engines": [
                {
                    "engine": 0, "pid": 7, "running": 12, "waiting": 3, "kv_blocks_total": 200, "kv_blocks_used": 50,
                    "kv_blocks_cached": 20, "kv_map": "AAB//w==", "prefix_hit_rate": 0.25, "draft_acceptance": None,
                    "generation_tokens_per_s": 312.4, "prompt_tokens_per_s": 5.25, "step_ms_p50": 7.5,
                    "step_ms_p99": 120.2, "preemptions": 0,
                }
            ],
        },
        {"name": "small", "state": "stopped", "dtype": None, "device": None, "weight_bytes": None,
         "kv_cache_bytes": None, "max_model_len": None, "adapters": [], "engines": []},
    ],
    "latency": {name: {"p50": 1.25, "p90": None, "p99": 1000.0} for name in ("ttft_ms", "itl_ms", "e2e_ms")}
    | {"window_s": 60},
    "plugins": [{"name": "fcfs", "kind": "schedule", "calls": 90, "time_ms": 1500.0, "failures": 0},
                {"name": "gate", "kind": "plugserve_authorize", "calls": 2, "time_ms": 1.0, "failures": 2}],
    "workers": [{"index": 0, "pid": 5, "requests": 4}, {"index": 1, "pid": 6, "requests": 11}],
}  # fmt: skip
REQUEST = {
    "arrived": 1e9, "state": "done", "prompt_tokens": 37, "cached_tokens": 32, "output_tokens": 40, "queue_ms": 2300.0,
    "prefill_ms": 345.3, "decode_ms": 3001.0, "total_ms": 5379.8, "finish_reason": "length",
    "why": "It waited 2.3 s behind 7 requests that had arrived before.",
}  # fmt: skip


def test_screen_shows_every_part():
    lines = screen(SNAPSHOT, [REQUEST], "http://x", width=200, height=50)
    text = "\n".join(lines)
    assert "up 1:02:05" in lines[0]
    assert "requests: 12 run, 3 wait; tokens/s: 312 out, 5.2 in; requests of each worker: 4 11" in text
    assert "TTFT 1.2 / - / 1000" in text
    assert "big?[2J: loaded, bfloat16 on cuda:0, weights 1.50 GiB, KV cache 1.00 GiB, context 8192" in text
    assert "adapters law" in text
    assert "blocks 25 % used, 10 % cached of 200; prefix hits 25 %, drafts accepted -; steps p50 7.5 ms" in text
    assert "[..:#]" in text
    assert "small: stopped" in lines
    assert text.index("gate plugserve_authorize: 2 calls, 0.00 s, 2 failures") < text.index("fcfs schedule: 90 calls")
    assert lines[-1].split()[1:9] == ["done", "37", "32", "40", "2.3s", "345ms", "3.0s", "5.4s"]
    assert lines[-1].endswith("It waited 2.3 s behind 7 requests that had arrived before.")


@pytest.mark.parametrize(("width", "height"), [(200, 8), (40, 24), (1, 1), (80, 10)])
def test_screen_fits(width, height):
    lines = screen(SNAPSHOT, [REQUEST] * 100, "http://x", width=width, height=height)
    assert 1 <= len(lines) <= height
    assert max(map(len, lines)) <= width


async def ask(*words):
    """Exit code and output of the command, which must not block the server's loop."""
    done = await asyncio.to_thread(subprocess.run, [sys.executable, "-m", "plugserve", "top", *words],
                                   capture_output=True, text=True, check=False, timeout=30,
                                   stdin=subprocess.DEVNULL)  # fmt: skip
    return done.returncode, done.stdout, done.stderr


async def test_once_prints_text_and_json_prints_a_line(make_state, tokenizer):  # noqa: F811
    state = make_state(served(FakeEngine(says(tokenizer, "hello")), tokenizer), access=Access(keys=["secret"]))
    async with running(state) as server:
        url = f"http://127.0.0.1:{server.port}/v1"
        texts, lines, refused = await asyncio.gather(
            ask("--url", url, "--api-key", "secret"),
            ask("--url", url, "--api-key", "secret", "--json", "--once"),
            ask("--url", url),
        )
    assert texts[0] == 0
    assert "fake/model: loaded" in texts[1]
    assert json.loads(lines[1])["version"] == "1.2.3"
    assert refused == (2, "", f"plugserve: error: http://127.0.0.1:{server.port} answered 401: give its key with "
                              "PLUGSERVE_API_KEY or --api-key\n")  # fmt: skip


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["--url", "http://127.0.0.1:9", "--once"], 1, "http://127.0.0.1:9 can't be reached"),
        (["--url", "ftp://x"], 2, "--url must be a server's address such as http://localhost:8000, got 'ftp://x'"),
        (["what"], 2, "unexpected argument 'what'"),
    ],
)
def test_faults_are_one_line(words, code, line, capsys):
    assert cli.main(["top", *words]) == code
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1


class Terminal:
    """The command in a terminal of its own."""

    def __init__(self, *words):
        self.master, slave = pty.openpty()
        command = [sys.executable, "-m", "plugserve", "top", *words]
        self.process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=os.environ | {
            "COLUMNS": "100", "LINES": "30"})  # fmt: skip
        os.close(slave)
        self.seen = ""

    async def shows(self, text):
        """Wait until text comes, after what was waited for before."""
        until_s = time.monotonic() + 20
        while text not in self.seen:
            assert time.monotonic() < until_s, f"no {text!r} in {self.seen!r}"
            self.seen += (await asyncio.to_thread(os.read, self.master, 65536)).decode()
        self.seen = self.seen.partition(text)[2]

    def press(self, key):
        os.write(self.master, key.encode())


async def test_keys_and_a_server_that_goes_away(make_state, tokenizer):  # noqa: F811
    state = make_state(served(FakeEngine(says(tokenizer, "hello")), tokenizer))
    listener = socket.create_server(("127.0.0.1", 0))
    async with running(state, listener=listener) as server:
        terminal = Terminal("--url", f"http://127.0.0.1:{server.port}")
        await terminal.shows("fake/model: loaded")
        await terminal.shows("(q ends, p pauses)")
        terminal.press("p")
        await terminal.shows("(paused, p goes on)")
        terminal.press("p")
        await terminal.shows("(q ends, p pauses)")
        server.http.stop_accepting()
        listener.close()
        await server.http.close_connections()
        await terminal.shows("(trying again every second: http://127.0.0.1:")
        await terminal.shows("can't be reached: ")
        terminal.press("q")
        await terminal.shows("\x1b[?1049l")
        assert await asyncio.to_thread(terminal.process.wait, 10) == 0
    os.close(terminal.master)
