"""The embedded model on the real weights: greedy tokens equal Hugging Face's, however the steps are cut."""

from __future__ import annotations

import functools
import random

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from plugserve import LLM, SamplingParams
from plugserve.backends.torch.weights import iterate_weights
from plugserve.core.model_files.model_source import load_text_model, read_config, resolve
from plugserve.plugins.prefix_cache.lru_cache import BlockHashCache
from tests.core.harness import LocalEngine

TEXT = """The history of the city begins long before its walls were built along the river. Merchants came from the
north with wool, salt and amber; in the spring of 1234 the market filled with voices, and the council met under the
old oak. def main(args): return [x ** 2 for x in range(10)]  # squares
Water boils at 100 degrees Celsius at sea level, but on a high mountain it boils sooner, because the air is thin. """
MAX_TOKENS = 16
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf):
    source = resolve(str(smollm2_gguf))
    return source, read_config(source), dict(iterate_weights(source, show_progress=False))


@pytest.fixture(scope="module")
def prompts(smollm2):
    ids = load_text_model(smollm2[0]).encode(TEXT * 2)
    rng = random.Random(0)
    lengths = [1, 2, 7, 15, 16, 17, 31, 32, 33, 48, 64, 80, 100] + [rng.randint(1, 60) for _ in range(7)]
    starts = [rng.randrange(len(ids) - length) for length in lengths]
    return [ids[start : start + length] for start, length in zip(starts, lengths, strict=True)]


@pytest.fixture(scope="module")
def is_greedy(smollm2):
    """Whether tokens are what Hugging Face's model picks, each given those before it (so: its greedy output)."""
    _, config, weights = smollm2
    model = LlamaForCausalLM(LlamaConfig(**config)).eval()
    missing, stray = model.load_state_dict(weights, strict=False)
    assert missing in ([], ["lm_head.weight"])
    assert stray == []
    model.tie_weights()

    @functools.cache
    @torch.no_grad()
    def check(prompt, tokens):
        logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        return tuple(logits.argmax(-1).tolist()) == tokens

    return lambda prompt, tokens: check(tuple(prompt), tuple(tokens))


TIGHT = {"tokens": 128, "num_blocks": 8, "max_model_len": 128}
CUTS = {
    "all at once": {"tokens": 2048},
    "chunked": {"tokens": 40},
    "under KV pressure": TIGHT,
    "prefix cache and pressure": TIGHT | {"prefix_cache": True},
    "host tier and pressure": TIGHT | {"prefix_cache": True, "host_bytes": 80 << 20},
}
UNDER_PRESSURE = slice(3, 9)  # sequences that are computed again and again: six of the prompts


DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NEEDS_GPU])]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("cut", CUTS)
def test_prompts_equal_hugging_face_greedy(cut, device, smollm2, prompts, is_greedy):
    _, config, weights = smollm2
    prompts = prompts[UNDER_PRESSURE] if "pressure" in cut else prompts
    options = {"num_blocks": 1000, "max_model_len": 1024, "max_num_seqs": 32, "device": device} | CUTS[cut]
    if options.get("prefix_cache"):
        options["prefix_cache"] = BlockHashCache()
    with LocalEngine(config, weights, **options) as local:
        tokens = local.generate(prompts, max_tokens=MAX_TOKENS)
        num_preemptions = local.engine.stats.num_preemptions
        if "host tier" in cut:  # everything once more: what was evicted comes back
            assert local.generate(prompts, max_tokens=MAX_TOKENS) == tokens
            assert local.engine.snapshot().num_prefix_hit_tokens_host > 0
    assert [len(one) for one in tokens] == [MAX_TOKENS] * len(prompts)
    assert [is_greedy(prompt, one) for prompt, one in zip(prompts, tokens, strict=True)] == [True] * len(prompts)
    if "pressure" in cut:
        assert num_preemptions > 0


def test_a_programs_answers_equal_hugging_face_greedy(smollm2_gguf, prompts, is_greedy):
    params = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True)
    with LLM(str(smollm2_gguf), dtype="float32", device="cpu", max_model_len=512) as llm:
        outputs = llm.generate(prompts[3:6], params, use_tqdm=False)
    tokens = [output.outputs[0].token_ids for output in outputs]
    assert [len(one) for one in tokens] == [MAX_TOKENS] * 3
    assert [is_greedy(prompt, one) for prompt, one in zip(prompts[3:6], tokens, strict=True)] == [True] * 3
