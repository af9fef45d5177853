"""Logprobs of drawn tokens under the model's raw distribution: computed on the device, described on the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from plugserve.core.contracts.sampling import TokenLogprobs


@dataclass(slots=True)
class Logprobs:
    """Of N tokens: ids, logprobs and ranks [N], and the most likely tokens with theirs [N, K], of which the first
    num_top[n] of token n are wanted."""

    num_top: Sequence[int]
    ids: torch.Tensor
    values: torch.Tensor
    ranks: torch.Tensor
    top_ids: torch.Tensor
    top_values: torch.Tensor

    def moved(self, move: Callable[[torch.Tensor], torch.Tensor]) -> Logprobs:
        """The same with every tensor moved."""
        tensors = (self.ids, self.values, self.ranks, self.top_ids, self.top_values)
        return Logprobs(self.num_top, *map(move, tensors))

    @classmethod
    def joined(cls, parts: Sequence[Logprobs]) -> Logprobs:
        """Those of all parts, one after the other."""
        width = max(part.top_ids.shape[1] for part in parts)
        columns = [
            (part.ids, part.values, part.ranks, _widened(part.top_ids, width), _widened(part.top_values, width))
            for part in parts
        ]
        num_top = [count for part in parts for count in part.num_top]
        return cls(num_top, *map(torch.cat, zip(*columns, strict=True)))

    def describe(self) -> list[TokenLogprobs]:
        """One entry a token. Waits for the device where tensors lie there."""
        columns = (self.ids, self.values, self.ranks, self.top_ids, self.top_values)
        return [
            TokenLogprobs(token, value, rank, top_ids[:count], top_values[:count])
            for token, value, rank, top_ids, top_values, count in zip(
                *(column.tolist() for column in columns), self.num_top, strict=True
            )
        ]


def _widened(tensor: torch.Tensor, width: int) -> torch.Tensor:
    return torch.nn.functional.pad(tensor, (0, width - tensor.shape[1]))


def logprobs_of(distributions: torch.Tensor, chosen: torch.Tensor, num_top: Sequence[int]) -> Logprobs:
    """Of tokens chosen [N] under logprobs [N, V]."""
    values = distributions.gather(1, chosen.unsqueeze(1))
    ranks = (distributions > values).sum(-1) + 1
    top_values, top_ids = distributions.topk(max(num_top), dim=-1)
    return Logprobs(num_top, chosen, values.squeeze(1), ranks, top_ids, top_values)
