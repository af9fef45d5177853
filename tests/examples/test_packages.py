"""The example packages: installed, tested, and serving together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.live_server import LiveServer
from tests.package_on_path import register

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = ("sjf", "xml-tools", "token-rate", "attention-sinks")


@pytest.fixture
def env(tmp_path):
    """An environment with all packages installed."""
    paths = []
    for name in NAMES:
        paths.append(str(EXAMPLES / f"plugserve-{name}"))
        env = register(EXAMPLES / f"plugserve-{name}", tmp_path / "site")
    return env | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), *paths])}


def run(*words, **options):
    return subprocess.run(
        [sys.executable, "-m", *words], capture_output=True, text=True, stdin=subprocess.DEVNULL, **options
    )


def test_packages_pass_their_own_tests(env):
    folders = [EXAMPLES / f"plugserve-{name}" for name in NAMES]
    words = ["pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", "--rootdir", str(EXAMPLES)]
    done = run(*words, *map(str, folders), cwd=EXAMPLES, env=env)
    assert done.returncode == 0, done.stdout


def test_packages_are_listed_and_not_imported_until_selected(env):
    listed = {one["name"]: one for one in json.loads(run("plugserve", "plugins", "--json", env=env).stdout)}
    assert {listed[name]["state"] for name in NAMES} == {"installed"}
    done = run("plugserve", "plugins", "--json", *(word for name in NAMES for word in ("--plugin", name)), env=env)
    active = {one["name"]: one for one in json.loads(done.stdout) if one["state"] == "active"}
    assert active["token-rate"]["hooks"] == ["configure", "metrics", "authorize", "request_finished"]
    assert active["xml-tools"]["provides"] == ["tool parser xml-tools"]
    assert active["attention-sinks"]["options"] == ["window", "sinks"]
    assert "imports torch" not in done.stderr


def test_all_serve_together(env, smollm2_gguf):
    arguments = (
        *("--scheduler", "sjf", "--attention", "attention-sinks", "--plugin", "token-rate", "--plugin", "xml-tools"),
        *("--enable-auto-tool-choice", "--tool-call-parser", "xml-tools", "--token-rate.burst-tokens", "40"),
        *("--token-rate.tokens-per-minute", "1"),
    )
    question = [{"role": "user", "content": "Name the capital of France."}]
    with LiveServer(*arguments, env=env) as live:
        assert "slot attention: attention-sinks (plugserve-attention-sinks 0.1.0)" in live.log
        assert "slot scheduler: sjf (plugserve-sjf 0.1.0)" in live.log
        answer = live.post("/v1/chat/completions", messages=question, temperature=0, max_tokens=20)
        assert answer.json()["choices"][0]["message"]["content"] == "The capital of France is Paris."
        refused = live.post("/v1/chat/completions", messages=question)
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert int(refused.headers["retry-after"]) > 0
