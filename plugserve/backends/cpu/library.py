"""The native library: its structs as native/native.h declares them, and how it is found."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

VERSION = 1
"""PS_VERSION of native/native.h."""

_INTS, _FLOATS, _POINTER = ctypes.c_int32, ctypes.c_float, ctypes.c_void_p


class Matrix(ctypes.Structure):
    """ps_matrix"""

    _fields_ = [
        *((name, _INTS) for name in ("format", "n", "k", "group", "zero")),
        *((name, _POINTER) for name in ("codes", "scales", "minima", "bias")),
    ]


class Layer(ctypes.Structure):
    """ps_layer"""

    _fields_ = [
        *((name, Matrix) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        *((name, _POINTER) for name in ("input_norm", "mlp_norm", "q_norm", "k_norm")),
        *((name, _POINTER) for name in ("post_attention_norm", "post_mlp_norm")),
        *((name, _INTS) for name in ("window", "rope")),
    ]


class Rope(ctypes.Structure):
    """ps_rope"""

    _fields_ = [("cos", _POINTER), ("sin", _POINTER), ("rotary_dims", _INTS)]


class ModelConfig(ctypes.Structure):
    """ps_model_config"""

    _fields_ = [
        *((name, _INTS) for name in ("num_layers", "hidden_size", "intermediate_size", "num_heads", "num_kv_heads")),
        *((name, _INTS) for name in ("head_dim", "vocab_size", "activation")),
        *((name, _FLOATS) for name in ("norm_eps", "attention_scale", "attention_soft_cap", "logits_soft_cap")),
        ("embedding_scale", _FLOATS),
        ("layers", ctypes.POINTER(Layer)),
        ("ropes", ctypes.POINTER(Rope)),
        ("embedding", Matrix),
        ("head", Matrix),
        ("final_norm", _POINTER),
        ("block_size", _INTS),
        ("num_blocks", _INTS),
        ("kv", _POINTER),
        *((name, _INTS) for name in ("max_tokens", "max_rows", "max_len", "num_threads", "level")),
    ]


class Step(ctypes.Structure):
    """ps_step"""

    _fields_ = [
        *((name, _INTS) for name in ("num_tokens", "num_rows", "num_wanted", "table_stride")),
        *((name, _POINTER) for name in ("token_ids", "positions", "slots", "query_starts", "context_lens")),
        *((name, _POINTER) for name in ("block_table", "wanted", "logits", "hidden")),
    ]


@cache
def find_library() -> ctypes.CDLL | str:
    """The library, or why there is none, in half a line."""
    folder = Path(__file__).parent
    paths = sorted(folder.glob("_native*.so")) + sorted(folder.glob("_native*.dylib"))
    if not paths:
        return "its library was not built: that needs a C++ compiler when plugserve is installed"
    try:
        library = ctypes.CDLL(str(paths[0]))
    except OSError as error:
        return f"its library can't be loaded ({error}); install plugserve again"
    if not hasattr(library, "ps_version") or library.ps_version() != VERSION:
        return f"its library {paths[0].name} is of another version; install plugserve again"
    library.ps_levels.restype = ctypes.c_char_p
    library.ps_kv_bytes_per_block.restype = ctypes.c_int64
    library.ps_create.restype = _POINTER
    library.ps_destroy.argtypes = [_POINTER]
    library.ps_compute.argtypes = [_POINTER, ctypes.POINTER(Step)]
    library.ps_logits.argtypes = [_POINTER, _INTS, _POINTER, _POINTER]
    return library
