"""Assigns device rows to sequences, and collects the rows' changes since the last launch. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field

from plugserve.core.contracts.runner import NewRow
from plugserve.core.engine.sequence import Sequence


@dataclass(slots=True)
class RowDeltas:
    """Changes of the device's rows since the last launch; fields as in StepInput."""

    new_rows: list[NewRow] = field(default_factory=list)
    freed_rows: list[int] = field(default_factory=list)
    new_blocks: list[tuple[int, int, list[int]]] = field(default_factory=list)


class DeviceRows:
    """num_rows rows, numbered from 0; lowest first."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows
        self._free = list(range(num_rows - 1, -1, -1))
        self._deltas = RowDeltas()

    @property
    def num_free(self) -> int:
        return len(self._free)

    def allocate(self, sequence: Sequence) -> None:
        """Assign a row to a sequence that starts, and queue its tokens, blocks and parameters."""
        sequence.row = self._free.pop()
        self._deltas.new_rows.append(
            NewRow(
                row=sequence.row,
                token_ids=sequence.tokens,
                num_prompt_tokens=sequence.num_prompt_tokens,
                num_computed=sequence.num_computed,
                blocks=sequence.blocks,
                params=sequence.params,
                stop_ids=tuple(sequence.stop_ids),
                rope_length=sequence.rope_length,
                id=sequence.id,
                adapter_slot=-1 if sequence.adapter is None else sequence.adapter.slot,
            )
        )

    def add_blocks(self, sequence: Sequence, blocks: list[int]) -> None:
        """A sequence that has a row gets more blocks."""
        self._deltas.new_blocks.append((sequence.row, len(sequence.blocks), blocks))
        sequence.blocks = sequence.blocks + blocks  # a new list: the row's delta may hold the old one

    def free(self, sequence: Sequence) -> None:
        """Free the sequence's row, if it has one; nothing of it is in flight."""
        if sequence.row >= 0:
            self._free.append(sequence.row)
            self._deltas.freed_rows.append(sequence.row)
            sequence.row = -1

    def take_deltas(self) -> RowDeltas:
        """Take the changes, for the step that is launched now."""
        taken, self._deltas = self._deltas, RowDeltas()
        return taken
