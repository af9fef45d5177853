"""Weights in host memory: which parts, in what order they are copied, and equal logits; over links that copy as early
and as late as a device may."""

from __future__ import annotations

import logging
import random
from itertools import pairwise

import pytest
import torch
from transformers import GPT2Config

from plugserve.backends.torch.models.make_model import make_model
from plugserve.backends.torch.models.streamed_parts import spread
from plugserve.backends.torch.runner.devices import CpuKind
from plugserve.backends.torch.runner.model_sources import DraftFiles
from plugserve.backends.torch.runner.weight_offload import GIB, WeightOffload
from plugserve.core.engine.acceptance import DraftPolicy
from plugserve.core.errors import ConfigError
from tests.backends.torch.models.gpt2_plugin import Gpt2
from tests.core.engine.test_combinations import draft_model
from tests.core.harness import LocalEngine
from tests.gpu.test_engine import GEMMA3, LLAMA, PROMPTS, QWEN3, model_of
from tests.lora_samples import adapter_tensors, write_adapter

BIASES = {**LLAMA, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "num_hidden_layers": 5}


class RecordingLink:
    """A Link on the CPU that records calls. early: copies are made when they may start, else when they are awaited and
    buffers hold nothing useful before."""

    def __init__(self, is_early):
        self.is_early = is_early
        self.calls = []
        self.waiting = {}

    def host_memory(self, num_bytes):
        cut = num_bytes // 2
        return [torch.empty(cut, dtype=torch.uint8), torch.empty(num_bytes - cut, dtype=torch.uint8)]

    def device_memory(self, num_bytes):
        return torch.empty(num_bytes, dtype=torch.uint8)

    def start(self, number, pieces, buffer):
        assert number not in self.waiting, "a copy into a buffer that waits for one"
        self.calls.append(("start", number))
        buffer.fill_(255)  # no number in any dtype
        self.waiting[number] = lambda: torch.cat(list(pieces), out=buffer[: sum(map(len, pieces))])
        if self.is_early:
            self.waiting[number]()

    def wait(self, number):
        self.calls.append(("wait", number))
        self.waiting.pop(number)()

    def synchronize(self):
        self.waiting.clear()


@pytest.fixture(params=[True, False], ids=["early", "late"])
def link(request, monkeypatch):
    link = RecordingLink(request.param)
    monkeypatch.setattr(CpuKind, "weight_link", lambda self: link)
    return link


def layer_bytes(config):
    """Bytes of the layers' projections."""
    return sum(tensor.numel() * 4 for name, tensor in model_of(config).state_dict().items() if "_proj." in name)


# ---------------------------------------------------------------- which parts


def test_parts_are_spread_evenly_and_hold_at_least_what_was_asked_for():
    rng = random.Random(0)
    for _ in range(500):
        sizes = [rng.choice([10, 80, 81]) for _ in range(rng.randint(1, 40))]
        wanted = rng.randint(1, sum(sizes))
        chosen = spread(sizes, wanted)
        taken = sum(sizes[i] for i in chosen)
        assert wanted <= taken < wanted + max(sizes)
        for end in range(len(sizes) + 1):  # never far from its share
            due = wanted * sum(sizes[:end]) / sum(sizes)
            assert abs(sum(sizes[i] for i in chosen if i < end) - due) <= 2 * max(sizes)


def test_equal_parts_are_spread_without_gaps():
    chosen = sorted(spread([10] * 30, 100))
    assert len(chosen) == 10
    assert {b - a for a, b in pairwise(chosen)} == {3}
    assert chosen[0] == 2  # what runs before it hides its copy


def test_more_than_all_is_all():
    assert spread([10, 20, 30], 1000) == frozenset({0, 1, 2})


# ---------------------------------------------------------------- the model


@pytest.mark.parametrize("config", [LLAMA, GEMMA3, QWEN3, BIASES], ids=["llama", "gemma3", "qwen3", "biases"])
def test_logits_are_equal_to_the_last_bit(config, link):
    weights = model_of(config).state_dict()
    params = {"num_logprobs": 5, "num_prompt_logprobs": 1, "max_tokens": 4}
    with LocalEngine(config, weights, num_blocks=32) as plain:
        expected = plain.generate_all(PROMPTS[:5], **params)
    for share in (0.01, 0.4, 0.8, 2.0):
        offload_bytes = int(share * layer_bytes(config))
        with LocalEngine(config, weights, num_blocks=32, offload_bytes=offload_bytes) as offloaded:
            assert offloaded.generate_all(PROMPTS[:5], **params) == expected  # logprobs, too
            info = offloaded.runner.loaded.info
        assert not link.waiting
        assert info.offloaded_weight_bytes >= min(offload_bytes, layer_bytes(config))


@pytest.mark.parametrize("share", [0.4, 2.0])
def test_copies_run_one_part_ahead_and_every_buffer_is_awaited_before_it_is_filled_again(share, link):
    with LocalEngine(BIASES, model_of(BIASES).state_dict(), offload_bytes=int(share * layer_bytes(BIASES))) as engine:
        num_parts = len(engine.runner.loaded.model._on_host)
        link.calls.clear()
        engine.generate([[1, 2, 3]], max_tokens=1)
    numbers = [n % 2 for n in range(num_parts)]
    assert [number for call, number in link.calls if call == "start"] == numbers
    assert [number for call, number in link.calls if call == "wait"] == numbers
    assert [call for call, _ in link.calls[:3]] == ["start", "start", "wait"]
    ahead = [sum(1 if call == "start" else -1 for call, _ in link.calls[:end]) for end in range(len(link.calls) + 1)]
    assert max(ahead) == 2
    assert min(ahead[1:-3]) >= 1  # while parts are left, a copy is always under way beside the part that computes


def test_device_memory_is_what_stays_and_two_buffers(link):
    weights = model_of(LLAMA).state_dict()
    with LocalEngine(LLAMA, weights) as plain:
        all_bytes = plain.runner.loaded.info.weight_bytes
    assert all_bytes == sum(tensor.numel() * 4 for tensor in weights.values())
    with LocalEngine(LLAMA, weights, offload_bytes=2 * layer_bytes(LLAMA)) as offloaded:
        info = offloaded.runner.loaded.info
    largest = 4 * 192 * (2 * 6 + 2 * 2) * 64  # attention
    assert info.offloaded_weight_bytes == layer_bytes(LLAMA)
    assert info.weight_bytes == all_bytes - layer_bytes(LLAMA) + 2 * largest


def test_adapters_drafts_and_chunked_prompts_change_no_token(link, tmp_path):
    weights = {name: tensor.detach() for name, tensor in model_of(LLAMA).state_dict().items()}
    write_adapter(tmp_path / "1", adapter_tensors(weights, rank=4, seed=1), r=4)
    drafts = {
        "proposer": draft_model(is_greedy=True),
        "draft_policy": DraftPolicy(3, is_adaptive=False),
        "draft_files": DraftFiles(LLAMA, weights.items),
    }
    answers = []
    for offload_bytes in (0, layer_bytes(LLAMA) // 2):
        with LocalEngine(LLAMA, weights, tokens=24, max_loras=1, offload_bytes=offload_bytes, **drafts) as engine:
            engine.load_adapter(1, tmp_path / "1")
            done = engine.generate_all(PROMPTS, adapters=[0, 1] * 3 + [0], max_tokens=6)
            answers.append([entry["tokens"] for entry in done])
            assert engine.engine.stats.num_accepted_draft_tokens > 0
    assert link.calls
    assert answers[0] == answers[1]


def test_shared_embeddings_of_a_draft_are_the_offloaded_models(link):
    model = model_of(LLAMA)
    weights = {name: tensor for name, tensor in model.state_dict().items() if "layers.1" not in name}
    weights = {name: tensor for name, tensor in weights.items() if "layers.2" not in name}
    shared = ("model.embed_tokens.weight", "lm_head.weight")
    config = LLAMA | {"num_hidden_layers": 1, "share_embeddings": "target"}
    files = DraftFiles(config, lambda: [(name, one) for name, one in weights.items() if name not in shared])
    with LocalEngine(LLAMA, model.state_dict()) as plain:
        expected = plain.generate(PROMPTS[:4], max_tokens=8)
    with LocalEngine(
        LLAMA, model.state_dict(), offload_bytes=1 << 20, proposer=draft_model(is_greedy=True),
        draft_policy=DraftPolicy(3, is_adaptive=False), draft_files=files,
    ) as engine:  # fmt: skip
        assert engine.generate(PROMPTS[:4], max_tokens=8) == expected


# ---------------------------------------------------------------- what can't be


def test_more_than_the_layers_hold_is_lowered_in_one_line(link, caplog):
    caplog.set_level(logging.INFO, logger="plugserve")
    with LocalEngine(LLAMA, model_of(LLAMA).state_dict(), offload_bytes=GIB) as engine:
        assert engine.runner.loaded.info.offloaded_weight_bytes == layer_bytes(LLAMA)
    assert "--cpu-offload-gb lowered from=1 to=0.00 GiB: the layers' attention and MLPs hold no more" in caplog.text
    assert "weights in host memory gib=0.00 parts=6 buffers_gib=0.00 link_gb_per_s=" in caplog.text


def test_model_of_a_plugins_own_code_is_refused(link):
    config = GPT2Config(n_embd=32, n_layer=1, n_head=4).to_dict()
    with pytest.raises(ConfigError, match=r"--cpu-offload-gb 1: .* is a plugin's own code"):
        WeightOffload(GIB, link).prepare(Gpt2(config))


def test_more_than_the_hosts_memory_is_refused(link):
    with pytest.raises(ConfigError, match=r"--cpu-offload-gb 1e\+06 does not fit: .* GiB of host memory are left"):
        WeightOffload(10**6 * GIB, link).prepare(make_model(LLAMA))


def test_on_a_cpu_all_weights_stay_where_they_are():
    with LocalEngine(LLAMA, model_of(LLAMA).state_dict(), offload_bytes=1 << 20) as engine:
        assert engine.runner.loaded.info.offloaded_weight_bytes == 0
