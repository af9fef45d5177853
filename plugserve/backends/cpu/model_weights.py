"""A model's tensors for the native backend: matrices packed, vectors in float32.

GGUF blocks keep their codes; all other tensors come through the weight formats as floats and are rounded to bfloat16,
or to int8 or int4 where that is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from plugserve.backends.cpu.gguf_codes import READERS, Floats
from plugserve.backends.cpu.packing import BLOCK, Packed, pack_bfloat16, pack_codes
from plugserve.backends.cpu.quantize import to_int4, to_int8
from plugserve.backends.torch.weights.gguf_blocks import dequantize
from plugserve.backends.torch.weights.gguf_tensors import hugging_face_name, split_rope_halves
from plugserve.core.contracts.model import DecoderSpec
from plugserve.core.errors import ModelError
from plugserve.core.model_files.gguf_config import gguf_architecture
from plugserve.core.model_files.gguf_file import GgufTensor, read_gguf, refuse_unread_types

ROPE_DIVISORS = "rope_freqs.weight"
_THREADS = 2

Reading = Iterator[tuple[str, Any]]
"""(Hugging Face's name, Packed or float32 array) of every tensor."""


@dataclass(slots=True)
class ModelWeights:
    """By the model's own names. formats are how many matrices there are of each kind."""

    matrices: dict[str, Packed] = field(default_factory=dict)
    vectors: dict[str, Floats] = field(default_factory=dict)

    def matrix(self, name: str) -> Packed:
        """Raises ModelError where the model brings none."""
        if name not in self.matrices:
            raise ModelError(f"the model has no tensor {name}")
        return self.matrices[name]

    def vector(self, name: str) -> Floats:
        """Raises ModelError where the model brings none."""
        if name not in self.vectors:
            raise ModelError(f"the model has no tensor {name}")
        return self.vectors[name]


def pack_floats(values: Floats, quantization: str) -> Packed:
    """A matrix [n, k] of floats as quantization says: "none", "int8" or "int4". Odd sizes stay bfloat16."""
    if quantization != "none" and values.shape[1] % BLOCK == 0:
        return pack_codes(to_int8(values) if quantization == "int8" else to_int4(values))
    return pack_bfloat16(values)


def read_gguf_weights(path: Path, spec: DecoderSpec, num_heads: tuple[int, int], quantization: str) -> Reading:
    """num_heads are the numbers of query and of key/value heads."""
    gguf = read_gguf(path)
    architecture = gguf_architecture(gguf)
    refuse_unread_types(gguf)
    file = np.memmap(path, dtype=np.uint8, mode="r")

    def order(tensor: GgufTensor) -> Callable[[Any], Any]:
        if architecture.has_interleaved_rope and ".attn_q." in tensor.name:
            return lambda rows: split_rope_halves(rows, num_heads[0])
        if architecture.has_interleaved_rope and ".attn_k." in tensor.name:
            return lambda rows: split_rope_halves(rows, num_heads[1])
        return lambda rows: rows

    def read(tensor: GgufTensor) -> Any:
        raw = np.asarray(file[tensor.offset : tensor.offset + tensor.num_bytes])
        if len(tensor.shape) == 2 and tensor.type_name in READERS and quantization == "none":
            n, k = tensor.shape
            num_bytes = len(raw) // n  # of a row
            num_blocks = k // (256 if tensor.type_name.endswith("_K") else 32)
            blocks = order(tensor)(raw.reshape(n, num_bytes)).reshape(n, num_blocks, -1)
            return pack_codes(READERS[tensor.type_name](blocks))
        values = order(tensor)(dequantize(raw, tensor.type_name, tensor.shape))
        if tensor.name.endswith("norm.weight") and architecture.norm_offset:
            values = values - np.float32(architecture.norm_offset)
        return values if values.ndim < 2 else pack_floats(np.ascontiguousarray(values), quantization)

    names = {t.name: name for t in gguf.tensors.values() if (name := hugging_face_name(gguf, t.name)) is not None}
    with ThreadPoolExecutor(_THREADS, "pack") as pool:
        tensors = [gguf.tensors[name] for name in names]
        yield from zip(names.values(), pool.map(read, tensors), strict=True)


def pack_tensors(tensors: Iterable[tuple[str, Any]], quantization: str) -> Reading:
    """Of torch's tensors."""
    for name, tensor in tensors:
        values = tensor.float().numpy()
        yield name, values if values.ndim < 2 else pack_floats(values, quantization)


def collect(reading: Reading, spec: DecoderSpec) -> ModelWeights:
    """All of a model's tensors, by the names that DecoderSpec's prefixes give. Raises ModelError for one without a
    place."""
    weights = ModelWeights()
    known = parameter_shapes(spec)
    for given_name, value in reading:
        name = _own_name(given_name, spec)
        if name == ROPE_DIVISORS:
            weights.vectors[name] = value
        elif name in known:
            _check(given_name, value, known[name])
            if isinstance(value, Packed):
                weights.matrices[name] = value
            else:
                weights.vectors[name] = np.ascontiguousarray(value, dtype=np.float32)
        elif not _is_redundant(name, given_name, spec):
            raise ModelError(f"tensor {given_name} has no place in {spec.architecture}")
    missing = [name for name in known if name not in weights.matrices and name not in weights.vectors]
    if missing:
        raise ModelError(
            f"the model has no tensor {missing[0]}" + (f" and {len(missing) - 1} more" * (len(missing) > 1))
        )
    return weights


def _check(name: str, value: Any, shape: tuple[int, ...]) -> None:
    if isinstance(value, Packed):
        fits = len(shape) == 2 and (value.n, value.k) == (-(-shape[0] // 16) * 16, -(-shape[1] // BLOCK) * BLOCK)
    else:
        fits = value.shape == shape
    if not fits:
        got = [value.n, value.k] if isinstance(value, Packed) else list(value.shape)
        raise ModelError(f"tensor {name} has shape {got}, {list(shape)} is needed")


def _own_name(name: str, spec: DecoderSpec) -> str:
    for checkpoint_prefix, own_prefix in spec.weight_prefixes:
        if name.startswith(checkpoint_prefix):
            return own_prefix + name.removeprefix(checkpoint_prefix)
    return name


def _is_redundant(name: str, given_name: str, spec: DecoderSpec) -> bool:
    is_tied_head = spec.ties_embeddings and name == "lm_head.weight"
    return is_tied_head or name.endswith("rotary_emb.inv_freq") or given_name.startswith(spec.ignored_weights)


def parameter_shapes(spec: DecoderSpec) -> Mapping[str, tuple[int, ...]]:
    """The name and shape of every tensor that the model must bring."""
    hidden, inner, query, kv = spec.hidden_size, spec.intermediate_size, spec.query_size, spec.kv_size
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (spec.vocab_size, hidden)}
    projections = {
        "self_attn.q_proj": (query, hidden, spec.has_qkv_bias),
        "self_attn.k_proj": (kv, hidden, spec.has_qkv_bias),
        "self_attn.v_proj": (kv, hidden, spec.has_qkv_bias),
        "self_attn.o_proj": (hidden, query, spec.has_output_bias),
        "mlp.gate_proj": (inner, hidden, spec.has_mlp_bias),
        "mlp.up_proj": (inner, hidden, spec.has_mlp_bias),
        "mlp.down_proj": (hidden, inner, spec.has_mlp_bias),
    }
    norms = ["input_layernorm", "post_attention_layernorm"]
    if spec.has_post_norms:
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    for i in range(spec.num_layers):
        layer = f"model.layers.{i}."
        for name, (n, k, has_bias) in projections.items():
            shapes[f"{layer}{name}.weight"] = (n, k)
            if has_bias:
                shapes[f"{layer}{name}.bias"] = (n,)
        shapes |= {f"{layer}{name}.weight": (hidden,) for name in norms}
        if spec.has_qk_norms:
            shapes |= {f"{layer}self_attn.{name}.weight": (spec.head_dim,) for name in ("q_norm", "k_norm")}
    shapes["model.norm.weight"] = (hidden,)
    if not spec.ties_embeddings:
        shapes["lm_head.weight"] = (spec.vocab_size, hidden)
    return shapes
