"""Communication between the ranks that share a model.

A projection that is cut by its inputs leaves each rank a part of every output: its part calls reduce. One that is cut
by its outputs leaves each rank some of the outputs: gather puts them together. A bias that is added before reduce is
held by the first rank alone.
"""

from __future__ import annotations

from typing import Protocol

import torch

from plugserve.backends.torch.models.pipeline import ONE_STAGE, Pipeline


class Collectives(Protocol):
    """Communication between num_ranks ranks, of which this process is number rank. Every rank makes the same calls in
    the same order, and gets the same result bit for bit. They are one stage of pipeline."""

    rank: int
    num_ranks: int
    pipeline: Pipeline

    def join(self) -> None:
        """Meet the other ranks, before any other call; waits until all are there."""

    def reduce(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of x over all ranks; may be computed in place."""

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """[B, sum of N over the ranks] of each rank's x [B, N]."""

    def least(self, number: int) -> int:
        """The smallest of the ranks' numbers, of all stages."""


class SingleRank:
    """A model on one device: nothing to exchange."""

    rank = 0
    num_ranks = 1
    pipeline: Pipeline = ONE_STAGE

    def join(self) -> None: ...

    def reduce(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def least(self, number: int) -> int:
        return number


SINGLE_RANK = SingleRank()
