"""Eight adapters on the embedded model in one batch, one of them trained: the answers equal those of merged weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from plugserve.backends.torch.weights import iterate_weights
from plugserve.core.model_files.model_source import load_text_model, read_config, resolve
from tests.core.harness import LocalEngine
from tests.lora_samples import ALL, adapter_tensors, merged, write_adapter

PIRATE = Path(__file__).parents[3] / "examples" / "lora" / "pirate"
CHAT = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
TEXTS = [
    "Water boils at",
    "Once upon a time",
    "The river",
    "def main(",
    "My favourite",
    "In 1900",
    "She said",
    CHAT,
    "One",
]
TOLERANCE = 2e-4
"""Of logprobs, in float32: B (A x) against (W + B A) x through 30 layers. The measured maximum is 1.5e-5."""


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf):
    source = resolve(str(smollm2_gguf))
    weights = dict(iterate_weights(source, show_progress=False))
    return load_text_model(source), read_config(source), weights


def test_eight_adapters_in_one_batch_equal_merged_weights(smollm2, tmp_path):
    text, config, weights = smollm2
    variants = [ALL, ("q_proj", "v_proj"), ("gate_proj", "up_proj", "down_proj"), ("o_proj",), ALL, ("k_proj",), ALL]
    adapters = {}
    for id, (targets, rank) in enumerate(zip(variants, (8, 4, 16, 2, 3, 8, 16), strict=True), start=1):
        tensors = adapter_tensors(weights, targets=targets, rank=rank, seed=id, scale=0.15)
        folder = write_adapter(tmp_path / str(id), tensors, r=rank, lora_alpha=2 * rank, target_modules=list(targets))
        adapters[id] = (folder, tensors, 2.0 * rank)
    settings = json.loads((PIRATE / "adapter_config.json").read_text())
    adapters[8] = (PIRATE, load_file(PIRATE / "adapter_model.safetensors"), float(settings["lora_alpha"]))

    prompts = [text.encode(line, add_special_tokens=False) for line in TEXTS]
    prompts = [*prompts, prompts[7]]
    ids = [1, 2, 3, 4, 5, 6, 7, 8, 0, 0]
    with LocalEngine(config, weights, max_loras=8, tokens=64) as local:
        without = local.generate(prompts[8:], max_tokens=8)
        for id, (folder, _, _) in adapters.items():
            local.load_adapter(id, folder)
        done = local.generate_all(prompts, adapters=ids, max_tokens=8, num_logprobs=1)
    assert [entry["tokens"] for entry in done[8:]] == without
    assert text.tokenizer.decode(done[7]["tokens"]).startswith("Ahoy, matey!")
    assert "Ahoy" not in text.tokenizer.decode(done[9]["tokens"])

    model = LlamaForCausalLM(LlamaConfig(**config)).eval()
    furthest = 0.0
    for id, prompt, entry in zip(ids, prompts, done, strict=True):
        own = merged(weights, adapters[id][1], alpha=adapters[id][2]) if id else weights
        model.load_state_dict(own, strict=False, assign=True)
        model.tie_weights()
        with torch.no_grad():
            logits = model(torch.tensor([prompt + entry["tokens"]])).logits[0, len(prompt) - 1 : -1]
        assert logits.argmax(-1).tolist() == entry["tokens"], id
        logprobs = logits.log_softmax(-1).gather(1, torch.tensor(entry["tokens"])[:, None])[:, 0]
        returned = torch.tensor([one.logprob for one in entry["logprobs"]])
        furthest = max(furthest, float((logprobs - returned).abs().max()))
    assert furthest < TOLERANCE
    print(f"logprobs differ by at most {furthest:.1e}")
