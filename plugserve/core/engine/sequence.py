"""One sequence: its tokens, its blocks and how far it is computed.

Life:   waiting -> running -> finished        preemption: running -> releasing -> waiting

While a step is in flight the sequence keeps its blocks and its device row, even if it was preempted or finished
meanwhile; it is releasing until that step is collected.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from collections.abc import Sequence as Entries
from dataclasses import dataclass, field
from operator import attrgetter

from plugserve.core.contracts.runner import LengthRule
from plugserve.core.contracts.sampling import SamplingParams, TokenLogprobs
from plugserve.core.engine.acceptance import Acceptance
from plugserve.core.engine.adapter_pool import Adapter
from plugserve.core.engine.kv.kv_manager import NO_PREFIX, KVManager, SequencePrefix
from plugserve.core.engine.structured_output import Constraint
from plugserve.core.flight.flight_entry import NO_ENTRY, FlightEntry
from plugserve.core.wire.messages import FINISH_LENGTH, FINISH_NONE, FINISH_STOP
from plugserve.core.wire.sequence_times import Preemption, SequenceTimes

RequestKey = tuple[bytes, int]
"""(worker identity, that worker's request id)."""


@dataclass(slots=True, eq=False)
class Sequence:
    """tokens are the prompt and the confirmed generated tokens. num_in_flight tokens are being computed by the step
    in flight, which draws num_sampling new tokens; with drafts in flight both are upper bounds. num_draft is how many
    drafts pay in its next step; acceptance counts earlier ones, None for a sequence that doesn't speculate.
    prefix is its part in the prefix cache. rope_length is length_rule's result for its length; 0 without a rule."""

    id: int
    key: RequestKey
    params: SamplingParams
    tokens: array[int]
    num_prompt_tokens: int
    arrival_s: float
    stop_ids: frozenset[int]
    kv: KVManager
    block_size: int
    prefix: SequencePrefix = NO_PREFIX
    priority: int = 0
    user: str = ""
    adapter: Adapter | None = None
    length_rule: LengthRule | None = None
    rope_length: int = 0
    num_computed: int = 0
    num_in_flight: int = 0
    num_sampling: int = 0
    num_draft: int = 0
    num_cached_tokens: int = 0
    blocks: list[int] = field(default_factory=list)
    row: int = -1
    is_running: bool = False
    is_releasing: bool = False
    is_finished: bool = False
    num_preemptions: int = 0
    preemptions: Entries[Preemption] = ()
    first_scheduled_s: float | None = None
    first_token_s: float | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    num_delivered: int = 0
    constraint: Constraint | None = None
    acceptance: Acceptance | None = None
    flight: FlightEntry = NO_ENTRY
    max_num_tokens: int = field(init=False)
    pending: int = 0
    """num_pending while it runs; see settle."""
    has_plain_steps: bool = field(init=False)
    """Without a constraint and drafts, a decoding step brings one token and nothing else."""

    def __post_init__(self) -> None:
        params = self.params
        self.max_num_tokens = self.num_prompt_tokens + params.max_tokens
        self.has_plain_steps = not params.pooling and params.num_prompt_logprobs is None and self.length_rule is None
        self._settle_rope_length()

    def _settle_rope_length(self) -> None:
        """Before anything of it is computed: the length that its RoPE frequencies follow from now on."""
        rule = self.length_rule
        if rule is None:
            return
        if not rule.restarts:
            self.rope_length = self.num_prompt_tokens
        elif len(self.tokens) > rule.border and self.rope_length <= rule.border:
            self.rope_length = rule.border + 1
        if self.rope_length > rule.border:
            self.prefix.set_rope_length(self.rope_length)

    @property
    def must_restart(self) -> bool:
        """True if it has grown past the length for which its computed keys are valid (see LengthRule)."""
        rule = self.length_rule
        return (
            rule is not None
            and rule.restarts
            and self.is_running
            and self.rope_length <= rule.border <= self.num_under_way
        )

    @property
    def num_under_way(self) -> int:
        """Tokens computed or being computed."""
        return self.num_computed + self.num_in_flight

    def settle(self) -> None:
        """Compute pending. Call it whenever the counts of a running sequence have changed, except when one more token
        is known, computed and no longer in flight, which doesn't change it."""
        missing = len(self.tokens) - self.num_computed - self.num_in_flight
        if self.length_rule is not None and self.must_restart:
            self.pending = 0
        elif missing > 0:
            self.pending = missing
        else:
            self.pending = 1 if len(self.tokens) + self.num_sampling < self.max_num_tokens else 0

    @property
    def num_pending(self) -> int:
        """See SequenceView.num_pending."""
        if self.is_running:
            return self.pending
        if self.is_releasing or self.is_finished:
            return 0
        return self.prefix.num_uncached(len(self.tokens))

    def most_drafts(self) -> int:
        """The most drafts that may follow the one token that a decoding sequence computes next, so that it can't grow
        past its limit, nor past its length rule's border, whatever is accepted."""
        most = self.max_num_tokens - len(self.tokens) - self.num_sampling - 1
        rule = self.length_rule
        if rule is not None and rule.restarts and self.rope_length <= rule.border:
            most = min(most, rule.border - self.num_under_way - 1)
        return most

    @property
    def own_blocks(self) -> list[int]:
        """The blocks that become free when it leaves; the rest is shared through the prefix cache."""
        return self.kv.unshared(self.blocks)

    def surplus_blocks(self) -> int:
        """Blocks at its end that were allocated for drafts which were then refused."""
        return max(0, len(self.blocks) - (self.num_under_way + self.block_size) // self.block_size)

    def num_new_blocks(self, num_tokens: int) -> int:
        """Blocks that computing num_tokens more takes out of the pool's free count."""
        if self.is_running:
            beyond = self.num_computed + self.num_in_flight + num_tokens - len(self.blocks) * self.block_size
            return -(-beyond // self.block_size) if beyond > 0 else 0
        return self.prefix.num_new_blocks(num_tokens, self.block_size)

    def accept(self, new_tokens: list[int]) -> tuple[list[int], int]:
        """Append tokens up to a stop token or the limit; returns those and the FINISH_ code."""
        tokens = self.tokens
        for n, token in enumerate(new_tokens, start=1):
            tokens.append(token)
            length = len(tokens)
            if token in self.stop_ids and length - self.num_prompt_tokens > self.params.min_tokens:
                return new_tokens[:n], FINISH_STOP
            if length >= self.max_num_tokens:
                return new_tokens[:n], FINISH_LENGTH
        return new_tokens, FINISH_NONE

    def add_prompt_logprobs(self, entries: list[TokenLogprobs]) -> None:
        """Append the logprobs of the prompt tokens that a step has computed. The first prompt token has none."""
        if self.prompt_logprobs is None:
            self.prompt_logprobs = [None]
        self.prompt_logprobs.extend(entries)
        del self.prompt_logprobs[self.num_prompt_tokens :]

    def times(self, ended_s: float) -> SequenceTimes:
        """For the message that ends it."""
        return SequenceTimes(
            self.arrival_s, self.first_scheduled_s, self.first_token_s, ended_s, list(self.preemptions)
        )

    @property
    def block_hashes(self) -> list[bytes]:
        """The hashes of its full blocks in the prefix cache."""
        return self.prefix.hashes

    def trim_prompt_logprobs(self) -> None:
        """Keep the logprobs of what is computed: a sequence that starts has lost the rest."""
        if self.prompt_logprobs is not None and self.num_delivered == 0:
            del self.prompt_logprobs[self.num_computed + 1 :]

    def reset(self, *, is_swapped: bool = False) -> None:
        """Reset all progress except the tokens, which are computed again from what it can start from. is_swapped: its
        keys are kept in host memory, for the RoPE length that they have."""
        self.num_computed = self.num_in_flight = self.num_sampling = 0
        self.blocks = []
        self.row = -1
        self.is_running = self.is_releasing = False
        self.prefix.reset()
        if not is_swapped:
            self._settle_rope_length()


class SequenceHandle:
    """The read-only view of a Sequence that schedulers get (contracts.SequenceView).

    Most properties are attrgetters: a scheduler reads thousands a step, and these cost no Python frame.
    """

    __slots__ = ("_sequence", "id", "num_new_blocks")
    id: int
    num_new_blocks: Callable[[int], int]
    _sequence: Sequence

    def __init__(self, sequence: Sequence) -> None:
        object.__setattr__(self, "_sequence", sequence)
        object.__setattr__(self, "id", sequence.id)
        object.__setattr__(self, "num_new_blocks", sequence.num_new_blocks)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a sequence view is read-only: {name} can't be set")

    arrival_s = property(attrgetter("_sequence.arrival_s"))
    priority = property(attrgetter("_sequence.priority"))
    user = property(attrgetter("_sequence.user"))
    num_prompt_tokens = property(attrgetter("_sequence.num_prompt_tokens"))
    max_num_tokens = property(attrgetter("_sequence.max_num_tokens"))
    num_computed = property(attrgetter("_sequence.num_computed"))
    num_in_flight_max = property(attrgetter("_sequence.num_in_flight"))
    num_cached_tokens = property(attrgetter("_sequence.num_cached_tokens"))
    num_draft = property(attrgetter("_sequence.num_draft"))
    num_pending = property(attrgetter("_sequence.num_pending"))
    is_running = property(attrgetter("_sequence.is_running"))

    @property
    def num_tokens(self) -> int:
        return len(self._sequence.tokens)

    @property
    def num_blocks(self) -> int:
        return len(self._sequence.own_blocks)

    @property
    def is_prefill(self) -> bool:
        return len(self._sequence.tokens) - self._sequence.num_under_way > 1

    def __repr__(self) -> str:
        return f"<sequence {self.id}: {self.num_computed} of {self.num_tokens} tokens computed>"
