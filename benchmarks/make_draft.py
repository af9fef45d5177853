"""Makes a small draft model for speculative decoding from the target, the model that it drafts for.

    python benchmarks/make_draft.py --output draft                      # a GPU: seven minutes on an H100
    python benchmarks/make_draft.py --output draft --device cpu --num-sequences 96 --seconds 600

The draft has a few of the target's layers and shares its embeddings and head (config: `share_embeddings: target`).
Because a small draft spends most of its time in the head, it computes the head for the most common tokens only
(`draft_token_ids`). The folder therefore holds little more than those layers. They are distilled: the target answers
prompts of many kinds (draft_prompts.py, and prompts that it generates), partly greedily, and the draft learns the
target's distributions over these answers. Nothing is downloaded. Needs torch, plugserve and the target (the embedded
model by default).
"""

from __future__ import annotations

import argparse
import json
import random
import time
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from draft_prompts import open_prompts, text_prompts
from safetensors.torch import save_file
from speculation import make_engine, step
from torch import nn
from torch.nn import functional as F

from plugserve.backends.torch.weights import iterate_weights
from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.model_files.model_source import load_text_model, read_config, resolve

LOGIT_ROWS = 8192  # tokens whose logits exist at once
HELD_OUT = 0.02
SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
USER, ASSISTANT = SYSTEM + "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"


@dataclass
class Text:
    """A prompt and its answer, which starts at answer_start and ends with the end-of-text token."""

    tokens: list[int]
    answer_start: int


# ---------------------------------------------------------------- texts of the target


class Writer:
    """The target, run by plugserve's engine."""

    def __init__(self, source: Any, device: torch.device) -> None:
        self.text_model = load_text_model(source)
        on_gpu = {"max_num_seqs": 512, "kv_cache_memory": 2**33, "dtype": "bfloat16"}
        more = on_gpu if device.type == "cuda" else {"threads": torch.get_num_threads()}
        self._engine = make_engine(source, device=device.type, **more)

    def go_on(self, prompts: Sequence[list[int]], temperatures: Sequence[float], num_tokens: int) -> list[list[int]]:
        """Each prompt's continuation, up to num_tokens tokens."""
        for id, (prompt, temperature) in enumerate(zip(prompts, temperatures, strict=True)):
            params = SamplingParams(max_tokens=num_tokens, seed=random.getrandbits(62), temperature=temperature)
            self._engine.admit((b"draft", id), array("i", prompt), params)
        outputs: list[list[int]] = [[] for _ in prompts]
        while self._engine.has_work:
            step(self._engine, outputs)
        return outputs


def write_texts(writer: Writer, arguments: argparse.Namespace) -> list[Text]:
    """The target's answers to open prompts and to prompts of its own, then to prompts about these answers."""
    rng, encode = random.Random(arguments.seed), writer.text_model.encode
    decode = writer.text_model.tokenizer.decode
    half = arguments.num_sequences // 2
    user = encode(USER)
    own = writer.go_on([user] * half, [rng.choice((0.7, 0.9, 1.0)) for _ in range(half)], arguments.prompt_tokens // 2)
    prompts = [encode(USER + decode(prompt) + ASSISTANT) for prompt in own]
    prompts += [encode(USER + prompt + ASSISTANT) for prompt in open_prompts(half // 2, rng)]
    texts = _answered(writer, prompts, rng, arguments)
    answers = [decode(text.tokens[text.answer_start : -1]) for text in texts]
    long_ones = [answer for answer in answers if len(answer) > 100] or answers
    about = text_prompts(arguments.num_sequences - len(prompts), long_ones, rng)
    texts += _answered(writer, [encode(USER + prompt + ASSISTANT) for prompt in about], rng, arguments)
    rng.shuffle(texts)
    return texts


def _answered(
    writer: Writer, prompts: list[list[int]], rng: random.Random, arguments: argparse.Namespace
) -> list[Text]:
    prompts = [prompt for prompt in prompts if len(prompt) <= arguments.prompt_tokens]
    temperatures = [rng.choice((0.0, 0.0, 0.7, 1.0)) for _ in prompts]
    answers = writer.go_on(prompts, temperatures, arguments.answer_tokens)
    return [Text(prompt + answer, len(prompt)) for prompt, answer in zip(prompts, answers, strict=True)]


# ---------------------------------------------------------------- the models in training


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

    def forward(self, x: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """x [B, N, H]; causal attention."""
        shape, (num_rows, num_tokens, _) = self.shape, x.shape
        y = self.norm("input_layernorm", x)
        q, k, v = (
            self.linear(f"self_attn/{name}_proj", y).view(num_rows, num_tokens, -1, shape.head_dim).transpose(1, 2)
            for name in "qkv"
        )
        q, k = rotate(q, *angles), rotate(k, *angles)
        group = shape.heads // shape.kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
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
    """A stack of layers with tied embedding and head. dtype is that of the activations."""

    def __init__(self, layers: list[Layer], norm: torch.Tensor, embedding: torch.Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = nn.Parameter(norm.clone())
        self.embedding = embedding
        self.dtype = dtype
        self.shape = layers[0].shape

    def hidden(self, tokens: torch.Tensor) -> torch.Tensor:
        """[B, N, H] after the last norm."""
        half = torch.arange(0, self.shape.head_dim, 2, device=tokens.device) / self.shape.head_dim
        turns = torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(-1) * self.shape.theta**-half
        turns = torch.cat((turns, turns), -1)
        x, angles = self.embedding[tokens].to(self.dtype), (turns.cos().to(self.dtype), turns.sin().to(self.dtype))
        for layer in self.layers:
            x = layer(x, angles)
        return rms_norm(x, self.norm, self.shape.eps)


# ---------------------------------------------------------------- the target's distributions over its texts


@dataclass
class Lesson:
    """Some texts, padded: tokens [B, N], and of the T places whose next token belongs to an answer the index into
    B x N and the target's hidden states [T, H], log of its sum of exponentials [T] and best token [T]."""

    tokens: torch.Tensor
    places: torch.Tensor
    hidden: torch.Tensor
    log_total: torch.Tensor
    best: torch.Tensor


def lessons(target: Model, texts: list[Text], num_tokens: int) -> list[Lesson]:
    """All texts in batches of about num_tokens tokens, sorted by length."""
    made: list[Lesson] = []
    some: list[Text] = []
    for text in sorted(texts, key=lambda text: len(text.tokens)):
        if some and (len(some) + 1) * len(text.tokens) > num_tokens:
            made.append(_lesson(target, some))
            some = []
        some.append(text)
    return [*made, _lesson(target, some)]


@torch.no_grad()
def _lesson(target: Model, texts: list[Text]) -> Lesson:
    device, longest = target.embedding.device, max(len(text.tokens) for text in texts)
    tokens = torch.tensor([text.tokens + [0] * (longest - len(text.tokens)) for text in texts], device=device)
    starts, ends = torch.tensor([(text.answer_start, len(text.tokens)) for text in texts], device=device).T
    next_place = torch.arange(1, longest + 1, device=device)
    places = ((next_place >= starts.unsqueeze(1)) & (next_place < ends.unsqueeze(1))).flatten().nonzero().squeeze(1)
    hidden = target.hidden(tokens).flatten(0, 1)[places]
    log_total, best = [], []
    for rows in hidden.split(LOGIT_ROWS):
        logits = F.linear(rows, target.embedding).float()
        log_total.append(logits.logsumexp(-1))
        best.append(logits.argmax(-1))
    return Lesson(tokens, places, hidden, torch.cat(log_total), torch.cat(best))


def common_tokens(texts: list[Text], count: int, vocab_size: int) -> list[int]:
    """The count most frequent tokens of the answers, in order of ids; all tokens for 0."""
    if not count:
        return list(range(vocab_size))
    seen = Counter(token for text in texts for token in text.tokens[text.answer_start :])
    return sorted(token for token, _ in seen.most_common(count))


# ---------------------------------------------------------------- training of the draft


@dataclass
class Head:
    """The target's output weights [N, H] for the tokens ids [N] that a draft may propose."""

    ids: torch.Tensor
    weight: torch.Tensor

    def compare(self, draft_hidden: torch.Tensor, lesson: Lesson, rows: slice) -> tuple[torch.Tensor, ...]:
        """By token: KL(target, draft) over ids, how often their best tokens are the same, and the overlap of their
        distributions."""
        log_q = F.linear(draft_hidden, self.weight).float().log_softmax(-1)
        with torch.no_grad():
            log_p = F.linear(lesson.hidden[rows], self.weight).float() - lesson.log_total[rows].unsqueeze(1)
            p = log_p.exp()
        divergence = (p * (log_p - log_q)).sum(-1)
        overlap = torch.minimum(p, log_q.exp()).sum(-1)
        return divergence, (self.ids[log_q.argmax(-1)] == lesson.best[rows]).float(), overlap


def train(draft: Model, head: Head, taught: list[Lesson], arguments: argparse.Namespace) -> None:
    optimizer = torch.optim.AdamW(draft.parameters(), lr=arguments.learning_rate, betas=(0.9, 0.95), weight_decay=0.05)
    started, num_steps, printed_s = time.monotonic(), 0, 0.0
    for lesson in _shuffled(taught, random.Random(arguments.seed)):
        progress = (time.monotonic() - started) / arguments.seconds
        if progress >= 1 or (arguments.num_steps and num_steps >= arguments.num_steps):
            break
        rate = min(1.0, (num_steps + 1) / 50) * max(0.02, 1 - progress)
        for group in optimizer.param_groups:
            group["lr"] = arguments.learning_rate * rate
        hidden = draft.hidden(lesson.tokens).flatten(0, 1)[lesson.places]
        loss = learn_from(head, hidden, lesson)
        torch.nn.utils.clip_grad_norm_(draft.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        num_steps += 1
        if time.monotonic() - printed_s > 10:
            printed_s = time.monotonic()
            print(f"step {num_steps}: KL {float(loss):.3f} nats per token", flush=True)
    print(
        f"{num_steps} steps, {num_steps / len(taught):.1f} times over all texts, in {time.monotonic() - started:.0f} s"
    )


def _shuffled(taught: list[Lesson], rng: random.Random) -> Iterator[Lesson]:
    while True:
        rng.shuffle(taught)
        yield from taught


def learn_from(head: Head, hidden: torch.Tensor, lesson: Lesson) -> torch.Tensor:
    """Back-propagate the divergence and 1 - overlap, a slice of tokens at a time; returns the divergence."""
    gradients, total = [], torch.zeros((), device=hidden.device)
    for start in range(0, len(hidden), LOGIT_ROWS):
        rows = slice(start, start + LOGIT_ROWS)
        leaf = hidden[rows].detach().requires_grad_()
        divergence, _, overlap = head.compare(leaf, lesson, rows)
        ((divergence + 1 - overlap).sum() / len(hidden)).backward()
        gradients.append(leaf.grad)
        total += divergence.detach().sum()
    hidden.backward(torch.cat(gradients))
    return total / len(hidden)


@torch.no_grad()
def evaluate(draft: Model, head: Head, held_out: list[Lesson]) -> str:
    sums, count = torch.zeros(3), 0
    for lesson in held_out:
        hidden = draft.hidden(lesson.tokens).flatten(0, 1)[lesson.places]
        for start in range(0, len(hidden), LOGIT_ROWS):
            rows = slice(start, start + LOGIT_ROWS)
            sums += torch.stack([value.sum() for value in head.compare(hidden[rows], lesson, rows)]).cpu()
        count += len(hidden)
    divergence, agreement, overlap = (sums / count).tolist()
    return f"{divergence:.3f} nats from the target, same best token {agreement:.1%}, overlap {overlap:.1%}"


# ---------------------------------------------------------------- files


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


def save(draft: Model, head: Head, config: dict[str, Any], folder: Path) -> None:
    tensors = {"model.norm.weight": draft.norm}
    for i, layer in enumerate(draft.layers):
        for name, tensor in layer.weights.items():
            tensors[f"model.layers.{i}.{name.replace('/', '.')}"] = tensor
    stored = {name: tensor.detach().to("cpu", torch.bfloat16) for name, tensor in tensors.items()}
    if len(head.ids) < config["vocab_size"]:
        stored["draft_token_ids"] = head.ids.to("cpu", torch.int32)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    own = {**config, "num_hidden_layers": len(draft.layers), "share_embeddings": "target", "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(own, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", help="the target: a folder, a .gguf file or a Hugging Face id")
    parser.add_argument("--output", type=Path, required=True, help="folder of the draft")
    parser.add_argument("--layers", default="0,1", help="the target's layers that initialise the draft")
    parser.add_argument("--head-tokens", type=int, default=8192, help="number of tokens that it may propose; 0: all")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--num-sequences", type=int, default=18000, help="texts that the target generates")
    parser.add_argument("--prompt-tokens", type=int, default=256, help="longest prompt")
    parser.add_argument("--answer-tokens", type=int, default=256, help="longest answer")
    parser.add_argument("--train-batch", type=int, default=24576, help="tokens per training step")
    parser.add_argument("--seconds", type=float, default=220, help="training time")
    parser.add_argument("--num-steps", type=int, default=0, help="end after this many training steps")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    random.seed(arguments.seed)
    started = time.monotonic()
    source, device = resolve(arguments.model), torch.device(arguments.device)
    writer = Writer(source, device)
    texts = write_texts(writer, arguments)
    num_tokens = sum(len(text.tokens) for text in texts)
    print(f"{len(texts)} texts, {num_tokens} tokens, after {time.monotonic() - started:.0f} s", flush=True)
    layers = [int(layer) for layer in arguments.layers.split(",")]
    target, draft = load(source, device, torch.bfloat16 if device.type == "cuda" else torch.float32, layers)
    ids = torch.tensor(common_tokens(texts, arguments.head_tokens, len(target.embedding)), device=device)
    head = Head(ids, target.embedding[ids])
    num_held_out = max(4, int(HELD_OUT * len(texts)))
    held_out = lessons(target, texts[:num_held_out], arguments.train_batch)
    taught = lessons(target, texts[num_held_out:], arguments.train_batch)
    print(f"target distributions after {time.monotonic() - started:.0f} s", flush=True)
    print(f"before: {evaluate(draft, head, held_out)}", flush=True)
    train(draft, head, taught, arguments)
    print(f"after: {evaluate(draft, head, held_out)}")
    save(draft, head, read_config(source), arguments.output)
    size = sum(path.stat().st_size for path in arguments.output.iterdir()) / 2**20
    print(f"{arguments.output}: {size:.1f} MiB, {time.monotonic() - started:.0f} s in all")


if __name__ == "__main__":
    main()
