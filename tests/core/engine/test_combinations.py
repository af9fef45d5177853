"""Features that must not change what is generated, in all combinations: on = off, token for token, in float32."""

from __future__ import annotations

import random
from itertools import product

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from plugserve.backends.torch.runner.model_sources import DraftFiles
from plugserve.core.contracts.drafting import Drafts
from plugserve.core.engine.acceptance import DraftPolicy
from plugserve.plugins.prefix_cache.lru_cache import BlockHashCache
from plugserve.plugins.speculative.draft_model import DraftModelProposer
from plugserve.plugins.speculative.ngram import NgramProposer
from tests.core.harness import LocalEngine, randomise
from tests.lora_samples import adapter_tensors, write_adapter

CONFIG = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 61,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": None,
}
MAX_TOKENS = 28
EACH_THIRD = 3  # has an adapter, where there are any
PARAMS = [
    {},
    {"num_logprobs": 2},
    {"stop_token_ids": (7, 8, 9)},
    {"stop_token_ids": (7, 8, 9), "min_tokens": 12},
    {"repetition_penalty": 1.3, "frequency_penalty": 0.2, "presence_penalty": 0.1},
    {"logit_bias": {5: 4.0}},
    {"allowed_token_ids": tuple(range(10, 30))},
    {"bad_words": ((11, 12), (13,))},
    {"temperature": 0.9, "seed": 11},
    {"temperature": 1.3, "seed": 12, "top_k": 5},
    {"temperature": 0.8, "seed": 13, "top_p": 0.8},
    {"temperature": 0.7, "seed": 14, "min_p": 0.1},
    {"max_tokens": 1},
    {"max_tokens": 2},
    {"num_prompt_logprobs": 1},
]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = randomise(LlamaForCausalLM(LlamaConfig(**CONFIG)).float())
    with torch.no_grad():
        for part in (model.model.layers[1].self_attn.o_proj, model.model.layers[1].mlp.down_proj):
            part.weight *= 0.4  # so that the first layer alone is often right
    return model.config.to_dict() | {"architectures": ["LlamaForCausalLM"]}, model.state_dict()


@pytest.fixture(scope="module")
def prompts():
    rng = random.Random(2)
    shared = [rng.randrange(61) for _ in range(35)]
    made = [shared + [rng.randrange(61) for _ in range(rng.randint(0, 30))] for _ in PARAMS]
    made[1] = [3]
    made[2] = [4, 5] * 20
    return made


@pytest.fixture(scope="module")
def draft_files(model):
    """A draft that is often right: the target's first layer under the target's embeddings."""
    config, weights = model
    own = {name: tensor for name, tensor in weights.items() if "layers.0." in name or name == "model.norm.weight"}
    return DraftFiles(config | {"num_hidden_layers": 1, "share_embeddings": "target"}, own.items)


def draft_model(is_greedy):
    """What makes a proposer that drafts with the harness's draft files."""

    def make(build_runner, reserve_kv, **_):
        runner = build_runner("draft")
        reserve_kv(runner.kv_bytes_per_token)
        return DraftModelProposer(runner, is_greedy)

    return make


class Oracle:
    """Drafts what the target will say, as far as known, with a wrong token now and then."""

    def __init__(self, texts):
        self._texts = texts
        self.forgotten = set()

    def propose(self, step, k):
        tokens = torch.zeros((len(step.rows), k), dtype=torch.int32)
        counts = []
        for i, (id, length, most) in enumerate(zip(step.ids, step.lengths, step.num_drafts, strict=True)):
            rng = random.Random(100 * id + length)
            known = step.tokens[step.rows[i], :length].tolist()
            text = next(text for text in self._texts if text[: len(known)] == known)
            drafts = text[length : length + rng.randint(0, most)]
            if drafts and rng.random() < 0.5:
                at = rng.randrange(len(drafts))
                drafts[at] = (drafts[at] + 1) % 61
            tokens[i, : len(drafts)] = torch.tensor(drafts, dtype=torch.int32)
            counts.append(len(drafts))
        return Drafts(tokens, counts)

    def forget(self, id):
        self.forgotten.add(id)


@pytest.fixture(scope="module")
def adapter(model, tmp_path_factory):
    return write_adapter(tmp_path_factory.mktemp("adapter"), adapter_tensors(model[1], seed=4, scale=0.3))


def adapters_of(has_lora):
    return [int(has_lora and i % EACH_THIRD == 1) for i in range(len(PARAMS))]


@pytest.fixture(scope="module")
def plain(model, prompts, adapter):
    """What plain decoding gives, without and with adapters on each third request."""
    runs = []
    for has_lora in (False, True):
        with LocalEngine(*model, tokens=256, max_loras=1) as local:
            local.load_adapter(1, adapter)
            adapters = adapters_of(has_lora)
            runs.append(local.generate_all(prompts, PARAMS, adapters=adapters, max_tokens=MAX_TOKENS))
    without, with_adapters = (comparable(run) for run in runs)
    assert [i for i, (a, b) in enumerate(zip(without, with_adapters, strict=True)) if a != b]
    return runs


def comparable(done):
    """What must be equal; logprobs may differ in the last bits."""
    return [(one["tokens"], one["finish"], one["error"]) for one in done]


@pytest.mark.parametrize("drafts", ["none", "ngram", "oracle", "greedy draft model", "draft model"])
@pytest.mark.parametrize(
    ("has_prefix_cache", "is_chunked", "is_tight", "has_lora"), list(product([False, True], repeat=4))
)
def test_every_combination_gives_what_plain_decoding_gives(
    drafts, has_prefix_cache, is_chunked, is_tight, has_lora, model, prompts, plain, draft_files, adapter
):
    plain = plain[has_lora]
    oracle = Oracle([prompt + one["tokens"] for prompt, one in zip(prompts, plain, strict=True)])
    proposers = {"none": None, "ngram": lambda **_: NgramProposer(3, 1), "oracle": lambda **_: oracle}
    proposers |= {"greedy draft model": draft_model(is_greedy=True), "draft model": draft_model(is_greedy=False)}
    local = LocalEngine(
        *model,
        tokens=24 if is_chunked else 256,
        num_blocks=22 if is_tight else 256,
        max_model_len=128,
        host_bytes=(1 << 22) if is_chunked else 0,
        prefix_cache=BlockHashCache() if has_prefix_cache else None,
        proposer=proposers[drafts],
        draft_policy=DraftPolicy(4, is_adaptive=False) if drafts != "none" else None,
        draft_files=draft_files,
        max_loras=int(has_lora),
    )
    draws_by_chance = drafts == "draft model"  # leaves the distribution as it is, not the draws
    same = [i for i, params in enumerate(PARAMS) if not (draws_by_chance and params.get("temperature"))]
    with local:
        if has_lora:
            local.load_adapter(1, adapter)
        for _ in range(2 if has_prefix_cache else 1):
            done = local.generate_all(prompts, PARAMS, adapters=adapters_of(has_lora), max_tokens=MAX_TOKENS)
            assert comparable(done[i] for i in same) == comparable(plain[i] for i in same)
            assert [len(one["tokens"]) for one in done] == [len(one["tokens"]) for one in plain]
            for one, expected in ((done[i], plain[i]) for i in same):
                assert [entry.token_id for entry in one["logprobs"]] == [e.token_id for e in expected["logprobs"]]
                assert [entry.logprob for entry in one["logprobs"]] == pytest.approx(
                    [entry.logprob for entry in expected["logprobs"]], abs=1e-4
                )
                assert (one["prompt_logprobs"] is None) == (expected["prompt_logprobs"] is None)
        stats = local.engine.stats
        if drafts != "none":
            assert 0 < stats.num_accepted_draft_tokens < stats.num_draft_tokens
            assert stats.num_accepted_per_position[0] >= stats.num_accepted_per_position[1] > 0
            assert sum(stats.num_accepted_per_position) == stats.num_accepted_draft_tokens
        if is_tight:
            assert stats.num_preemptions > 0
        if has_prefix_cache:
            assert stats.num_prefix_hit_tokens > 0
        local.engine.check_integrity()


@pytest.mark.parametrize("drafts", ["none", "ngram", "greedy draft model"])
@pytest.mark.parametrize("has_lora", [False, True])
def test_prefixes_that_were_in_host_memory_change_nothing(
    drafts, has_lora, model, prompts, plain, draft_files, adapter
):
    proposers = {"ngram": lambda **_: NgramProposer(3, 1), "greedy draft model": draft_model(is_greedy=True)}
    local = LocalEngine(
        *model,
        tokens=24,
        num_blocks=22,
        max_model_len=128,
        prefix_cache=BlockHashCache(),
        host_bytes=500_000,
        proposer=proposers.get(drafts),
        draft_policy=DraftPolicy(4, is_adaptive=False) if drafts != "none" else None,
        draft_files=draft_files,
        max_loras=int(has_lora),
    )
    with local:
        if has_lora:
            local.load_adapter(1, adapter)
        for _ in range(2):
            done = local.generate_all(prompts, PARAMS, adapters=adapters_of(has_lora), max_tokens=MAX_TOKENS)
            assert comparable(done) == comparable(plain[has_lora])
        stats = local.engine.snapshot()
        assert stats.num_preemptions > 0
        assert stats.num_prefix_hit_tokens_host > 0


class Moody(DraftPolicy):
    """Asks for another number of drafts each time, none included."""

    def __init__(self):
        super().__init__(4)
        self._rng = random.Random(1)

    def num_drafts(self, acceptance):
        return self._rng.randint(0, 4)


@pytest.mark.parametrize(
    ("has_prefix_cache", "is_tight", "host_bytes"),
    [(False, False, 0), (True, False, 0), (True, True, 0), (True, True, 500_000)],
)
def test_a_draft_model_that_is_the_target_is_always_right(
    has_prefix_cache, is_tight, host_bytes, model, prompts, plain
):
    """Whatever a row went through, the draft model sees its true history: stale keys would show as refused drafts."""
    config, weights = model
    local = LocalEngine(
        *model,
        tokens=24,
        num_blocks=22 if is_tight else 256,
        max_model_len=128,
        prefix_cache=BlockHashCache() if has_prefix_cache else None,
        host_bytes=host_bytes,
        proposer=draft_model(is_greedy=False),
        draft_policy=Moody(),
        draft_files=DraftFiles(config, weights.items),
    )
    greedy = [i for i, params in enumerate(PARAMS) if not params.get("temperature")]
    with local:
        for _ in range(2):
            done = local.generate_all(prompts, PARAMS, max_tokens=MAX_TOKENS)
            assert comparable(done[i] for i in greedy) == comparable(plain[0][i] for i in greedy)
        stats = local.engine.stats
        assert stats.num_accepted_draft_tokens == stats.num_draft_tokens > 80
        assert (stats.num_preemptions > 0) == is_tight
