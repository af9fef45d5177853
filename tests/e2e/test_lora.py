"""Adapters are loaded and unloaded on a running server with two workers: exact answers, clear refusals, no leaks."""

from __future__ import annotations

import threading

import httpx
import psutil
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.core.harness import LocalEngine, randomise
from tests.e2e.live_server import LiveServer, eventually
from tests.lora_samples import adapter_tensors, merged, write_adapter
from tests.server.fakes import byte_level_tokenizer

PROMPT = [5, 80, 31, 44, 99, 12, 7, 203]
RANK = 64  # so that an adapter takes 4 MiB, and 30 that were forgotten would be seen
NUM_ADAPTERS = 8
IN_MEMORY = 3


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A tiny model's folder, a folder of adapters, and the expected answer of each to PROMPT."""
    root = tmp_path_factory.mktemp("lora")
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=272, max_position_embeddings=512, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = randomise(LlamaForCausalLM(config).float())
    model.save_pretrained(root / "model")
    byte_level_tokenizer().save(str(root / "model" / "tokenizer.json"))
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    facts = config.to_dict() | {"architectures": ["LlamaForCausalLM"]}
    answers = {"": answer_of(facts, weights)}
    for n in range(NUM_ADAPTERS):
        tensors = adapter_tensors(weights, rank=RANK, seed=n, scale=0.3)
        write_adapter(root / "adapters" / f"a{n}", tensors, r=RANK, lora_alpha=RANK)
        answers[f"a{n}"] = answer_of(facts, merged(weights, tensors, alpha=float(RANK)))
    tensors = adapter_tensors(weights, rank=8, targets=("q_proj",))
    bad = root / "adapters" / "bad"
    write_adapter(bad / "rank", adapter_tensors(weights, rank=65, layers=(0,)), r=65)
    write_adapter(bad / "dora", tensors, target_modules=["q_proj"], use_dora=True)
    write_adapter(bad / "saved", tensors, target_modules=["q_proj"], modules_to_save=["lm_head"])
    write_adapter(bad / "shape", {name: tensor[:, :-1] for name, tensor in tensors.items()}, target_modules=["q_proj"])
    (bad / "empty").mkdir()
    write_adapter(root / "outside", tensors, target_modules=["q_proj"])
    (root / "adapters" / "link").symlink_to(root / "outside")
    return root, answers


def answer_of(config, weights):
    with LocalEngine(config, weights, max_model_len=128) as local:
        return local.generate([PROMPT], max_tokens=10)[0]


@pytest.fixture(scope="module")
def server(places):
    root, _ = places
    args = ("--enable-lora", "--max-loras", "2", "--max-lora-rank", str(RANK), "--lora-dir", root / "adapters")
    modules = ("--lora-modules", f"first={root / 'adapters' / 'a0'}")
    memory = ("--max-cpu-loras", str(IN_MEMORY))
    more = (*memory, "--api-workers", "2", "--enable-prefix-caching", "--served-model-name", "base", "--threads", "1")
    with LiveServer(root / "model", *args, *modules, *more) as live:
        yield live


def ask(server, model, client=httpx, **fields):
    body = {"model": model, "prompt": PROMPT, "max_tokens": 10, "temperature": 0, "ignore_eos": True}
    return client.post(server.url + "/v1/completions", json=body | {"return_token_ids": True} | fields, timeout=60)


def tokens_of(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["token_ids"]


def load(server, name, path, **fields):
    return server.post("/v1/load_lora_adapter", lora_name=name, lora_path=str(path), **fields)


def unload(server, name):
    return server.post("/v1/unload_lora_adapter", lora_name=name)


def message_of(answer, status=400):
    assert answer.status_code == status, answer.text
    return answer.json()["error"]["message"]


def listed(server):
    return [(model["id"], model["parent"]) for model in server.get("/v1/models").json()["data"]]


def test_models_are_listed_with_their_parent(server, places):
    root, _ = places
    data = server.get("/v1/models").json()["data"]
    assert [(model["id"], model["parent"]) for model in data] == [("base", None), ("first", "base")]
    assert data[1]["root"] == str(root / "adapters" / "a0")
    assert server.get("/v1/models/first").json() == data[1]


def test_more_adapters_than_slots_answer_like_merged_weights_at_the_same_time(server, places):
    _, answers = places
    names = {"base": "", "first": "a0"}
    for n in range(1, NUM_ADAPTERS):
        assert load(server, f"own-{n}", f"a{n}").status_code == 200
        names[f"own-{n}"] = f"a{n}"
        assert tokens_of(ask(server, f"own-{n}")) == answers[f"a{n}"]  # whichever worker answers
    wrong: list[object] = []

    def client(model, adapter):
        for _ in range(3):
            found = tokens_of(ask(server, model))
            wrong.extend([(model, found)] if found != answers[adapter] else [])

    threads = [threading.Thread(target=client, args=pair) for pair in list(names.items()) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert server.metric("lora_adapters") == NUM_ADAPTERS
    assert server.metric("lora_adapters_in_memory") == IN_MEMORY
    assert server.metric("lora_drops_total") >= NUM_ADAPTERS - IN_MEMORY
    chat = server.post("/v1/chat/completions", model="own-1", messages=[{"role": "user", "content": "x"}])
    assert chat.status_code in (200, 400)  # the tiny model has no template
    for name in names.keys() - {"base", "first"}:
        assert unload(server, name).status_code == 200
    assert listed(server) == [("base", None), ("first", "base")]
    assert "does not exist" in message_of(ask(server, "own-1"), 404)


def test_bad_adapters_are_refused_by_name_while_others_are_served(server, places):
    root, answers = places
    stop = threading.Event()
    wrong: list[object] = []

    def traffic(model, expected):
        while not stop.is_set():
            found = tokens_of(ask(server, model))
            wrong.extend([found] if found != expected else [])

    threads = [
        threading.Thread(target=traffic, args=args) for args in (("base", answers[""]), ("first", answers["a0"]))
    ]
    for thread in threads:
        thread.start()
    try:
        for _ in range(2):
            assert "rank 65 is greater than max_lora_rank 64" in message_of(load(server, "x", "bad/rank"))
            assert "DoRA" in message_of(load(server, "x", "bad/dora"))
            assert "modules_to_save" in message_of(load(server, "x", root / "adapters/bad/saved"))
            assert "has shape" in message_of(load(server, "x", "bad/shape"))
            assert "adapter_config.json is missing" in message_of(load(server, "x", "bad/empty"))
            assert "does not exist" in message_of(load(server, "x", "bad/nowhere"), 404)
            for outside in ("../outside", root / "outside", "link", "/etc"):
                assert "outside of --lora-dir" in message_of(load(server, "x", outside))
            assert "already been loaded" in message_of(load(server, "first", "a1"))
            assert "is the name of a model" in message_of(load(server, "base", "a1"))
            assert "cannot be found" in message_of(unload(server, "x"), 404)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong
    for body in ({}, {"lora_name": "x"}, {"lora_name": 1, "lora_path": "a1"}, {"lora_name": "", "lora_path": "a1"}):
        assert server.post("/v1/load_lora_adapter", **body).status_code == 400
    assert "printable" in message_of(load(server, "a\nb", "a1"))
    assert "lora_path" in message_of(load(server, "x", "a\0b"))
    assert listed(server) == [("base", None), ("first", "base")]


def test_an_adapter_is_replaced_in_place(server, places):
    _, answers = places
    assert load(server, "swap", "a1").status_code == 200
    assert tokens_of(ask(server, "swap")) == answers["a1"]
    assert load(server, "swap", "a2", load_inplace=True).status_code == 200
    for _ in range(4):  # both workers, and no cached prefix of the old one
        assert tokens_of(ask(server, "swap")) == answers["a2"]
    assert unload(server, "swap").status_code == 200


def test_forty_loads_under_traffic_leak_nothing(server, places):
    _, answers = places
    stop = threading.Event()
    odd: list[object] = []

    def traffic(name, expected):
        with httpx.Client() as client:
            while not stop.is_set():
                answer = ask(server, name, client)
                if answer.status_code == 404 and name == "guest":
                    continue  # between two loads
                found = answer.json().get("choices", [{}])[0].get("token_ids")
                if answer.status_code != 200 or (expected and found != expected) or found not in answers.values():
                    odd.append((name, answer.text))

    names = (("base", answers[""]), ("first", answers["a0"]), ("guest", None))
    threads = [threading.Thread(target=traffic, args=args) for args in names]
    for thread in threads:
        thread.start()
    memory = []
    try:
        for n in range(40):
            assert load(server, "guest", f"a{n % NUM_ADAPTERS}").status_code == 200
            assert unload(server, "guest").status_code == 200
            if n in (9, 39):
                memory.append(server.engine.memory_info().rss)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not odd
    print(f"engine memory after 10 and 40 loads: {memory[0] >> 20} and {memory[1] >> 20} MiB")
    assert memory[1] - memory[0] < 64 * 2**20  # 30 forgotten adapters would take 120 MiB
    eventually(lambda: server.metric("lora_adapters") == 1)
    assert server.metric("lora_slots_in_use") <= 2
    assert server.metric("num_requests_waiting_for_lora") == 0
    eventually(lambda: server.metric("kv_integrity_checks_total") > 0)
    assert server.metric("kv_integrity_errors_total") == 0
    assert server.metric("engine_restarts_total") == 0
    assert listed(server) == [("base", None), ("first", "base")]


def test_restarted_engine_has_its_adapters(server, places):
    _, answers = places
    assert load(server, "later", "a3").status_code == 200
    old = server.engine.pid
    psutil.Process(old).kill()
    eventually(lambda: server.get("/health").status_code == 503)
    assert load(server, "more", "a4").status_code in (200, 503)
    eventually(lambda: server.get("/health").status_code == 200, 60)
    assert server.engine.pid != old
    assert tokens_of(ask(server, "later")) == answers["a3"]
    assert tokens_of(ask(server, "first")) == answers["a0"]
    assert unload(server, "later").status_code == 200


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--enable-lora", "--lora-modules", "x={root}/adapters/bad/dora"), "does not yet support DoRA"),
        (("--enable-lora", "--lora-modules", "x={root}/adapters/bad/nowhere"), "is not a folder"),
        (("--enable-lora", "--lora-modules", "x={root}/adapters/bad/empty"), "holds no adapter_config.json"),
        (
            ("--enable-lora", "--lora-modules", "x=a", '{{"name":"y","path":"b","base_model_name":"z"}}'),
            "is not a folder",
        ),
        (("--enable-lora", "--lora-dir", "{root}/nowhere"), "no such folder"),
        (("--lora-modules", "x={root}/adapters/a1"), "add --enable-lora"),
    ],
)
def test_unsupported_adapter_stops_the_start(places, args, message):
    live = LiveServer(places[0] / "model", *(arg.format(root=places[0]) for arg in args))
    assert live.process.wait(60) == 2
    live._reader.join(5)
    errors = [line for line in live.lines if line.startswith("plugserve: error: ")]
    assert len(errors) == 1
    assert message in errors[0]
