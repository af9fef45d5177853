"""Communication between the ranks that share a model, after each projection that is split by its inputs.

A part that owns such a projection calls reduce on its output. One rank holds a whole model today, so that SINGLE_RANK
is the only implementation; its bias-carrying projections add their bias before reduce, so ranks other than the first
will have to hold zeros there.
"""

from __future__ import annotations

from typing import Protocol

import torch


class Collectives(Protocol):
    """Communication between the ranks that share a model."""

    def reduce(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of x over all ranks; may be computed in place."""


class SingleRank:
    """A model on one device: nothing to sum."""

    def reduce(self, x: torch.Tensor) -> torch.Tensor:
        return x


SINGLE_RANK = SingleRank()
