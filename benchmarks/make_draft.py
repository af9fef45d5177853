"""Makes a small draft model for speculative decoding out of the model that it will draft for.

    python benchmarks/make_draft.py --output draft                      # a GPU: about three minutes
    python benchmarks/make_draft.py --output draft --device cpu --num-sequences 96 --seconds 600

The draft has a few of the target's layers; embeddings and head stay the target's own (its config says
`share_embeddings: target`), so the folder holds little more than those layers. They are distilled: the target answers
prompts of many kinds (draft_prompts.py), half of them greedily, and the draft learns its distributions over its own
answers. Nothing is downloaded. Needs torch, plugserve and the target (the embedded model by default).
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from draft_prompts import open_prompts, text_prompts
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from plugserve.core.model_source import eos_token_ids, load_text_model, read_config, resolve
from plugserve.core.weights import iterate_weights

Cache = list[torch.Tensor]
LOGIT_ROWS = 4096  # tokens whose logits exist at once
HELD_OUT = 0.03


@dataclass
class Shape:
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    theta: float

    @classmethod
    def of(cls, config: dict[str, Any]) -> Shape:
        if config["architectures"] != ["LlamaForCausalLM"]:
            raise SystemExit(f"drafts are made of LlamaForCausalLM, not of {config['architectures']}")
        heads = config["num_attention_heads"]
        rope = config.get("rope_parameters") or {}
        return cls(
            hidden=config["hidden_size"],
            heads=heads,
            kv_heads=config["num_key_value_heads"],
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            eps=config["rms_norm_eps"],
            theta=config.get("rope_theta") or rope["rope_theta"],
        )


class Layer(nn.Module):
    """One Llama layer; parameters have Hugging Face's names below model.layers.N."""

    def __init__(self, weights: dict[str, torch.Tensor], prefix: str, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.weights = nn.ParameterDict(
            {name.removeprefix(prefix).replace(".", "/"): nn.Parameter(tensor.clone())
             for name, tensor in weights.items() if name.startswith(prefix)}
        )  # fmt: skip

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weights[f"{name}/weight"].to(x.dtype))

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self.weights[f"{name}/weight"], self.shape.eps)

    def forward(
        self,
        x: torch.Tensor,
        angles: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor,
        cache: Cache | None = None,
        at: int = 0,
    ) -> torch.Tensor:
        """x [B, N, H]; cache holds keys and values [B, KVH, S, D] of this layer, of which the first at are filled."""
        shape, (num_rows, num_tokens, _) = self.shape, x.shape
        y = self.norm("input_layernorm", x)
        q, k, v = (
            self.linear(f"self_attn/{name}_proj", y).view(num_rows, num_tokens, -1, shape.head_dim).transpose(1, 2)
            for name in "qkv"
        )
        q, k = rotate(q, *angles), rotate(k, *angles)
        if cache is not None:
            cache[0][:, :, at : at + num_tokens], cache[1][:, :, at : at + num_tokens] = k, v
            k, v = cache[0][:, :, : at + num_tokens], cache[1][:, :, : at + num_tokens]
        group = shape.heads // shape.kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.linear("self_attn/o_proj", attended.transpose(1, 2).reshape(num_rows, num_tokens, -1))
        y = self.norm("post_attention_layernorm", x)
        return x + self.linear("mlp/down_proj", F.silu(self.linear("mlp/gate_proj", y)) * self.linear("mlp/up_proj", y))


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    y = x.float()
    return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype) * weight.to(x.dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


class Model(nn.Module):
    """A stack of layers over an embedding that is the head, too. dtype is what activations have."""

    def __init__(self, layers: list[Layer], norm: torch.Tensor, embedding: torch.Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = nn.Parameter(norm.clone())
        self.embedding = embedding
        self.dtype = dtype
        self.shape = layers[0].shape

    def angles(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin [B, 1, N, D] of positions [B, N]."""
        half = torch.arange(0, self.shape.head_dim, 2, device=positions.device) / self.shape.head_dim
        turns = positions.unsqueeze(-1).float() * self.shape.theta**-half
        turns = torch.cat((turns, turns), -1).unsqueeze(1)
        return turns.cos().to(self.dtype), turns.sin().to(self.dtype)

    def hidden(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor,
        caches: list[Cache] | None = None,
        at: int = 0,
    ) -> torch.Tensor:
        """[B, N, H] after the last norm."""
        x, angles = self.embedding[tokens].to(self.dtype), self.angles(positions)
        for i, layer in enumerate(self.layers):
            x = layer(x, angles, mask, caches[i] if caches else None, at)
        return rms_norm(x, self.norm, self.shape.eps)


def attention_mask(starts: torch.Tensor, length: int, num_queries: int) -> torch.Tensor:
    """[B, 1, num_queries, length] of rows whose text begins at starts: causal, nothing before the text."""
    keys = torch.arange(length, device=starts.device)
    queries = torch.arange(length - num_queries, length, device=starts.device)
    causal = keys <= queries.unsqueeze(1)
    own = (keys == queries.unsqueeze(1)) | (keys >= starts.view(-1, 1, 1))
    return (causal & own).unsqueeze(1)


# ---------------------------------------------------------------- the target answers


@torch.no_grad()
def answer(
    target: Model, prompts: list[list[int]], temperatures: torch.Tensor, num_tokens: int, eos: set[int]
) -> list[list[int]]:
    """prompt + answer of each prompt, all at once, left-padded; an answer ends with its end-of-text token."""
    device, longest = target.embedding.device, max(map(len, prompts))
    starts = torch.tensor([longest - len(prompt) for prompt in prompts], device=device)
    padded = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts], device=device)
    shape, total = target.shape, longest + num_tokens
    caches = [
        [
            torch.zeros(len(prompts), shape.kv_heads, total, shape.head_dim, dtype=target.dtype, device=device)
            for _ in "kv"
        ]
        for _ in target.layers
    ]
    tokens, written, at = padded, [padded], 0
    ends = torch.tensor(sorted(eos), device=device)
    is_done = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    for n in range(num_tokens):
        length = at + tokens.shape[1]
        positions = (torch.arange(at, length, device=device) - starts.unsqueeze(1)).clamp(min=0)
        hidden = target.hidden(tokens, positions, attention_mask(starts, length, tokens.shape[1]), caches, at)
        logits = F.linear(hidden[:, -1], target.embedding.to(target.dtype)).float()
        noise = torch.rand_like(logits).clamp_(min=1e-20).log_().neg_().log_().neg_()  # Gumbel
        tokens = (logits + noise * temperatures.unsqueeze(1)).argmax(-1, keepdim=True)
        written.append(tokens)
        at = length
        is_done |= torch.isin(tokens[:, 0], ends)
        if n % 16 == 15 and bool(is_done.all()):
            break
    texts = []
    for prompt, row in zip(prompts, torch.cat(written, 1).tolist(), strict=True):
        said = row[longest:]
        end = next((i + 1 for i, token in enumerate(said) if token in eos), len(said))
        texts.append(prompt + said[:end])
    return texts


def write_texts(target: Model, source: Any, arguments: argparse.Namespace) -> list[list[int]]:
    """What the target says to open prompts, then to prompts about what it said."""
    text_model, eos, rng = load_text_model(source), set(eos_token_ids(source)), random.Random(arguments.seed)
    written: list[list[int]] = []
    answers: list[str] = []
    for stage in ("open", "text"):
        count = arguments.num_sequences // 2
        prompts = open_prompts(count, rng) if stage == "open" else text_prompts(count, answers, rng)
        ids = sorted(chat_ids(text_model, prompt)[-arguments.prompt_tokens :] for prompt in prompts)
        ids.sort(key=len)
        for start in range(0, count, arguments.generate_batch):
            some = ids[start : start + arguments.generate_batch]
            temperatures = torch.tensor(
                [rng.choice((0.0, 0.0, 0.7, 1.0)) for _ in some], device=target.embedding.device
            )
            texts = answer(target, some, temperatures, arguments.answer_tokens, eos)
            written += texts
            answers += [
                text_model.tokenizer.decode(text[len(prompt) : -1]) for prompt, text in zip(some, texts, strict=True)
            ]
        answers = [text for text in answers if len(text) > 100] or answers
    rng.shuffle(written)
    return written


def chat_ids(text_model: Any, prompt: str) -> list[int]:
    return text_model.encode(
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    )


# ---------------------------------------------------------------- the draft learns


def batches(
    texts: list[list[int]], num_tokens: int, rng: random.Random, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (tokens [B, N], lengths [B]) of about num_tokens tokens, texts of like lengths together."""
    while True:
        order = sorted(rng.sample(texts, min(len(texts), 2048)), key=len)
        groups, some = [], []
        for text in order:
            if some and (len(some) + 1) * len(text) > num_tokens:
                groups.append(some)
                some = []
            some.append(text)
        groups.append(some)
        rng.shuffle(groups)
        for group in groups:
            longest = max(map(len, group))
            padded = torch.tensor([text + [0] * (longest - len(text)) for text in group], device=device)
            yield padded, torch.tensor([len(text) for text in group], device=device)


def hidden_of(model: Model, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """[T, H] at every real token."""
    num_rows, length = tokens.shape
    positions = torch.arange(length, device=tokens.device).expand(num_rows, -1)
    mask = attention_mask(torch.zeros(num_rows, dtype=torch.int64, device=tokens.device), length, length)
    hidden = model.hidden(tokens, positions, mask)
    return hidden[positions < lengths.unsqueeze(1)]


def compare(target: Model, student_hidden: torch.Tensor, target_hidden: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """By token: KL(target, draft), how often their best tokens are the same, and the overlap of their distributions."""
    head = target.embedding.to(target.dtype)
    q = F.linear(student_hidden, head).float().log_softmax(-1)
    with torch.no_grad():
        p = F.linear(target_hidden, head).float().log_softmax(-1)
    divergence = (p.exp() * (p - q)).sum(-1)
    overlap = torch.minimum(p.exp(), q.exp()).sum(-1)
    return divergence, (p.argmax(-1) == q.argmax(-1)).float(), overlap


def train(target: Model, draft: Model, texts: list[list[int]], arguments: argparse.Namespace) -> None:
    device, rng = target.embedding.device, random.Random(arguments.seed)
    optimizer = torch.optim.AdamW(draft.parameters(), lr=arguments.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    started, step, said = time.monotonic(), 0, 0.0
    for tokens, lengths in batches(texts, arguments.train_batch, rng, device):
        progress = (time.monotonic() - started) / arguments.seconds
        if progress >= 1 or (arguments.num_steps and step >= arguments.num_steps):
            break
        rate = min(1.0, (step + 1) / 50) * max(0.02, 1 - progress)
        for group in optimizer.param_groups:
            group["lr"] = arguments.learning_rate * rate
        with torch.no_grad():
            wanted = hidden_of(target, tokens, lengths)
        hidden = hidden_of(draft, tokens, lengths)
        loss = learn_from(target, hidden, wanted)
        torch.nn.utils.clip_grad_norm_(draft.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if time.monotonic() - said > 10:
            said = time.monotonic()
            print(f"step {step}: {loss:.3f} nats a token from the target", flush=True)
    print(f"{step} steps in {time.monotonic() - started:.0f} s")


def learn_from(target: Model, hidden: torch.Tensor, wanted: torch.Tensor) -> float:
    """Back-propagate the divergence and what the overlap lacks, a slice of tokens at a time; returns the divergence."""
    gradients, total = [], 0.0
    for some, its_wanted in zip(hidden.split(LOGIT_ROWS), wanted.split(LOGIT_ROWS), strict=True):
        leaf = some.detach().requires_grad_()
        divergence, _, overlap = compare(target, leaf, its_wanted)
        ((divergence + 1 - overlap).sum() / len(hidden)).backward()
        gradients.append(leaf.grad)
        total += float(divergence.detach().sum())
    hidden.backward(torch.cat(gradients))
    return total / len(hidden)


@torch.no_grad()
def evaluate(target: Model, draft: Model, texts: list[list[int]], num_tokens: int) -> str:
    sums, count = torch.zeros(3), 0
    for tokens, lengths in batches(texts, num_tokens, random.Random(0), target.embedding.device):
        wanted, hidden = hidden_of(target, tokens, lengths), hidden_of(draft, tokens, lengths)
        for some, its_wanted in zip(hidden.split(LOGIT_ROWS), wanted.split(LOGIT_ROWS), strict=True):
            sums += torch.stack([value.sum() for value in compare(target, some, its_wanted)]).cpu()
        count += len(wanted)
        if count >= 20_000:
            break
    divergence, agreement, overlap = (sums / count).tolist()
    return f"{divergence:.3f} nats from the target, same best token {agreement:.1%}, overlap {overlap:.1%}"


# ---------------------------------------------------------------- from and to files


def load(source: Any, device: torch.device, dtype: torch.dtype, layers: list[int]) -> tuple[Model, Model]:
    """The target in dtype, and the untrained draft with float32 parameters."""
    config = read_config(source)
    weights = {name: tensor.float() for name, tensor in iterate_weights(source, show_progress=False)}
    shape, embedding = Shape.of(config), weights["model.embed_tokens.weight"]
    if not config.get("tie_word_embeddings", True) and "lm_head.weight" in weights:
        raise SystemExit("the target's head is not its embedding; this script makes drafts for those where it is")
    make = lambda chosen: [Layer(weights, f"model.layers.{i}.", shape) for i in chosen]  # noqa: E731
    norm = weights["model.norm.weight"]
    target = Model(make(range(config["num_hidden_layers"])), norm, embedding, dtype).to(device, dtype)
    target.embedding = embedding.to(device, dtype)
    draft = Model(make(layers), norm, embedding, dtype).to(device)
    draft.embedding = target.embedding
    return target.requires_grad_(False), draft


def save(draft: Model, config: dict[str, Any], folder: Path) -> None:
    tensors = {"model.norm.weight": draft.norm}
    for i, layer in enumerate(draft.layers):
        for name, tensor in layer.weights.items():
            tensors[f"model.layers.{i}.{name.replace('/', '.')}"] = tensor
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().to("cpu", torch.bfloat16) for name, tensor in tensors.items()},
              folder / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
    own = {**config, "num_hidden_layers": len(draft.layers), "share_embeddings": "target", "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(own, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", help="the target: a folder, a .gguf file or a Hugging Face id")
    parser.add_argument("--output", type=Path, required=True, help="folder of the draft")
    parser.add_argument("--layers", default="0,1", help="which of the target's layers the draft starts from")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--num-sequences", type=int, default=12288, help="texts that the target writes")
    parser.add_argument("--prompt-tokens", type=int, default=256, help="longest prompt")
    parser.add_argument("--answer-tokens", type=int, default=256, help="longest answer")
    parser.add_argument("--generate-batch", type=int, default=1024)
    parser.add_argument("--train-batch", type=int, default=24576, help="tokens in a training step")
    parser.add_argument("--seconds", type=float, default=120, help="training time")
    parser.add_argument("--num-steps", type=int, default=0, help="end sooner, after so many training steps")
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    started = time.monotonic()
    source = resolve(arguments.model)
    device = torch.device(arguments.device)
    layers = [int(layer) for layer in arguments.layers.split(",")]
    target, draft = load(source, device, torch.bfloat16 if device.type == "cuda" else torch.float32, layers)
    print(f"loaded after {time.monotonic() - started:.0f} s", flush=True)
    texts = write_texts(target, source, arguments)
    print(f"{len(texts)} texts, {sum(map(len, texts))} tokens, after {time.monotonic() - started:.0f} s", flush=True)
    num_held_out = max(4, int(HELD_OUT * len(texts)))
    held_out, texts = texts[:num_held_out], texts[num_held_out:]
    print(f"before: {evaluate(target, draft, held_out, arguments.train_batch)}", flush=True)
    train(target, draft, texts, arguments)
    print(f"after: {evaluate(target, draft, held_out, arguments.train_batch)}")
    save(draft, read_config(source), arguments.output)
    size = sum(path.stat().st_size for path in arguments.output.iterdir()) / 2**20
    print(f"{arguments.output}: {size:.1f} MiB, {time.monotonic() - started:.0f} s in all")


if __name__ == "__main__":
    main()
