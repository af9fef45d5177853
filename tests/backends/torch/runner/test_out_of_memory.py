"""Memory that runs out in a step: requests get their tokens in smaller passes, or fail alone with the ledger, and the
engine goes on."""

from __future__ import annotations

import pytest
import torch

from plugserve.backends.torch.runner.out_of_memory import ExplainedMemoryError
from plugserve.plugins.prefix_cache.lru_cache import BlockHashCache
from tests.core.engine.test_combinations import model  # noqa: F401
from tests.core.harness import LocalEngine

PROMPTS = [[3 + (i * n) % 50 for i in range(length)] for n, length in ((1, 9), (3, 30), (7, 5), (5, 12))]
POISON = 60  # a token of which no pass has memory for two


@pytest.fixture
def expected(model):  # noqa: F811
    with LocalEngine(*model) as local:
        return local.generate(PROMPTS)


def limit(local, allowed):
    """Let passes of these token ids fail that allowed refuses; returns their sizes."""
    decoder, sizes = local.runner.loaded.model, []
    forward = decoder.forward

    def limited(token_ids, step):
        sizes.append(len(token_ids))
        if not allowed(token_ids):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(token_ids, step)

    decoder.forward = limited
    return sizes


@pytest.mark.parametrize("has_cache", [False, True])
def test_smaller_passes_give_the_same_tokens(model, expected, caplog, has_cache):  # noqa: F811
    with LocalEngine(*model, prefix_cache=BlockHashCache() if has_cache else None) as local:
        sizes = limit(local, lambda ids: len(ids) <= 30)
        assert local.generate(PROMPTS) == expected
    assert max(sizes) > 30, "some pass was too large"
    assert "out of memory in a step, the engine goes on" in caplog.text
    assert "memory: " in caplog.text


def test_a_request_that_takes_too_much_fails_alone_with_the_ledger(model, expected):  # noqa: F811
    with LocalEngine(*model) as local:
        limit(local, lambda ids: int((ids == POISON).sum()) < 2)
        done = local.generate_all([*PROMPTS[:2], [4, POISON, POISON, 5], *PROMPTS[2:]])
        errors = [one["error"] for one in done]
        assert errors[2].startswith("memory ran out in the request's step; the model was to take ")
        assert "weights" in errors[2]
        assert "host memory" in errors[2]
        assert errors[:2] + errors[3:] == [None] * 4
        assert [one["tokens"] for one in done[:2] + done[3:]] == expected
        assert local.generate(PROMPTS) == expected, "the engine goes on"


def test_no_request_of_the_step_can_be_computed(model, expected):  # noqa: F811
    with LocalEngine(*model) as local:
        is_short = [True]
        limit(local, lambda ids: not is_short[0])
        done = local.generate_all(PROMPTS)
        assert all(one["error"].count("memory ran out") == 1 for one in done)
        is_short[0] = False
        assert local.generate(PROMPTS) == expected


def test_sampling_that_runs_out_fails_its_step_alone(model, expected):  # noqa: F811
    with LocalEngine(*model) as local:
        sampler = local.runner.loaded.steps.sampler
        sample = sampler.sample

        def fail(*arguments):
            sampler.sample = sample
            raise MemoryError

        sampler.sample = fail
        assert "memory ran out" in local.generate_all(PROMPTS[:1])[0]["error"]
        assert local.generate(PROMPTS) == expected


def test_prompt_logprobs_that_run_out_fail_the_request_that_asked(model, expected, monkeypatch):  # noqa: F811
    def fail(*arguments):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    with LocalEngine(*model) as local:
        monkeypatch.setattr(local.runner.loaded.steps.prompt_logprobs, "_score", fail)
        done = local.generate_all(PROMPTS, [{"num_prompt_logprobs": 1}, {}, {}, {}])
        assert "memory ran out" in done[0]["error"]
        assert [one["tokens"] for one in done[1:]] == expected[1:]


def test_other_errors_are_no_matter_of_memory(model):  # noqa: F811
    with LocalEngine(*model) as local:

        def fail(token_ids, step):
            raise RuntimeError("shapes don't match")

        local.runner.loaded.model.forward = fail
        assert local.generate_all(PROMPTS[:1])[0]["error"] == "the model runner failed: RuntimeError"


def test_a_failure_is_reported_once(model, caplog):  # noqa: F811
    with LocalEngine(*model) as local:
        memory = local.runner.loaded.steps.memory
        reason = memory.report(MemoryError())
        assert caplog.text.count("out of memory in a step") == 1
        assert memory.report(ExplainedMemoryError(reason)) == reason
        assert caplog.text.count("out of memory in a step") == 1
