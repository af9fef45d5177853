"""Stages of a pipeline give the tokens of the whole model, with every feature of the engine, and compute at once."""

from __future__ import annotations

import threading
from array import array

import pytest
from llguidance import LLMatcher

from plugserve.backends.torch.models.make_model import make_model
from plugserve.backends.torch.parallel.stages import stage_layers
from plugserve.core.engine.structured_output import ConstraintCompiler
from plugserve.core.errors import ConfigError
from plugserve.plugins.prefix_cache.lru_cache import BlockHashCache
from tests.backends.torch.models.test_families import CASES
from tests.backends.torch.parallel.test_shared_models import GREEDY_AND_MORE, prompts, tiny, without_rounding
from tests.core.engine.test_structured_output import EOS, VOCAB, byte_tokenizer
from tests.core.harness import LocalEngine
from tests.core.thread_ranks import ThreadPipeline
from tests.lora_samples import adapter_tensors, write_adapter

TIED, UNTIED = "Qwen2", "Llama, llama3"
SHAPES = [(1, 2), (1, 3), (2, 2)]  # ranks a stage, stages


def both(config, weights, run, shape=(1, 2), **engine):
    """What run returns for one process and for a pipeline."""
    results = []
    for num_ranks, num_stages in ((1, 1), shape):
        with LocalEngine(config, weights, num_ranks=num_ranks, num_stages=num_stages, **engine) as local:
            results.append(run(local))
    return results


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("case", [TIED, UNTIED])
def test_stages_give_the_whole_models_tokens(case, shape):
    family, changes = CASES[case]
    alone, shared = both(
        *tiny(family, **changes), lambda local: local.generate(prompts(1, 25, 70, 130), max_tokens=8), shape, tokens=48
    )
    assert shared == alone


@pytest.mark.parametrize(
    "case", ["Qwen2, window in upper layers", "Gemma2, tight caps, biases", "Gemma3, scaled, layer types"]
)
def test_windows_and_frequencies_of_layers_go_with_them(case):
    family, changes = CASES[case]
    alone, shared = both(
        *tiny(family, **changes), lambda local: local.generate(prompts(1, 25, 70, 130), max_tokens=8), (1, 4), tokens=48
    )
    assert shared == alone


def test_a_sequence_that_outgrows_its_frequencies_starts_anew_on_all_stages():
    family, changes = CASES["Phi3, longrope"]
    alone, shared = both(*tiny(family, **changes), lambda local: local.generate(prompts(40, 44, 70), max_tokens=12))
    assert shared == alone


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sampling_parameters_and_logprobs_are_those_of_one_process(shape):
    def run(local):
        return without_rounding(local.generate_all(prompts(7, 19, 33, 8, 21), GREEDY_AND_MORE, max_tokens=10))

    alone, shared = both(*tiny("Llama"), run, shape, tokens=16)
    assert shared == alone


def test_prompt_logprobs_and_pooled_vectors_come_from_the_last_stage():
    params = [{"num_prompt_logprobs": 1}, {"pooling": "mean", "max_tokens": 0}]

    def run(local):
        scored, pooled = local.generate_all(prompts(30, 30), params, max_tokens=2)
        vector = [round(value, 4) for value in array("f", pooled["pooled"])]
        return [entry and round(entry.logprob, 4) for entry in scored["prompt_logprobs"]], vector

    alone, shared = both(*tiny("Llama"), run, tokens=16)
    assert shared == alone
    assert len(shared[0]) == 30
    assert any(shared[1])


@pytest.mark.parametrize("host_bytes", [0, 1 << 20], ids=["", "host memory"])
def test_prefix_cache_preemption_and_chunks(host_bytes):
    shared_start = prompts(64)[0]
    asked = [shared_start + one for one in prompts(3, 9, 30, 30, 12, 17)]

    def run(local):
        first, then = local.generate(asked, max_tokens=40), local.generate(asked, max_tokens=5)
        assert local.engine.stats.num_preemptions
        assert local.engine.stats.num_prefix_hit_tokens
        assert bool(local.engine.stats.num_swap_preemptions) == bool(host_bytes)
        return first, then

    config, weights = tiny("Qwen2")
    results = []
    for num_stages in (1, 2):
        with LocalEngine(
            config, weights, num_stages=num_stages, prefix_cache=BlockHashCache(), num_blocks=22, tokens=40,
            max_num_seqs=6, max_model_len=300, host_bytes=host_bytes,
        ) as local:  # fmt: skip
            results.append(run(local))
    assert results[1] == results[0]


@pytest.mark.parametrize("shape", [(1, 2), (2, 2)], ids=str)
def test_lora_adapters_are_cut_by_layers(tmp_path, shape):
    config, weights = tiny("Llama")
    for number in (1, 2):
        write_adapter(tmp_path / str(number), adapter_tensors(weights, seed=number))

    def run(local):
        for number in (1, 2):
            local.load_adapter(number, tmp_path / str(number))
        done = local.generate_all(prompts(9, 20, 31), adapters=[0, 1, 2], max_tokens=8)
        for number in (1, 2):
            local.engine.adapters.retire(number)
        return [entry["tokens"] for entry in done]

    alone, shared = both(config, weights, run, shape, max_loras=2)
    assert shared == alone
    assert len({tuple(tokens) for tokens in alone}) == 3


def test_grammars_hold_in_every_group():
    config, weights = tiny("Llama", vocab_size=VOCAB)
    grammar = LLMatcher.grammar_from_regex("[a-f]{3}-[0-9]{12}")
    params = [{"grammar": grammar}, {}, {"grammar": grammar, "temperature": 0.8}, {}, {"grammar": grammar}]

    def run(local):
        done = local.generate_all(prompts(7, 40, 33, 8, 21), params, max_tokens=20)
        return [entry["tokens"] for entry in done]

    compiler = ConstraintCompiler(byte_tokenizer, VOCAB, [EOS])
    alone, shared = both(config, weights, run, tokens=32, eos=[EOS], compiler=compiler)
    assert shared == alone
    assert bytes(shared[0][:4]).decode()[3] == "-"


def test_stages_compute_different_groups_at_the_same_time(monkeypatch):
    """The last stage holds each of its first steps back until the first stage has computed the one after it."""
    computed = [threading.Event() for _ in range(8)]
    sent, received = iter(computed), iter(computed[1:])
    send, receive = ThreadPipeline.send_hidden, ThreadPipeline.receive_hidden

    def send_and_tell(self, x):
        send(self, x)
        next(sent, threading.Event()).set()

    def wait_and_receive(self, *shape):
        event = next(received, None)
        assert event is None or event.wait(20), "the first stage waits for the last"
        return receive(self, *shape)

    monkeypatch.setattr(ThreadPipeline, "send_hidden", send_and_tell)
    monkeypatch.setattr(ThreadPipeline, "receive_hidden", wait_and_receive)
    config, weights = tiny("Llama")
    with LocalEngine(config, weights, num_stages=2) as local:
        assert all(len(tokens) == 12 for tokens in local.generate(prompts(5, 6, 7, 8), max_tokens=12))


def test_layers_are_spread_by_time_and_the_head_counts():
    config, _ = tiny("Llama", num_hidden_layers=12, vocab_size=2000)
    spec = make_model(config).whole_spec
    stages = stage_layers(spec, 3)
    assert [layer for stage in stages for layer in stage] == list(range(12))
    assert len(stages[2]) < len(stages[1]) <= len(stages[0]) + 1  # the head has the weights of several layers
    assert [len(stage) for stage in stage_layers(spec, 12)] == [1] * 12


def test_each_stage_loads_its_own_weights_only():
    config, weights = tiny("Llama")
    with LocalEngine(config, weights, num_stages=2) as local:
        first, last = (runner.loaded.model.places() for runner in local.runner.runners)
    assert first.keys().isdisjoint(last.keys())
    assert {*first, *last} == set(make_model(config).parameters())
    assert "model.embed_tokens.weight" in first
    assert "lm_head.weight" in last


def test_more_stages_than_layers_are_refused():
    with pytest.raises(ConfigError, match=r"--pipeline-parallel-size 5: this model has 4 layers; use at most 4"):
        LocalEngine(*tiny("Llama"), num_stages=5)
