"""A real server, started from the command line on a free port."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import psutil

_SCRIPTED = Path(__file__).parents[2] / "benchmarks" / "clients" / "scripted.py"
_SCRIPT = [
    {"when": "capital of France", "say": " Paris, of course."},
    {"when": "", "say": " one, two, three" * 1500},
]


def scripted_model(folder, step_s=0.02):
    """Settings of a model that answers from a script, a token every step_s. Its engine imports no torch, so that it
    starts in a fraction of the time: for tests in which the text doesn't matter."""
    script = folder / "script.json"
    script.write_text(json.dumps(_SCRIPT))
    options = ["--scripted.script", str(script), "--scripted.step-s", str(step_s)]
    return ["--plugin", str(_SCRIPTED), "--runner", "scripted", *options]


class LiveServer:
    """Runs `python -m plugserve ARGS`; url is set once the ready line is printed. With --uds it is unix:PATH.

    open_files: its `ulimit -n`. command: another command than serve, with its first arguments. within: a command that
    runs the server, as ["ip", "netns", "exec", NAME]."""

    def __init__(self, *args, env=None, cwd=None, open_files=None, command=(), within=()):
        given = [*command, "--host", "127.0.0.1", "--port", "0", *map(str, args)]
        command = [*within, sys.executable, "-m", "plugserve", *given]
        if "--shutdown-timeout" not in args:
            command += ["--shutdown-timeout", "0"]
        if open_files is not None:
            command = ["sh", "-c", f'ulimit -n {open_files}; exec "$@"', "sh", *command]
        inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=inherited | (env or {}), cwd=cwd, errors="replace"
        )
        self.lines: list[str] = []
        self.url = ""
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
            found = re.search(r"ready on ((?:https?://|unix:)\S+)", line)
            if found:
                self.url = found[1]
                self._ready.set()
        self._ready.set()

    def __enter__(self):
        if not self._ready.wait(120) or not self.url:
            self.process.kill()
            raise AssertionError("the server did not start:\n" + "\n".join(self.lines))
        return self

    def __exit__(self, *exc):
        self.stop()

    def stop(self, number=signal.SIGTERM):
        """Exit code after the signal."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    @property
    def log(self):
        return "\n".join(self.lines)

    def children(self):
        return psutil.Process(self.process.pid).children(recursive=True)

    def child(self, module):
        """The child process that runs module."""
        found = [child for child in self.children() if module in child.cmdline()]
        assert len(found) == 1, found
        return found[0]

    @property
    def engine(self):
        return self.child("plugserve.core.engine")

    @property
    def worker(self):
        return self.child("plugserve.server.worker")

    def get(self, path):
        return httpx.get(self.url + path, timeout=30)

    def post(self, path, **body):
        return httpx.post(self.url + path, json=body, timeout=120)

    def complete(self, prompt, max_tokens=8, **fields):
        answer = self.post("/v1/completions", prompt=prompt, max_tokens=max_tokens, temperature=0, **fields)
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"][0]["text"]

    def metric(self, name):
        """The sum of a metric's samples."""
        text = self.get("/metrics").text
        samples = re.findall(rf"^plugserve_{name}(?:{{[^}}]*}})? (\S+)$", text, flags=re.M)
        assert samples, f"no metric plugserve_{name}"
        return sum(map(float, samples))


def eventually(claim, timeout_s=20.0, pause_s=0.05):
    """Wait until claim() is true; fails after timeout_s."""
    deadline = time.monotonic() + timeout_s
    while not claim():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(pause_s)
