"""Records torch operations that allocate memory or wait for the device, for tests of attention's run."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_WAITING = frozenset(
    ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "equal")
    + ("unique_dim", "_unique2", "unique_consecutive")
)


class WatchedTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context manager. waits names the operations that need a value on the host, allocations those that allocated
    memory; num_alive counts the allocated tensors that are still alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.waits: list[str] = []
        self._names: dict[int, str] = {}  # of the allocating operation, by storage
        self._allocated: list[weakref.ref[torch.Tensor]] = []

    def allocations(self, *, but_for: torch.Tensor) -> list[str]:
        """The operations that allocated other memory than but_for's."""
        return [name for storage, name in self._names.items() if storage != but_for.untyped_storage()._cdata]

    @property
    def num_alive(self) -> int:
        return sum(tensor() is not None for tensor in self._allocated)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        known = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2]
        if name in _WAITING or self._has_bool_index(name, args):
            self.waits.append(name)
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in known and storage.nbytes() and name != "set_":  # set_ refers to existing memory
                self._names[storage._cdata] = name
                self._allocated.append(weakref.ref(tensor))
        return result

    @staticmethod
    def _has_bool_index(name: str, args: tuple[Any, ...]) -> bool:
        """x[mask] counts the mask's bits on the device to get its shape."""
        return name in ("index", "index_put_") and any(index.dtype == torch.bool for index in _tensors(args[1]))


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))
