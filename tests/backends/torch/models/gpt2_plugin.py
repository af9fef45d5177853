"""A plugin in one file that brings a model in torch: GPT-2, which no DecoderSpec describes (LayerNorm with biases,
learned positions, an MLP without a gate)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.nn.functional import gelu, layer_norm

from plugserve import AttentionSpec, ModelStep, Parameter, fill_parameters, hookimpl


class Gpt2:
    """A plugserve.ModelDefinition."""

    architecture = "GPT2LMHeadModel"
    length_rule = None
    logits_soft_cap = None
    lora_sites = ()
    weight_prefixes = ()

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.vocab_size = config["vocab_size"]
        self.num_layers, self.num_heads = config["n_layer"], config["n_head"]
        self.hidden_size, self.num_positions = config["n_embd"], config["n_positions"]
        self.eps = config["layer_norm_epsilon"]

    def attention_spec(self, dtype: str, device: str) -> AttentionSpec:
        size = self.hidden_size // self.num_heads
        return AttentionSpec(self.num_layers, self.num_heads, self.num_heads, size, size**-0.5, dtype, device)

    def parameters(self) -> dict[str, Parameter]:
        hidden = self.hidden_size
        found = {
            "wte.weight": Parameter((self.vocab_size, hidden), 0),
            "wpe.weight": Parameter((self.num_positions, hidden)),
            "ln_f.weight": Parameter((hidden,)),
            "ln_f.bias": Parameter((hidden,)),
        }
        for i in range(self.num_layers):
            for norm in ("ln_1", "ln_2"):
                found |= {f"h.{i}.{norm}.{kind}": Parameter((hidden,)) for kind in ("weight", "bias")}
            for name, inputs, outputs, axis in (
                ("attn.c_attn", hidden, 3 * hidden, 1),
                ("attn.c_proj", hidden, hidden, 0),
                ("mlp.c_fc", hidden, 4 * hidden, 1),
                ("mlp.c_proj", 4 * hidden, hidden, 0),
            ):
                found[f"h.{i}.{name}.weight"] = Parameter((inputs, outputs), axis)
                found[f"h.{i}.{name}.bias"] = Parameter((outputs,), 0 if axis else None)
        return found

    def allocate(self, *, dtype: torch.dtype, device: torch.device, max_positions: int) -> None:
        self.tensors = {
            name: torch.empty(one.shape, dtype=dtype, device=device) for name, one in self.parameters().items()
        }

    def load(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        named = ((name.removeprefix("transformer."), tensor) for name, tensor in weights if name != "lm_head.weight")
        fill_parameters(self.tensors, named, self.architecture)

    def weight_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    def activation_bytes(self, num_tokens: int, num_rows: int) -> int:
        return num_tokens * self.hidden_size * 40 + num_rows * self.vocab_size * 16

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        return layer_norm(x, (self.hidden_size,), weight, bias, self.eps)

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.tensors[f"{name}.bias"], x, self.tensors[f"{name}.weight"])

    def forward(self, token_ids: torch.Tensor, step: ModelStep) -> torch.Tensor:
        x = self.tensors["wte.weight"][token_ids] + self.tensors["wpe.weight"][step.positions]
        for i in range(self.num_layers):
            qkv = self._linear(f"h.{i}.attn.c_attn", self._norm(f"h.{i}.ln_1", x))
            q, k, v = qkv.view(len(x), 3, self.num_heads, -1).unbind(1)
            attended = step.attend(i, q, k, v).reshape(len(x), -1)
            x = x + self._linear(f"h.{i}.attn.c_proj", attended)
            inner = gelu(self._linear(f"h.{i}.mlp.c_fc", self._norm(f"h.{i}.ln_2", x)), approximate="tanh")
            x = x + self._linear(f"h.{i}.mlp.c_proj", inner)
        return x

    def normed(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._norm("ln_f", hidden).float()

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._norm("ln_f", hidden) @ self.tensors["wte.weight"].T


def gpt2(config: Mapping[str, Any]) -> Gpt2:
    """GPT-2"""
    return Gpt2(config)


@hookimpl
def plugserve_architectures() -> Mapping[str, Any]:
    return {"GPT2LMHeadModel": gpt2}
