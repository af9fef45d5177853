"""Small GGUF files for tests, written by the gguf package."""

from pathlib import Path

import gguf
import numpy as np

BYTE_LETTERS = {}
_next = 0
for _byte in range(256):
    if 33 <= _byte <= 126 or 161 <= _byte <= 172 or 174 <= _byte <= 255:
        BYTE_LETTERS[_byte] = chr(_byte)
    else:
        BYTE_LETTERS[_byte] = chr(256 + _next)
        _next += 1


def spelled(text: str) -> str:
    """text in the letters of byte-level BPE."""
    return "".join(BYTE_LETTERS[byte] for byte in text.encode())


def write_gguf(path: Path, fill, *, arch: str = "llama") -> Path:
    """A file that fill(writer) puts metadata and tensors into."""
    writer = gguf.GGUFWriter(path, arch)
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_llama_shape(writer, *, layers=1, hidden=64, heads=4, kv_heads=2, inner=128, context=256) -> None:
    """The metadata that a tiny Llama needs."""
    writer.add_context_length(context)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(inner)
    writer.add_block_count(layers)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)


def add_llama_tensors(writer, *, layers=1, hidden=64, heads=4, kv_heads=2, inner=128, vocab=32, seed=0) -> dict:
    """Random float32 tensors of a tiny Llama with tied embeddings; returns them by GGUF name."""
    rng = np.random.default_rng(seed)
    head_dim = hidden // heads
    shapes = {"token_embd.weight": (vocab, hidden), "output_norm.weight": (hidden,)}
    for layer in range(layers):
        shapes |= {
            f"blk.{layer}.attn_norm.weight": (hidden,),
            f"blk.{layer}.attn_q.weight": (heads * head_dim, hidden),
            f"blk.{layer}.attn_k.weight": (kv_heads * head_dim, hidden),
            f"blk.{layer}.attn_v.weight": (kv_heads * head_dim, hidden),
            f"blk.{layer}.attn_output.weight": (hidden, heads * head_dim),
            f"blk.{layer}.ffn_norm.weight": (hidden,),
            f"blk.{layer}.ffn_gate.weight": (inner, hidden),
            f"blk.{layer}.ffn_up.weight": (inner, hidden),
            f"blk.{layer}.ffn_down.weight": (hidden, inner),
        }
    tensors = {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    return tensors


def add_byte_vocabulary(writer, *, pre="smollm", merges=(), special=("<|end|>",), user_defined=()) -> list[str]:
    """A byte-level BPE vocabulary: 256 bytes, what merges make, then special and user-defined tokens."""
    letters = list(BYTE_LETTERS.values())
    merged = [left + right for left, right in merges]
    tokens = [*letters, *merged, *special, *user_defined]
    types = [1] * (len(letters) + len(merged)) + [3] * len(special) + [4] * len(user_defined)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([f"{left} {right}" for left, right in merges])
    writer.add_eos_token_id(tokens.index(special[0]))
    return tokens
