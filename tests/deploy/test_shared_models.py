"""Models that several processes of this machine share, through mp and gloo: the greedy tokens of one process; an error
and a new start when a stage is lost."""

import json
import signal

import pytest

from plugserve import LLM, SamplingParams
from tests.e2e.live_server import LiveServer
from tests.e2e.test_ranks import ASKED, lose_rank, texts

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
}
PROMPTS = ["Once upon a time", "The capital of France is", "def fibonacci(n):", "One, two, three,", "word " * 200]
GREEDY = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True)


def tokens(model, **settings):
    with LLM(model, dtype="float32", max_model_len=1024, max_num_batched_tokens=128, **settings) as llm:
        return [list(output.outputs[0].token_ids) for output in llm.generate(PROMPTS, GREEDY, use_tqdm=False)]


@pytest.fixture(scope="module")
def smollm2_tokens(smollm2_gguf):
    return tokens(str(smollm2_gguf))


@pytest.mark.parametrize(("tensor", "stages"), [(1, 2), (1, 3), (3, 1)])
def test_smollm2(smollm2_gguf, smollm2_tokens, tensor, stages):
    sizes = {"tensor_parallel_size": tensor, "pipeline_parallel_size": stages}
    assert tokens(str(smollm2_gguf), **sizes) == smollm2_tokens


@pytest.mark.parametrize("is_tied", [False, True], ids=["untied", "tied"])
def test_stages_of_two_ranks(tmp_path, smollm2_gguf, is_tied):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"tie_word_embeddings": is_tied}))
    settings = {"tokenizer": str(smollm2_gguf), "load_format": "dummy"}
    sizes = {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}
    assert tokens(str(tmp_path), **settings, **sizes) == tokens(str(tmp_path), **settings)


def test_a_lost_stage_ends_requests_and_the_group_comes_back(tmp_path, smollm2_gguf):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    settings = {"tokenizer": str(smollm2_gguf), "load_format": "dummy", "max_model_len": 4096, "dtype": "float32"}
    with LLM(str(tmp_path), **settings) as alone:
        asked = [{"temperature": 0.0, **one} for one in ASKED]
        prompts = [one.pop("prompt") for one in asked]
        params = [SamplingParams(**one) for one in asked]
        expected = [output.outputs[0].text for output in alone.generate(prompts, params, use_tqdm=False)]
    arguments = [
        "--model",
        f"tiny={tmp_path}",
        "--tokenizer",
        smollm2_gguf,
        "--load-format",
        "dummy",
        "--dtype",
        "float32",
    ]
    with LiveServer(*arguments, "--max-model-len", 4096, "--pipeline-parallel-size", 2) as server:
        assert texts(server) == expected
        result, ended_s = lose_rank(server, signal.SIGKILL)
        print(f"the stream ended after {ended_s:.3f} s")
        assert any('"error"' in line for line in result)
        assert texts(server) == expected
        assert "was killed by signal 9" in server.log
