"""Schedulers: what they see of a sequence, what a step may hold, and the plan that they make."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable


class SequenceView(Protocol):
    """A sequence as a scheduler sees it. Read-only: setting an attribute raises AttributeError.

    The host plans step N+1 while step N runs on the device, so counts are split into what is confirmed
    (num_computed: tokens whose keys and values are in the cache, as collected) and what is under way
    (num_in_flight_max: an upper bound of what the steps in flight add).
    """

    @property
    def id(self) -> int:
        """Unique in the engine's life, growing in order of arrival."""

    @property
    def arrival_s(self) -> float:
        """The time at which the engine admitted it, on the clock of StepBudget.now_s."""

    @property
    def priority(self) -> int:
        """The request's priority; lower is more urgent, 0 by default."""

    @property
    def user(self) -> str:
        """The request's user: the API key's name, the user field, or both as KEY/USER; "" when unknown."""

    @property
    def num_prompt_tokens(self) -> int: ...

    @property
    def num_tokens(self) -> int:
        """Prompt plus confirmed generated tokens."""

    @property
    def max_num_tokens(self) -> int:
        """Prompt plus the most tokens that it may generate."""

    @property
    def num_computed(self) -> int: ...

    @property
    def num_in_flight_max(self) -> int: ...

    @property
    def num_draft(self) -> int:
        """The most draft tokens that core may add to its next step, where tokens and blocks are left over; 0 without
        speculation. A plan doesn't count them."""

    @property
    def num_cached_tokens(self) -> int:
        """Prompt tokens that the prefix cache gave."""

    @property
    def num_pending(self) -> int:
        """The most tokens that can be scheduled for it now: what is left of a prompt (or of a recomputed
        sequence), 1 for a decoding one, preempted ones that host memory keeps included. 0 when the step in flight
        already brings its last token, and while it waits for what that step brings: blocks that it gave back, copies of
        them in host memory, or a prefix that another sequence is computing."""

    @property
    def num_blocks(self) -> int:
        """KV blocks that only it holds: what preempting it gives back. Those that it shares with others through the
        prefix cache stay."""

    @property
    def is_running(self) -> bool:
        """Admitted to the running set (holds a device row); False while it waits or after a preemption."""

    @property
    def is_prefill(self) -> bool:
        """More than one token is still to be computed before it can generate."""

    def num_new_blocks(self, num_tokens: int) -> int:
        """The number of blocks that core must allocate to compute num_tokens more of it, those that come back from host
        memory included."""


@dataclass(frozen=True, slots=True)
class StepTime:
    """A model of a step's duration, fitted on line; all zero before anything was measured. per_token_s is for a token
    of a prompt, per_row_s for a decoding row, per_pair_s for each earlier token that a token attends to."""

    base_s: float = 0.0
    per_token_s: float = 0.0
    per_row_s: float = 0.0
    per_pair_s: float = 0.0

    def predict_s(self, num_tokens: int, num_decoding: int = 0, num_pairs: int = 0) -> float:
        """Expected duration in seconds of a step that computes num_tokens, num_decoding of them in decoding rows."""
        num_prompt_tokens = num_tokens - num_decoding
        return (
            self.base_s
            + self.per_token_s * num_prompt_tokens
            + self.per_row_s * num_decoding
            + self.per_pair_s * num_pairs
        )


@dataclass(frozen=True, slots=True)
class StepBudget:
    """The budget of one plan. Core refuses a plan that exceeds it.

    num_free_blocks can be allocated in this plan. num_releasing_blocks become free when the step in flight is
    collected, so they count for the next plan. last_prompt_latency_s is how long the newest prompt took from its
    first scheduling to its first token (0 before the first one). In a pipeline max_num_seqs counts what may start in
    this micro-batch, and step_time is the time between two steps of one micro-batch.
    """

    now_s: float
    max_num_tokens: int
    max_num_seqs: int
    num_free_blocks: int
    num_releasing_blocks: int
    num_blocks: int
    block_size: int
    last_prompt_latency_s: float = 0.0
    step_time: StepTime = StepTime()


@dataclass(slots=True)
class StepPlan:
    """The plan of the next step: (sequence id, number of tokens) pairs in batch order, and the ids of the
    sequences to preempt.

    A scheduled sequence that waits becomes running. A preempted one gives back its blocks and its place among
    max_num_seqs (both after its step in flight) and waits again; it may not be scheduled in the same plan. An empty
    plan is allowed: nothing runs until the next call (core asks again when something arrives or is collected, and every
    few milliseconds otherwise).
    """

    scheduled: list[tuple[int, int]] = field(default_factory=list)
    preempted: list[int] = field(default_factory=list)


@runtime_checkable
class Scheduler(Protocol):
    """Decides which sequences compute how many tokens in the next step.

    Lives in the engine process, called from its one thread. Sees sequences as read-only views; moves no memory.
    An exception or a plan that breaks the budget fails the requests it touched and is counted; the engine goes on.
    One that follows the settings max_itl_ms and scheduler_delay_factor has an attribute follows_pace = True; with
    others, setting them logs a warning.
    """

    def add(self, view: SequenceView) -> None:
        """A sequence arrived. The view stays valid and up to date until remove."""

    def remove(self, id: int) -> None:
        """A sequence finished, failed or was aborted, running or not. Its view must not be used afterwards."""

    def schedule(self, budget: StepBudget) -> StepPlan:
        """Plan the next step. Called once a step while any sequence is alive; in a pipeline, again for the next
        micro-batch after an empty plan."""
