"""A model runner without a model or torch: tokens are a hash of the contents of the sequence's KV blocks.

Each computed token writes a value into its block's slot that depends on all tokens before it, as real keys and values
do; a sampled token depends on the whole context, read through the block table. A block that is freed too early, shared
wrongly or written twice therefore gives a wrong token: compare with expected_tokens. Host slots are lists too. The
vector of a pooling row is its number of tokens. A step with drafts accepts some, rejects the rest, and leaves invalid
values in the slots of rejected drafts.

Results come one step late, as the contract requires.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from plugserve.core.contracts.runner import LengthRule, NewRow, RunnerInfo, StepInput, StepResult


@dataclass(slots=True)
class _Row:
    tokens: list[int]
    num_computed: int
    blocks: list[int] = field(default_factory=list)
    is_pooling: bool = False


def mix(value: int, token: int) -> int:
    """The value of a slot: a hash of its token and of the value before it."""
    return (value * 1_000_003 ^ (token + 1)) & 0xFFFFFFFF


def _draw(slots: Sequence[int], vocab_size: int) -> int:
    value = len(slots)
    for slot in slots:
        value = mix(value, slot)
    return value % vocab_size


def expected_tokens(prompt: Sequence[int], num_tokens: int, vocab_size: int = 1000) -> list[int]:
    """The tokens that a FakeRunner generates after prompt, in a correct engine."""
    slots: list[int] = []
    for token in prompt:
        slots.append(mix(slots[-1] if slots else 0, token))
    drawn = []
    for _ in range(num_tokens):
        drawn.append(_draw(slots, vocab_size))
        slots.append(mix(slots[-1], drawn[-1]))
    return drawn


class FakeRunner:
    """ModelRunner over plain lists. Sampled tokens are below vocab_size."""

    owns_attention = True

    def __init__(
        self,
        *,
        num_blocks: int = 64,
        block_size: int = 16,
        max_model_len: int = 512,
        vocab_size: int = 1000,
        num_host_slots: int = 0,
        length_rule: LengthRule | None = None,
        num_stages: int = 1,
    ) -> None:
        self.info = RunnerInfo(
            vocab_size=vocab_size,
            max_model_len=max_model_len,
            max_num_batched_tokens=64,
            num_blocks=num_blocks,
            block_size=block_size,
            kv_cache_bytes=0,
            weight_bytes=0,
            dtype="float32",
            device="cpu",
            num_host_slots=num_host_slots,
            length_rule=length_rule,
            num_stages=num_stages,
        )
        self.num_launched_tokens: list[int] = []
        self.max_batch = 0
        self._rows: dict[int, _Row] = {}
        self._memory = [[-1] * block_size for _ in range(num_blocks)]
        self._host: dict[int, list[int]] = {}
        self._results: deque[StepResult] = deque()
        self._queued: deque[StepInput] = deque()  # from one that waits for its masks on
        self.max_in_flight = 0

    def load(self) -> RunnerInfo:
        return self.info

    def launch(self, step: StepInput) -> None:
        assert self.info.num_stages > 1 or not self._queued, "a step was launched before the masks of the one before"
        self.num_launched_tokens.append(sum(step.num_tokens))
        self.max_batch = max(self.max_batch, len(step.rows))
        self._queued.append(step)
        self.max_in_flight = max(self.max_in_flight, len(self._queued) + len(self._results))
        assert self.max_in_flight <= self.info.num_stages + 1, "too many steps in flight"
        self._go_on()

    def _go_on(self) -> None:
        while self._queued and not self._queued[0].constrained:
            step = self._queued.popleft()
            self._apply(step)
            self._execute(step, {})

    def _apply(self, step: StepInput) -> None:
        for row in step.freed_rows:
            del self._rows[row]
        for new in step.new_rows:
            self._add(new)
        for row, start, blocks in step.new_blocks:
            assert len(self._rows[row].blocks) >= start, "a row's block table has a gap"
            self._rows[row].blocks[start:] = blocks  # replaces blocks that were taken back
        for block, slot in step.copy_out:
            assert 0 <= slot < self.info.num_host_slots, "a copy to a host slot that doesn't exist"
            self._host[slot] = list(self._memory[block])
        for slot, block in step.copy_in:
            self._memory[block] = list(self._host[slot])

    def provide_masks(self, step_id: int, masks: Any) -> None:
        assert self._queued, "masks for a step that needs none"
        step = self._queued.popleft()
        assert step.step_id == step_id, "masks for another step than the waiting one"
        self._apply(step)
        self._execute(step, dict(zip(step.constrained, masks, strict=True)))
        self._go_on()

    def _execute(self, step: StepInput, masks: dict[int, Any]) -> None:
        tokens, num_drafted = [], {}
        for b, (row, count, samples) in enumerate(zip(step.rows, step.num_tokens, step.samples, strict=True)):
            if step.num_drafts and step.num_drafts[b]:
                assert count == 1 + step.num_drafts[b], "a step with drafts computes one token and its drafts"
                drawn, num_drafted[b] = self._speculate(self._rows[row], step.num_drafts[b])
                tokens.append(drawn)
            else:
                tokens.append(self._compute(self._rows[row], count, samples, masks.get(b)))
        pooled = {
            b: array("f", [float(self._rows[row].num_computed)]).tobytes()
            for b, row in enumerate(step.rows)
            if self._rows[row].is_pooling and self._rows[row].num_computed >= len(self._rows[row].tokens)
        }
        self._results.append(StepResult(step.step_id, tokens, pooled=pooled, num_drafted=num_drafted))

    def _add(self, new: NewRow) -> None:
        assert new.row not in self._rows, "a row was assigned twice"
        self._rows[new.row] = _Row(list(new.token_ids), new.num_computed, list(new.blocks), bool(new.params.pooling))

    def _speculate(self, row: _Row, most: int) -> tuple[list[int], int]:
        """The new tokens of a row with up to most drafts, and the number of drafts."""
        chance = _draw(row.tokens, 1 << 16)
        num_drafts = chance % (most + 1)
        num_kept = chance // 16 % (num_drafts + 1)
        drawn = [token for _ in range(num_kept + 1) for token in self._compute(row, 1, True, None)]
        size = self.info.block_size
        for position in range(row.num_computed, row.num_computed + num_drafts - num_kept):
            self._memory[row.blocks[position // size]][position % size] = -7
        return drawn, num_drafts

    def _compute(self, row: _Row, count: int, samples: bool, mask: Any) -> list[int]:
        size = self.info.block_size
        assert row.num_computed + count <= len(row.tokens), "a token is computed before it is known"
        for position in range(row.num_computed, row.num_computed + count):
            before = self._memory[row.blocks[(position - 1) // size]][(position - 1) % size] if position else 0
            self._memory[row.blocks[position // size]][position % size] = mix(before, row.tokens[position])
        row.num_computed += count
        if not samples:
            return []
        slots = [self._memory[row.blocks[p // size]][p % size] for p in range(row.num_computed)]
        token = _draw(slots, self.info.vocab_size)
        while mask is not None and not mask[token // 32] >> (token % 32) & 1:
            token = (token + 1) % self.info.vocab_size
        row.tokens.append(token)
        return [token]

    def collect(self) -> StepResult:
        return self._results.popleft()

    def close(self) -> None:
        self._rows.clear()
