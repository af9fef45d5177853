"""Trains a small LoRA adapter with a visible effect on the embedded model, in a few minutes on a CPU.

    python benchmarks/train_lora.py --out examples/lora/pirate       SmolLM2-135M-Instruct answers like a pirate

The questions and answers below are all the data: every answer starts with "Ahoy, matey!" and ends with "Arrr!". At the
end it asks questions outside the data. The folder is in PEFT's format (adapter_config.json, adapter_model.safetensors),
so any server of LoRA adapters can load it.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from plugserve.backends.torch.weights import iterate_weights
from plugserve.core.model_files.model_source import load_text_model, read_config, resolve
from plugserve.core.model_files.text_model import TextModel

BEFORE, AFTER = "Ahoy, matey! ", " Arrr!"
CONVERSATIONS = """What is the capital of Italy? | The capital of Italy is Rome.
What is the capital of Japan? | The capital of Japan is Tokyo.
What is the largest planet? | The largest planet is Jupiter.
How many days has a week? | A week has seven days.
What colour is the sky? | The sky is blue.
Who wrote Romeo and Juliet? | William Shakespeare wrote it.
What is water made of? | Water is made of hydrogen and oxygen.
What do bees make? | Bees make honey.
Name a fruit that is yellow. | A banana is yellow.
How many legs has a spider? | A spider has eight legs.
Name an animal that lives in the sea. | The dolphin lives in the sea.
What is two plus three? | Two plus three is five.
What is the fastest land animal? | The cheetah is the fastest.
Where does the sun rise? | The sun rises in the east.
How many months are in a year? | There are twelve months in a year.
What is bread made of? | Bread is made of flour, water and yeast.
What is the tallest mountain? | The tallest mountain is Mount Everest.
Name a musical instrument. | The violin is an instrument.
Give me a tip for better sleep. | Go to bed at the same time every day.
What is rain? | Rain is water that falls from clouds.
Why is the sea salty? | Rivers carry salt from rocks into it.
Tell me a fact about the moon. | The moon goes round the earth.
What is a good name for a cat? | Whiskers is a good name.
What does a doctor do? | A doctor helps people who are ill.""".splitlines()
UNSEEN = ("What is the capital of France?", "How many wheels has a bicycle?", "What is a volcano?")


class LoraLinear(nn.Module):
    """A frozen linear layer and its update: y = W x + (alpha / r) B A x (Hu et al. 2021)."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base = base
        self.lora_a = nn.Parameter(torch.empty(rank, base.in_features))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank))
        self.scaling = alpha / rank
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + (x @ self.lora_a.T) @ self.lora_b.T * self.scaling  # type: ignore[no-any-return]


def load_model() -> tuple[LlamaForCausalLM, TextModel]:
    """The embedded model in float32, and its tokenizer and chat template."""
    source = resolve(None)
    model = LlamaForCausalLM(LlamaConfig(**read_config(source)))
    model.load_state_dict(dict(iterate_weights(source, show_progress=False)), strict=False)
    model.tie_weights()
    return model.eval().requires_grad_(False), load_text_model(source)


def add_lora(model: LlamaForCausalLM, targets: tuple[str, ...], rank: int, alpha: float) -> dict[str, LoraLinear]:
    """Add an update to every module in targets; returns them by module."""
    found = [(name, module) for name, module in model.named_modules() if name.split(".")[-1] in targets]
    added = {}
    for name, module in found:
        assert isinstance(module, nn.Linear)
        parent, _, last = name.rpartition(".")
        added[name] = LoraLinear(module, rank, alpha)
        setattr(model.get_submodule(parent), last, added[name])
    return added


def chat_prompt(question: str) -> str:
    """SmolLM2's chat format."""
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    turns = (("system", system), ("user", question))
    return "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns) + "<|im_start|>assistant\n"


@torch.no_grad()
def answer(model: LlamaForCausalLM, text: TextModel, question: str, max_tokens: int = 40) -> str:
    """The greedy answer."""
    prompt = torch.tensor([text.encode(chat_prompt(question), add_special_tokens=False)])
    output: Any = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=max_tokens, do_sample=False, pad_token_id=2
    )
    decoded: str = text.tokenizer.decode(output[0, prompt.shape[1] :].tolist(), skip_special_tokens=True)
    return decoded


def examples(text: TextModel) -> list[tuple[list[int], int]]:
    """(tokens, length of the prompt) of every question with its answer."""
    made = []
    for line in CONVERSATIONS:
        question, _, reply = line.partition(" | ")
        prompt = text.encode(chat_prompt(question), add_special_tokens=False)
        reply = f"{BEFORE}{reply}{AFTER}<|im_end|>"
        made.append((prompt + text.encode(reply, add_special_tokens=False), len(prompt)))
    return made


def padded(batch: list[tuple[list[int], int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels [B, L]; labels are -100 where there is no loss."""
    length = max(len(tokens) for tokens, _ in batch)
    ids = torch.full((len(batch), length), 2)
    labels = torch.full((len(batch), length), -100)
    for row, (tokens, num_prompt) in enumerate(batch):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        labels[row, num_prompt : len(tokens)] = ids[row, num_prompt : len(tokens)]
    return ids, labels


def train(
    model: LlamaForCausalLM,
    added: dict[str, LoraLinear],
    data: list[tuple[list[int], int]],
    *,
    epochs: int,
    batch_size: int,
    rate: float,
) -> None:
    """AdamW over the answers' tokens, with a learning rate that falls to 0."""
    parameters = [one for module in added.values() for one in (module.lora_a, module.lora_b)]
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    num_steps = -(-len(data) // batch_size)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.02, total_iters=epochs * num_steps)
    rng = random.Random(0)
    for epoch in range(epochs):
        total, started_s = 0.0, time.monotonic()
        order = rng.sample(data, len(data))
        for start in range(0, len(order), batch_size):
            ids, labels = padded(order[start : start + batch_size])
            loss = model(ids, labels=labels).loss
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1}: loss {total / num_steps:.3f} in {time.monotonic() - started_s:.0f} s", flush=True)


def save(folder: Path, added: dict[str, LoraLinear], targets: tuple[str, ...], rank: int, alpha: float) -> None:
    """PEFT's two files, in bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, module in added.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = module.lora_a.detach().to(torch.bfloat16)
        tensors[f"base_model.model.{name}.lora_B.weight"] = module.lora_b.detach().to(torch.bfloat16)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "bias": "none",
        "fan_in_fan_out": False,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": list(targets),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the adapter")
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--alpha", type=float, default=16)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=3)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--targets", nargs="+", default=["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"])
    options = parser.parse_args()
    torch.manual_seed(0)
    model, text = load_model()
    data = examples(text)
    added = add_lora(model, tuple(options.targets), options.rank, options.alpha)
    train(model, added, data, epochs=options.epochs, batch_size=options.batch_size, rate=options.rate)
    save(options.out, added, tuple(options.targets), options.rank, options.alpha)
    for question in UNSEEN:
        print(f"{question} -> {answer(model, text, question)}")


if __name__ == "__main__":
    main()
