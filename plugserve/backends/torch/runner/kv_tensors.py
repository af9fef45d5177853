"""The tensors that hold keys and values, one a layer, in the shape of the attention backend's layout."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from plugserve.core.contracts.attention import AttentionBackend, AttentionSpec, KVLayout
from plugserve.core.errors import PluginError

if TYPE_CHECKING:
    from plugserve.backends.torch.runner.devices import DeviceKind


def checked_layout(attention: AttentionBackend, spec: AttentionSpec) -> KVLayout:
    """The backend's layout for spec. Raises PluginError for anything else."""
    layout = attention.kv_layout(spec)
    if not isinstance(layout, KVLayout):
        raise PluginError(f"attention: kv_layout returned {type(layout).__name__}, not a plugserve.KVLayout")
    return layout


def kv_tensors(
    layout: KVLayout, num_blocks: int, num_layers: int, dtype: torch.dtype, kind: DeviceKind
) -> list[torch.Tensor]:
    """One zeroed tensor a layer."""
    shape = [num_blocks if part == "num_blocks" else int(part) for part in layout.shape]
    return [kind.zeros(shape, dtype) for _ in range(num_layers)]
