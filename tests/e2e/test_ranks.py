"""A server whose model two processes share: the same text as one; an error and a new start when one is lost."""

from __future__ import annotations

import json
import re
import signal
import threading
import time

import httpx
import pytest

from plugserve import LLM, SamplingParams
from tests.e2e.live_server import LiveServer, eventually
from tests.two_layers import CONFIG

ASKED = [
    {"prompt": "Once upon a time", "max_tokens": 12, "ignore_eos": True},
    {"prompt": "The sun", "max_tokens": 12, "temperature": 0.9, "seed": 3, "ignore_eos": True},
    {"prompt": "A number:", "max_tokens": 12, "structured_outputs": {"regex": "[0-9]{4,8}"}},
    {"prompt": "word " * 300, "max_tokens": 6, "temperature": 0.0, "ignore_eos": True},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture(scope="module")
def arguments(folder, smollm2_gguf):
    return [
        "--model",
        f"tiny={folder}",
        "--tokenizer",
        smollm2_gguf,
        "--load-format",
        "dummy",
        "--max-model-len",
        4096,
        "--dtype",
        "float32",
    ]


@pytest.fixture(scope="module")
def shared(arguments):
    with LiveServer(*arguments, "--tensor-parallel-size", 2, "--engine-hang-timeout", 5) as server:
        yield server


def texts(server):
    answers = [server.post("/v1/completions", **{"temperature": 0.0, **one}) for one in ASKED]
    assert [answer.status_code for answer in answers] == [200] * len(ASKED)
    return [answer.json()["choices"][0]["text"] for answer in answers]


def rank(server):
    return server.child("plugserve.plugins.executors.mp_rank")


def stream_to_its_end(server, result):
    body = {"prompt": "Once", "max_tokens": 4000, "temperature": 0, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", server.url + "/v1/completions", json=body, timeout=60) as answer:
        for line in answer.iter_lines():
            result.append(line)


def lose_rank(server, number):
    """What a stream gets when rank 1 gets signal number, and the seconds until it ended."""
    result = []
    stream = threading.Thread(target=stream_to_its_end, args=(server, result))
    stream.start()
    eventually(lambda: len(result) > 3)
    pid = rank(server).pid
    rank(server).send_signal(number)
    started_s = time.monotonic()
    stream.join(40)
    assert not stream.is_alive()
    ended_s = time.monotonic() - started_s
    eventually(lambda: server.get("/health").status_code == 200 and rank(server).pid != pid, 60)
    return result, ended_s


def test_two_ranks_answer_as_one_process(folder, smollm2_gguf, shared):
    settings = {"tokenizer": str(smollm2_gguf), "load_format": "dummy", "max_model_len": 4096, "dtype": "float32"}
    with LLM(str(folder), **settings) as alone:
        asked = [{"temperature": 0.0, **one} for one in ASKED]
        prompts = [one.pop("prompt") for one in asked]
        params = [SamplingParams(**one) for one in asked]
        expected = [output.outputs[0].text for output in alone.generate(prompts, params, use_tqdm=False)]
    assert texts(shared) == expected
    assert len(set(expected)) == len(ASKED)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_lost_rank_ends_requests_and_the_group_comes_back(shared, number):
    before = texts(shared)
    result, _ = lose_rank(shared, number)
    assert any('"error"' in line for line in result)
    assert texts(shared) == before
    if number == signal.SIGKILL:
        assert re.search(r"engine died model=tiny reason=rank 1 of 2 \(pid \d+\) was killed by signal 9", shared.log)
    else:
        assert re.search(
            r"rank 1 of 2 \(pid \d+ on this machine\) hangs: no heartbeat for 3.* replaced after 5 s", shared.log
        )
