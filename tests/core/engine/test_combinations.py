"""Features that must not change what is generated, in all combinations: on = off, token for token, in float32."""

from __future__ import annotations

import random
from itertools import product

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from plugserve.core.contracts import Drafts
from plugserve.core.engine.acceptance import DraftPolicy
from plugserve.plugins.prefix_cache.block_hash import BlockHashCache
from plugserve.plugins.speculative.ngram import NgramProposer
from tests.core.harness import LocalEngine, randomise

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
MAX_TOKENS = 40
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
    return model.config.to_dict() | {"architectures": ["LlamaForCausalLM"]}, model.state_dict()


@pytest.fixture(scope="module")
def prompts():
    rng = random.Random(2)
    shared = [rng.randrange(61) for _ in range(35)]
    made = [shared + [rng.randrange(61) for _ in range(rng.randint(0, 30))] for _ in PARAMS]
    made[1] = [3]
    made[2] = [4, 5] * 20
    return made


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
def plain(model, prompts):
    with LocalEngine(*model, tokens=256) as local:
        return local.generate_all(prompts, PARAMS, max_tokens=MAX_TOKENS)


def comparable(done):
    """What must be equal; logprobs may differ in the last bits."""
    return [(one["tokens"], one["finish"], one["error"]) for one in done]


@pytest.mark.parametrize("drafts", ["none", "ngram", "oracle"])
@pytest.mark.parametrize(("has_prefix_cache", "is_chunked", "is_tight"), list(product([False, True], repeat=3)))
def test_every_combination_gives_what_plain_decoding_gives(
    drafts, has_prefix_cache, is_chunked, is_tight, model, prompts, plain
):
    oracle = Oracle([prompt + one["tokens"] for prompt, one in zip(prompts, plain, strict=True)])
    proposers = {"none": None, "ngram": lambda **_: NgramProposer(3, 1), "oracle": lambda **_: oracle}
    local = LocalEngine(
        *model,
        tokens=24 if is_chunked else 256,
        num_blocks=22 if is_tight else 256,
        max_model_len=128,
        prefix_cache=BlockHashCache() if has_prefix_cache else None,
        proposer=proposers[drafts],
        draft_policy=DraftPolicy(4, is_adaptive=False) if drafts != "none" else None,
    )
    with local:
        for _ in range(2 if has_prefix_cache else 1):
            done = local.generate_all(prompts, PARAMS, max_tokens=MAX_TOKENS)
            assert comparable(done) == comparable(plain)
            for one, expected in zip(done, plain, strict=True):
                assert [entry.token_id for entry in one["logprobs"]] == [e.token_id for e in expected["logprobs"]]
                assert [entry.logprob for entry in one["logprobs"]] == pytest.approx(
                    [entry.logprob for entry in expected["logprobs"]], abs=1e-4
                )
                assert (one["prompt_logprobs"] is None) == (expected["prompt_logprobs"] is None)
        stats = local.engine.stats
        if drafts != "none":
            assert 0 < stats.num_accepted_draft_tokens < stats.num_draft_tokens
            assert stats.num_accepted_per_position[0] >= stats.num_accepted_per_position[-1] > 0
            assert sum(stats.num_accepted_per_position) == stats.num_accepted_draft_tokens
        if is_tight:
            assert stats.num_preemptions > 0
        if has_prefix_cache:
            assert stats.num_prefix_hit_tokens > 0
        local.engine.check_integrity()
