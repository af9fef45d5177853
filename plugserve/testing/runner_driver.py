"""Drives a model runner without an engine or a scheduler: assigns rows and blocks, launches and collects steps."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from plugserve.core.contracts.runner import ModelRunner, NewRow, StepInput, StepResult
from plugserve.core.contracts.sampling import SamplingParams

MAX_TOKENS = 10_000
GREEDY = SamplingParams(max_tokens=MAX_TOKENS, seed=0, temperature=0.0)


@dataclass(slots=True, eq=False)
class Row:
    """A sequence on the device. num_tokens counts its tokens on the device, with sampled ones, collected or not; tokens
    are the collected sampled ones."""

    row: int
    num_tokens: int
    num_computed: int
    blocks: list[int]
    params: SamplingParams
    tokens: list[int] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)


class RunnerDriver:
    """A loaded runner with num_rows rows. Blocks are allocated in random order."""

    def __init__(self, runner: ModelRunner, *, num_rows: int = 8, seed: int = 0) -> None:
        self.runner = runner
        self.info = runner.load()
        self._free_rows = list(range(num_rows))
        self._free_blocks = list(range(self.info.num_blocks))
        random.Random(seed).shuffle(self._free_blocks)
        self._new: list[NewRow] = []
        self._freed: list[int] = []
        self._in_flight: deque[tuple[int, list[Row]]] = deque()
        self._step_id = 0

    def start(
        self,
        token_ids: Sequence[int],
        params: SamplingParams = GREEDY,
        *,
        num_prompt_tokens: int | None = None,
        shared: Sequence[int] = (),
        stop_ids: tuple[int, ...] = (),
    ) -> Row:
        """Assign a row to a sequence with the next launch. shared are blocks that hold its first keys and values."""
        row = Row(
            self._free_rows.pop(0), len(token_ids), len(shared) * self.info.block_size, list(shared), params
        )  # fmt: skip
        num_prompt_tokens = len(token_ids) if num_prompt_tokens is None else num_prompt_tokens
        self._new.append(
            NewRow(row.row, list(token_ids), num_prompt_tokens, row.num_computed, list(shared), params, stop_ids)
        )
        return row

    def end(self, row: Row, *, keeps_blocks: bool = False) -> None:
        """Free a row with the next launch; none of its steps may be in flight."""
        self._free_rows.append(row.row)
        self._freed.append(row.row)
        if not keeps_blocks:
            self._free_blocks += row.blocks

    def take_block(self) -> int:
        """A free block, to fill from a host slot."""
        return self._free_blocks.pop()

    def launch(
        self,
        batch: Sequence[tuple[Row, int]],
        constrained: Sequence[int] = (),
        *,
        copy_out: Sequence[tuple[int, int]] = (),
        copy_in: Sequence[tuple[int, int]] = (),
    ) -> None:
        """One step: (row, number of tokens) in batch order. Rows that compute their last known token sample one."""
        self._step_id += 1
        new_blocks = [grown for row, count in batch if (grown := self._grow(row, count))]
        samples = [row.num_computed + count >= row.num_tokens for row, count in batch]
        new, self._new, freed, self._freed = self._new, [], self._freed, []
        self.runner.launch(
            StepInput(
                step_id=self._step_id,
                new_rows=new,
                freed_rows=freed,
                new_blocks=new_blocks,
                rows=[row.row for row, _ in batch],
                num_tokens=[count for _, count in batch],
                samples=samples,
                constrained=list(constrained),
                copy_out=list(copy_out),
                copy_in=list(copy_in),
            )
        )
        for (row, count), does_sample in zip(batch, samples, strict=True):
            row.num_computed += count
            row.num_tokens += does_sample
        self._in_flight.append((self._step_id, [row for row, _ in batch]))

    def _grow(self, row: Row, count: int) -> tuple[int, int, list[int]] | None:
        """Allocate blocks for count more tokens; returns the step's delta."""
        num_blocks = -(-(row.num_computed + count) // self.info.block_size)
        start = len(row.blocks)
        blocks = [self._free_blocks.pop() for _ in range(num_blocks - start)]
        row.blocks = row.blocks + blocks
        return (row.row, start, blocks) if blocks else None

    def provide_masks(self, masks: Any) -> None:
        """The masks of the newest step."""
        self.runner.provide_masks(self._step_id, masks)

    def collect(self) -> StepResult:
        """The oldest step's result, added to its rows. Raises AssertionError if its format is wrong."""
        step_id, rows = self._in_flight.popleft()
        result = self.runner.collect()
        assert result.step_id == step_id, f"collect returned step {result.step_id}, the oldest in flight is {step_id}"
        assert len(result.tokens) == len(rows), f"{len(result.tokens)} lists of tokens for {len(rows)} rows"
        assert not result.failed, f"rows failed: {result.failed}"
        for b, (row, tokens) in enumerate(zip(rows, result.tokens, strict=True)):
            assert all(isinstance(token, int) and 0 <= token < self.info.vocab_size for token in tokens), (
                f"entry {b} of the batch sampled {tokens}, the vocabulary has {self.info.vocab_size} ids"
            )
            row.tokens += tokens
            row.logprobs += result.logprobs.get(b, [])
        return result

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        num_tokens: int,
        *,
        params: Sequence[SamplingParams] | None = None,
        chunk: int = 1000,
        num_in_flight: int = 1,
        order: Callable[[list[Row]], list[Row]] = list,
    ) -> list[Row]:
        """Generate num_tokens tokens after each prompt, in one batch, and free the rows. chunk: tokens of a prompt in
        one step; order: the batch order of each step."""
        rows = [
            self.start(prompt, params[n] if params else GREEDY) for n, prompt in enumerate(prompts)
        ]  # fmt: skip
        target = {id(row): row.num_tokens + num_tokens for row in rows}
        while live := [row for row in rows if row.num_tokens < target[id(row)]]:
            self.launch([(row, min(chunk, row.num_tokens - row.num_computed)) for row in order(live)])
            if len(self._in_flight) >= num_in_flight:
                self.collect()
        while self._in_flight:
            self.collect()
        for row in rows:
            self.end(row)
        return rows
