"""The host's side of speculative decoding: chooses the number of drafts of each sequence, and counts accepted ones.
Torch-free.

The runner drafts and verifies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from plugserve.core.contracts.engine_facts import EngineStats
from plugserve.core.contracts.runner import StepResult
from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.engine.acceptance import Acceptance, DraftPolicy
from plugserve.core.engine.sequence import Sequence
from plugserve.core.plugin_system.failure_policy import STRATEGY_POLICIES, FailurePolicy
from plugserve.core.plugin_system.plugin_guard import PluginGuard

_CALL: Final = "propose"


class Speculation:
    """Applies policy and counts drafts and acceptance in stats. plugin makes the drafts; guard handles its failures."""

    def __init__(self, policy: DraftPolicy, stats: EngineStats, plugin: str, guard: PluginGuard) -> None:
        self._policy = policy
        self._plugin = plugin
        self._guard = guard
        guard.note_time(plugin, _CALL, 0.0)
        self._stats = stats
        stats.num_accepted_per_position = [0] * policy.max_num_drafts

    def acceptance(self, params: SamplingParams) -> Acceptance | None:
        """The acceptance of a new sequence; None for one that can't speculate: a grammar's masks need each token before
        the next."""
        return None if params.grammar else Acceptance()

    def choose(
        self,
        scheduled: list[tuple[int, int]],
        needs: list[int],
        sequences: Mapping[int, Sequence],
        max_num_tokens: int,
        num_free_blocks: int,
    ) -> list[int]:
        """The number of drafts of each scheduled (sequence id, tokens): those that pay and fit into the tokens and
        blocks that the plan leaves over. needs are the blocks of its entries. Empty when none gets any."""
        num_tokens = sum(count for _, count in scheduled)
        num_spare_tokens, num_spare_blocks = max_num_tokens - num_tokens, num_free_blocks - sum(needs)
        self._policy.begin_step(len(scheduled), num_tokens)
        chosen = []
        for id, count in scheduled:
            sequence, num_drafts = sequences[id], 0
            if sequence.acceptance is not None and sequence.is_running and count == sequence.num_pending == 1:
                sequence.num_draft = self._policy.num_drafts(sequence.acceptance)
                num_drafts = max(0, min(sequence.num_draft, sequence.most_drafts(), num_spare_tokens))
                num_blocks = sequence.num_new_blocks(1 + num_drafts) - sequence.num_new_blocks(1)
                if num_blocks > num_spare_blocks:
                    num_drafts = num_blocks = 0
                num_spare_blocks -= num_blocks
                num_spare_tokens -= num_drafts
            chosen.append(num_drafts)
        return chosen if any(chosen) else []

    def reclaim_blocks(self, sequences: Iterable[Sequence]) -> None:
        """Free the blocks of refused drafts, when other sequences need them."""
        for sequence in sequences:
            surplus = sequence.surplus_blocks() if sequence.is_running and sequence.acceptance is not None else 0
            if surplus:
                sequence.kv.pool.free(sequence.blocks[-surplus:])
                sequence.blocks = sequence.blocks[:-surplus]

    def settle(
        self, sequences: list[Sequence], num_tokens: list[int], num_drafts: list[int], result: StepResult
    ) -> list[int]:
        """The confirmed number of computed tokens of each entry of a collected step: num_tokens, or with speculation
        the number of its new tokens."""
        counts = list(num_tokens)
        self._stats.num_draft_errors += result.has_draft_error
        if result.draft_error is not None:
            policy = STRATEGY_POLICIES["draft proposer"] if result.is_proposer_off else FailurePolicy.COUNT
            self._guard.note_failure(self._plugin, _CALL, result.draft_error, policy)
        self._guard.note_time(self._plugin, _CALL, result.draft_s)
        is_usual = not self._caught_up(sequences, result)
        for b, most in enumerate(num_drafts):
            if most and b not in result.failed:
                counts[b] = len(result.tokens[b])
                self._observe_entry(sequences[b], result.num_drafted.get(b, 0), counts[b] - 1)
        if is_usual:
            self._observe_step(num_tokens, num_drafts, result)
        return counts

    def _caught_up(self, sequences: list[Sequence], result: StepResult) -> bool:
        """True if a draft model may have computed a whole prompt in this step, so that its time doesn't represent other
        steps."""
        drafted = [b for b, count in result.num_drafted.items() if count and b not in result.failed]
        return any((past := sequences[b].acceptance) is not None and not past.is_warm for b in drafted)

    def _observe_entry(self, sequence: Sequence, num_drafted: int, num_accepted: int) -> None:
        if not num_drafted:
            return
        stats = self._stats
        stats.num_drafts += 1
        stats.num_draft_tokens += num_drafted
        stats.num_accepted_draft_tokens += num_accepted
        for position in range(num_accepted):
            stats.num_accepted_per_position[position] += 1
        if sequence.acceptance is not None:
            self._policy.observe_sequence(sequence.acceptance, num_drafted, num_accepted)

    def _observe_step(self, num_tokens: list[int], num_drafts: list[int], result: StepResult) -> None:
        """Report to the policy how long a step took in which every sequence decoded."""
        num_sequences = len(num_tokens)
        if result.duration_s and _is_decoding(num_tokens, num_drafts):
            num_drafted = sum(result.num_drafted.values())
            num_new_tokens = sum(map(len, result.tokens))
            self._policy.observe_step(num_sequences, num_sequences + num_drafted, num_new_tokens, result.duration_s)


def _is_decoding(num_tokens: list[int], num_drafts: list[int]) -> bool:
    return sum(num_tokens) - sum(num_drafts) == len(num_tokens)
