"""Attention backends: the attention of a model, a cache's shape, and one step's rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """The attention of one model, as backends see it. dtype and device are torch's names ("float32", "cpu").

    scale multiplies q @ k. windows has one entry a layer: its sliding window in tokens (a token sees itself and
    window - 1 before it), or None; () means that no layer has one. soft_cap bounds scores by cap * tanh(score / cap).
    """

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    dtype: str
    device: str
    windows: tuple[int | None, ...] = ()
    soft_cap: float | None = None


@dataclass(frozen=True, slots=True)
class KVLayout:
    """The shape of one layer's cache; core makes one tensor a layer, uninitialised, of the model's dtype.

    shape holds the word "num_blocks" where the number of blocks goes, e.g. (2, "num_blocks", 16, 3, 64).
    bytes_per_block is what one block costs in all layers together.
    """

    shape: tuple[int | str, ...]
    bytes_per_block: int


@dataclass(slots=True)
class AttentionBatch:
    """One step's rows; T tokens of B sequences, lying one sequence after another.

    query_lens[b] new tokens are the last ones of context_lens[b] tokens in the cache (new ones included). Backends that
    are not graph_safe work from these Python numbers. In a captured step they are upper bounds of its replays: one
    token (or none) a row, and the longest context.

    Tensors on the device, valid in every step: slots [T] int64 (block * block_size + offset, where each new token's
    key and value go); block_table [B, max_blocks] int32 (the first ceil(context_len / block_size) entries of a row are
    valid); query_starts [B + 1] int32, where each row's tokens start, and T at last; context_lengths [B] int32.
    """

    query_lens: list[int]
    context_lens: list[int]
    slots: torch.Tensor
    block_table: torch.Tensor
    block_size: int
    query_starts: torch.Tensor
    context_lengths: torch.Tensor


@runtime_checkable
class AttentionBackend(Protocol):
    """Paged attention over core's blocks.

    A backend may have work_bytes(max_num_tokens, max_num_seqs, max_len) too: what it allocates in prepare and in the
    largest step, in bytes, for the memory ledger. It is called after kv_layout and before prepare.

    prepare allocates once, plan does a step's device work on metadata, run attends in one layer without synchronising.
    Where graph_safe, plan and run of a step with one token a row may be captured in a CUDA graph and replayed with
    other contents of the same tensors: neither reads a device value on the host, and work space comes from
    prepare or from torch's allocator (which captures into the graph's own pool).
    """

    graph_safe: bool
    """False: steps run eagerly, never captured. A warning at the start describes the cost."""

    def refusal(self, spec: AttentionSpec) -> str | None:
        """Why this backend can't serve spec, in half a line, or None. Called before kv_layout."""

    def kv_layout(self, spec: AttentionSpec) -> KVLayout:
        """The cache's shape. Called once, before memory is planned."""

    def prepare(self, max_num_tokens: int, max_num_seqs: int) -> None:
        """Allocate work space for steps up to this size. Called once before the first step."""

    def plan(self, batch: AttentionBatch) -> Any:
        """Make what all layers of this step share (masks, gathers, work lists). Called once a step; the result
        is handed to each run of the step."""

    def run(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kv: torch.Tensor, step: Any, layer: int
    ) -> torch.Tensor:
        """Write k and v into kv at the step's slots, then attend causally within each sequence and layer's window.

        q [T, num_heads, head_dim]; k, v [T, num_kv_heads, head_dim]; kv as kv_layout, the tensor of layer (counted
        from 0). Returns [T, num_heads, head_dim].
        """
