"""A model on two nodes of a Ray cluster: the text of one process; an error and a new start when a rank or a node is
lost."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time

import httpx
import pytest

from plugserve import LLM, SamplingParams
from tests.deploy.two_nodes import HEAD, PORT, WORKER, TwoNodes, reason_to_skip
from tests.e2e.live_server import LiveServer, eventually
from tests.two_layers import CONFIG

pytest.importorskip("ray", reason="Ray is not installed")

PROMPTS = ["Once upon a time", "The sun", "word " * 300]
NUM_TOKENS = 12
LOAD = {"load_format": "dummy", "dtype": "float32", "max_model_len": 4096, "num_gpu_blocks_override": 600}


@pytest.fixture(scope="module", autouse=True)
def network_namespaces():
    if reason := reason_to_skip():
        pytest.skip(reason)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture(scope="module")
def expected(folder, smollm2_gguf):
    with LLM(str(folder), tokenizer=str(smollm2_gguf), **LOAD) as alone:
        params = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
        return [output.outputs[0].text for output in alone.generate(PROMPTS, params, use_tqdm=False)]


@pytest.fixture(scope="module")
def nodes():
    with TwoNodes(num_cpus=2) as nodes:
        yield nodes


@pytest.fixture(scope="module")
def serve(nodes, folder, smollm2_gguf):
    def start(*arguments):
        load = [part for name, value in LOAD.items() for part in (f"--{name.replace('_', '-')}", value)]
        uds = f"{nodes.folder}/server.sock"
        return NodeServer(
            uds, "--model", f"tiny={folder}", "--tokenizer", smollm2_gguf, *load,
            "--distributed-executor-backend", "ray",
            "--ray.address", f"{HEAD}:{PORT}", "--uds", uds, *arguments, within=nodes.within(0),
            env={"RAY_AUTH_TOKEN": nodes.token}
        )  # fmt: skip

    return start


class NodeServer(LiveServer):
    """A server in another network namespace, asked through a Unix socket."""

    def __init__(self, uds, *arguments, **kwargs):
        super().__init__(*arguments, **kwargs)
        self.client = httpx.Client(transport=httpx.HTTPTransport(uds=uds), base_url="http://node", timeout=60)

    def get(self, path):
        return self.client.get(path)

    def post(self, path, **body):
        return self.client.post(path, json=body)

    def texts(self):
        return [self.complete(prompt, NUM_TOKENS, ignore_eos=True) for prompt in PROMPTS]

    def rank(self, number):
        """Node and pid of a rank, from the last line about its place."""
        node, pid = re.findall(rf"rank placed rank={number} node=(\S+) pid=(\d+)", self.log)[-1]
        return node, int(pid)

    def is_well(self):
        try:
            return self.get("/health").status_code == 200
        except httpx.HTTPError:
            return False

    def lose(self, do):
        """A stream's last lines when do() happens, the seconds until it ends, and what /health said first and last."""
        lines, health = [], []

        def follow():
            body = {"prompt": "Once", "max_tokens": 3500, "temperature": 0, "ignore_eos": True, "stream": True}
            with self.client.stream("POST", "/v1/completions", json=body) as answer:
                for line in answer.iter_lines():
                    lines.append(line)

        stream = threading.Thread(target=follow)
        stream.start()
        eventually(lambda: len(lines) > 5)
        started_s = time.monotonic()
        do()
        while stream.is_alive():
            answer = self.get("/health")
            if answer.status_code != 200:
                health.append(f"{time.monotonic() - started_s:.1f} s: {answer.text}")
            stream.join(0.1)
        return lines[-8:], time.monotonic() - started_s, [*health[:1], *health[-1:]]


def test_shares_of_layers_on_two_nodes_give_the_text_of_one_process(serve, expected):
    with serve("-tp", 4) as server:
        assert server.texts() == expected


@pytest.fixture(scope="module")
def server(serve):
    with serve("-tp", 2, "-pp", 2, "--engine-hang-timeout", 5) as server:
        yield server


def test_a_stage_on_each_node_gives_the_text_of_one_process(server, expected):
    assert server.texts() == expected
    assert [server.rank(number)[0] for number in range(4)] == [HEAD, HEAD, WORKER, WORKER]


def test_a_lost_rank_or_node_ends_requests_and_the_group_comes_back(nodes, server, expected):
    assert {f"plugserve:tiny:rank{number}" for number in range(4)} <= set(nodes.named_actors())
    lost = {
        "actor killed": lambda: os.kill(server.rank(2)[1], signal.SIGKILL),
        "rank stopped": lambda: os.kill(server.rank(3)[1], signal.SIGSTOP),
        "node lost": nodes.pull_cable,
    }
    for what, do in lost.items():
        pid = server.rank(3)[1]
        lines, ended_s, health = server.lose(do)
        print(f"{what}: the stream ended after {ended_s:.2f} s; /health: {health}")
        assert any('"error"' in line for line in lines)
        if what == "rank stopped":
            assert f"rank 3 (pid {pid}) hangs" in health[-1]
            assert f"rank 3 of 4 (pid {pid} on {WORKER}) hangs: no heartbeat" in server.log
        if what == "node lost":
            eventually(lambda: "Ray has no place for all ranks yet, waiting: it needs 4 free CPUs" in server.log)
            nodes.replace_worker()
        eventually(server.is_well, 60)
        assert server.texts() == expected
