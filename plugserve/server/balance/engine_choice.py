"""Which of a model's engines a request goes to: the one that has computed its beginning, unless it is much busier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from plugserve.server.balance.prefix_table import PrefixTable

TOKENS_PER_SEQUENCE: Final = 256
"""Prompt tokens that needn't be computed weigh as much as one sequence more in an engine."""
_MOST_EXCESS: Final = 8


class EngineChoice:
    """Remembers which engine was sent which blocks. block_size is that of the KV cache, in tokens."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._table = PrefixTable()
        self._last = -1

    def choose(self, loads: Mapping[int, int], blocks: Sequence[int]) -> int:
        """One of the owners in loads, which are never empty: sequences in flight by engine. An owner is an engine from
        one start to its end. blocks are the hashes of the prompt's full blocks, [] where prefixes aren't cached.

        An engine that holds the beginning may have a sequence more than the least busy one for each 256 tokens of it,
        up to 8; else the least busy one is taken, in turn among equals.
        """
        match = self._table.match(blocks, loads)
        least = min(loads.values())
        chosen = self._next([owner for owner, load in loads.items() if load == least])
        if match.holders:
            holder = min(match.holders, key=lambda owner: (loads[owner], owner))
            excess = min(_MOST_EXCESS, match.num_blocks * self._block_size // TOKENS_PER_SEQUENCE)
            if loads[holder] <= least + excess:
                chosen = holder
        if blocks:
            self._table.note(blocks, chosen)
        self._last = chosen
        return chosen

    def _next(self, owners: Sequence[int]) -> int:
        """The one after the last chosen one, going round."""
        return min(owners, key=lambda owner: (owner <= self._last, owner))
