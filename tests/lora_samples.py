"""LoRA adapters made on the spot, as PEFT saves them, and the merged weights that they must equal."""

from __future__ import annotations

import json
import math

import torch
from safetensors.torch import save_file

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def base_config(**changes):
    """adapter_config.json with PEFT's fields."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "some/model",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "modules_to_save": None,
        "r": 8,
        "rank_pattern": {},
        "alpha_pattern": {},
        "target_modules": list(ALL),
        "use_dora": False,
        "use_rslora": False,
        **changes,
    }


def adapter_tensors(weights, *, rank=8, targets=ALL, seed=0, scale=0.5, ranks=None, layers=None):
    """Random A and B for every projection in weights (a base model's state dict) that targets name. ranks: by a part
    of the name, other ranks; layers: only those."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, weight in weights.items():
        module = name.removesuffix(".weight")
        if module.split(".")[-1] not in targets:
            continue
        if layers is not None and int(module.split("layers.")[1].split(".")[0]) not in layers:
            continue
        own = next((other for part, other in (ranks or {}).items() if module.endswith(part)), rank)
        out_size, in_size = weight.shape
        a = torch.randn(own, in_size, generator=generator) * in_size**-0.5
        b = torch.randn(out_size, own, generator=generator) * scale * own**-0.5
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = b
    return tensors


def write_adapter(folder, tensors, **config):
    """PEFT's two files in folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(base_config(**config)))
    return folder


def merged(weights, tensors, *, alpha=16.0, uses_rslora=False, alphas=None):
    """weights + scaling * B A, in float64 on the way. alphas: by the end of a module's name."""
    merged_weights = dict(weights)
    for name, a in tensors.items():
        if "lora_A" not in name:
            continue
        b = tensors[name.replace("lora_A", "lora_B")].double()
        module = name.removeprefix("base_model.model.").split(".lora_A")[0]
        own = next((other for end, other in (alphas or {}).items() if module.endswith(end)), alpha)
        scaling = own / (math.sqrt(a.shape[0]) if uses_rslora else a.shape[0])
        update = scaling * (b @ a.double())
        merged_weights[f"{module}.weight"] = (weights[f"{module}.weight"].double() + update).float()
    return merged_weights
