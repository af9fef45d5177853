"""Speculation on a GPU, with captured and eager steps: on = off, token for token, in float32."""

from itertools import product

import pytest

from plugserve.backends.torch.runner.model_sources import DraftFiles
from plugserve.core.engine.acceptance import DraftPolicy
from plugserve.plugins.prefix_cache.lru_cache import BlockHashCache
from plugserve.plugins.speculative.ngram import NgramProposer
from tests.core.engine.test_combinations import draft_model
from tests.core.harness import LocalEngine, hugging_face_greedy
from tests.gpu.test_engine import LLAMA, PROMPTS, model_of

PROPOSERS = {
    "ngram": lambda **_: NgramProposer(3, 1),
    "greedy draft model": draft_model(is_greedy=True),
    "draft model": draft_model(is_greedy=False),
}


@pytest.fixture(scope="module")
def model():
    return model_of(LLAMA)


@pytest.fixture(scope="module")
def expected(model):
    return [hugging_face_greedy(model, prompt, 40) for prompt in PROMPTS]


@pytest.mark.parametrize("drafts", list(PROPOSERS))
@pytest.mark.parametrize(("enforce_eager", "has_prefix_cache", "is_tight"), list(product([False, True], repeat=3)))
def test_greedy_output_equals_hugging_face(drafts, enforce_eager, has_prefix_cache, is_tight, model, expected):
    weights = model.state_dict()
    shared = ("model.embed_tokens.weight", "lm_head.weight")
    own = {name: tensor for name, tensor in weights.items() if "layers." not in name or "layers.0." in name}
    files = DraftFiles(
        LLAMA | {"num_hidden_layers": 1, "share_embeddings": "target"},
        lambda: [(name, tensor) for name, tensor in own.items() if name not in shared],
    )
    with LocalEngine(
        LLAMA, weights, device="cuda", enforce_eager=enforce_eager, max_num_seqs=64, max_model_len=256,
        tokens=40 if is_tight else 512, num_blocks=24 if is_tight else 256,
        prefix_cache=BlockHashCache() if has_prefix_cache else None, proposer=PROPOSERS[drafts],
        draft_policy=DraftPolicy(4, is_adaptive=False), draft_files=files,
    ) as engine:  # fmt: skip
        for _ in range(2 if has_prefix_cache else 1):
            assert engine.generate(PROMPTS, max_tokens=40) == expected
        stats = engine.engine.stats
        assert 0 < stats.num_accepted_draft_tokens < stats.num_draft_tokens


@pytest.mark.parametrize("enforce_eager", [False, True])
def test_drafts_of_the_target_itself_are_all_accepted(enforce_eager, model, expected):
    with LocalEngine(
        LLAMA, model.state_dict(), device="cuda", enforce_eager=enforce_eager, max_num_seqs=64,
        proposer=PROPOSERS["draft model"], draft_policy=DraftPolicy(4, is_adaptive=False),
        draft_files=DraftFiles(LLAMA, model.state_dict().items),
    ) as engine:  # fmt: skip
        assert engine.generate(PROMPTS, max_tokens=40) == expected
        stats = engine.engine.stats
        assert stats.num_accepted_draft_tokens >= 0.97 * stats.num_draft_tokens > 0


def test_seeded_output_equals_that_without_speculation(model):
    seen = []
    for proposer in (None, PROPOSERS["ngram"], PROPOSERS["greedy draft model"]):
        with LocalEngine(
            LLAMA, model.state_dict(), device="cuda", max_num_seqs=64, proposer=proposer,
            draft_policy=DraftPolicy(4, is_adaptive=False) if proposer else None,
            draft_files=DraftFiles(LLAMA, model.state_dict().items),
        ) as engine:  # fmt: skip
            seen.append(engine.generate(PROMPTS, max_tokens=40, temperature=0.8, seed=3))
    assert seen[0] == seen[1] == seen[2]
