"""Models on demand on a real server with two workers: loads, memory that makes room, an engine that is killed."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import psutil
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.core.harness import randomise
from tests.e2e.live_server import LiveServer, eventually
from tests.server.fakes import byte_level_tokenizer

TABLE = """
model_memory_budget: 2900MiB
kv_cache_memory: 1GiB
models:
  first: {aliases: one}
  broken: {model: FOLDER/serve.yaml}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three tiny models; the file of the fourth is none."""
    root = tmp_path_factory.mktemp("many")
    for seed, name in enumerate(("first", "second", "third")):
        torch.manual_seed(seed)
        config = LlamaConfig(
            hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
            vocab_size=272, max_position_embeddings=512, bos_token_id=0, eos_token_id=1,
        )  # fmt: skip
        randomise(LlamaForCausalLM(config).float()).save_pretrained(root / name)
        byte_level_tokenizer().save(str(root / name / "tokenizer.json"))
    (root / "serve.yaml").write_text(TABLE.replace("FOLDER", str(root)))
    return root


@pytest.fixture(scope="module")
def server(folder):
    config = folder / "serve.yaml"
    with LiveServer("--config", config, "--model-dir", folder, "--api-workers", "2", "--threads", "1") as live:
        yield live


def status_of(server, name):
    return server.get(f"/v1/models/{name}").json()["status"]


def engines(server):
    """Engine processes by the index of their model."""
    found = {}
    for child in server.children():
        with suppress(psutil.NoSuchProcess):  # it ends now
            words = child.cmdline()
            if "plugserve.core.engine" in words:
                found[words[-3]] = child  # before its replica and its start
    return found


def ask(server, model, **fields):
    return server.post("/v1/completions", model=model, prompt=[5, 80, 31], max_tokens=4, temperature=0, **fields)


def test_models_are_loaded_used_and_unloaded_as_requests_need_them(server):
    assert server.get("/health").json() == {"status": "ok"}
    assert not engines(server)
    assert status_of(server, "first") == {"value": "unloaded"}
    assert ask(server, "fourth").status_code == 404

    with ThreadPoolExecutor(20) as pool:  # over both workers
        answers = list(pool.map(lambda _: ask(server, "one"), range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["choices"][0]["text"] for answer in answers}) == 1
    assert server.log.count("model loaded name=first") == 1
    eventually(lambda: status_of(server, "first")["value"] == "loaded")
    assert status_of(server, "first")["memory_bytes"] > 2**30

    assert ask(server, "second").status_code == 200
    first = next(iter(engines(server).values()))
    assert ask(server, "third").status_code == 200
    eventually(lambda: status_of(server, "first")["value"] == "unloaded")
    assert "model unloaded name=first reason=memory" in server.log
    assert not first.is_running()
    assert len(engines(server)) == 2

    broken = ask(server, "broken")
    assert (broken.status_code, broken.json()["error"]["code"]) == (503, "model_not_loaded")
    assert "is not a GGUF file" in broken.json()["error"]["message"]
    assert int(broken.headers["retry-after"]) >= 1
    failed = status_of(server, "broken")
    assert failed["value"] == "failed"
    assert failed["retry_after_s"] > 0


def test_a_killed_engine_leaves_the_others_serving(server):
    for name in ("second", "third"):
        assert ask(server, name).status_code == 200
    pids = {child.pid for child in engines(server).values()}
    psutil.Process(engines(server)["1"].pid).kill()
    eventually(lambda: re.search("engine died model=second", server.log))
    answer = ask(server, "third", keep_alive=0)
    assert answer.status_code == 200
    assert server.get("/health").status_code == 200
    eventually(lambda: status_of(server, "third")["value"] == "unloaded")
    assert "model unloaded name=third reason=idle" in server.log
    metrics = server.get("/metrics").text
    assert 'plugserve_model_unloads_total{model_name="third",reason="idle"} 1.0' in metrics
    assert 'plugserve_model_unloads_total{model_name="first",reason="memory"} 1.0' in metrics
    assert not pids & {child.pid for child in engines(server).values()}
