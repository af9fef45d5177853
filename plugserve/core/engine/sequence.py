"""One sequence on its way: its tokens, its blocks and how far it has got. Knows nothing of scheduling or devices.

Life:   waiting -> running -> finished        preemption: running -> releasing -> waiting

While a step is in flight the sequence's blocks and row stay its own, whatever happened to it meanwhile; it is
releasing until that step is collected.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from plugserve.core.block_hash import hash_block, hash_blocks, hash_salt
from plugserve.core.contracts import LengthRule
from plugserve.core.engine.block_pool import BlockPool
from plugserve.core.messages import SamplingParams, TokenLogprobs

RequestKey = tuple[bytes, int]
"""(worker identity, that worker's request id)."""


@dataclass(slots=True, eq=False)
class Sequence:
    """tokens are the prompt and the confirmed generated tokens. num_in_flight tokens are being computed by the step
    in flight, which draws num_sampling (0 or 1) new tokens. block_hashes name the full blocks of tokens, in order.
    salts are what keeps caches apart. rope_length is what length_rule makes of its length; 0 without a rule."""

    id: int
    key: RequestKey
    params: SamplingParams
    tokens: array[int]
    num_prompt_tokens: int
    arrival_s: float
    stop_ids: frozenset[int]
    pool: BlockPool
    block_size: int
    salts: tuple[str, ...] = ()
    priority: int = 0
    user: str = ""
    uses_prefix_cache: bool = False
    length_rule: LengthRule | None = None
    rope_length: int = 0
    num_computed: int = 0
    num_in_flight: int = 0
    num_sampling: int = 0
    num_cached_tokens: int = 0
    blocks: list[int] = field(default_factory=list)
    row: int = -1
    is_running: bool = False
    is_releasing: bool = False
    is_finished: bool = False
    num_preemptions: int = 0
    first_scheduled_s: float | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    num_delivered: int = 0
    block_hashes: list[bytes] = field(default_factory=list)
    num_remembered_blocks: int = 0
    _matched: list[int] = field(default_factory=list)
    _matched_version: int = -1

    def __post_init__(self) -> None:
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
            self.block_hashes = []

    @property
    def must_restart(self) -> bool:
        """It has grown past the length up to which what it computed holds (see LengthRule)."""
        rule = self.length_rule
        return (
            rule is not None
            and rule.restarts
            and self.is_running
            and self.rope_length <= rule.border <= self.num_under_way
        )

    def _salt(self) -> bytes:
        """Keys of other frequencies are other keys."""
        is_long = self.length_rule is not None and self.rope_length > self.length_rule.border
        return hash_salt(*self.salts, f"rope {self.rope_length}") if is_long else hash_salt(*self.salts)

    @property
    def max_num_tokens(self) -> int:
        return self.num_prompt_tokens + self.params.max_tokens

    @property
    def num_under_way(self) -> int:
        """Tokens computed or being computed."""
        return self.num_computed + self.num_in_flight

    @property
    def num_pending(self) -> int:
        """See SequenceView.num_pending."""
        if self.is_releasing or self.is_finished:
            return 0
        if self.must_restart:
            return 0
        missing = len(self.tokens) - self.num_under_way
        if missing > 0:
            return missing if self.is_running else missing - len(self.match_prefix()) * self.block_size
        return 1 if len(self.tokens) + self.num_sampling < self.max_num_tokens else 0

    def num_new_blocks(self, num_tokens: int) -> int:
        """Blocks that computing num_tokens more takes out of the pool's free count."""
        if self.is_running:
            end = self.num_under_way + num_tokens
            return max(0, -(-end // self.block_size) - len(self.blocks))
        matched = self.match_prefix()
        end = len(matched) * self.block_size + num_tokens
        return -(-end // self.block_size) - len(matched) + self.pool.num_unreferenced(matched)

    def match_prefix(self) -> list[int]:
        """Cached blocks that a waiting sequence would start from; at least one token is always left to compute."""
        if not self.uses_prefix_cache:
            return self._matched
        if self._matched_version != self.pool.version:
            self.extend_hashes()
            self._matched = self.pool.match(self.block_hashes[: (len(self.tokens) - 1) // self.block_size])
            self._matched_version = self.pool.version
        return self._matched

    def extend_hashes(self) -> None:
        """Hash the blocks of tokens that filled up since the last call."""
        num_full, hashes = len(self.tokens) // self.block_size, self.block_hashes
        if not hashes and num_full:
            hashes.extend(hash_blocks(self._salt(), self.tokens, self.block_size))
        for i in range(len(hashes), num_full):
            hashes.append(hash_block(hashes[-1], self.tokens[i * self.block_size : (i + 1) * self.block_size]))

    def reset(self) -> None:
        """Forget all progress but the tokens: it will be computed anew (preemption by recompute)."""
        self.num_computed = self.num_in_flight = self.num_sampling = self.num_remembered_blocks = 0
        self.blocks = []
        self.row = -1
        self.is_running = self.is_releasing = False
        self._matched_version = -1
        self._settle_rope_length()
        if self.num_delivered == 0:
            self.prompt_logprobs = None


class SequenceHandle:
    """The read-only face of a Sequence that schedulers get (contracts.SequenceView)."""

    __slots__ = ("_sequence", "id")
    id: int
    _sequence: Sequence

    def __init__(self, sequence: Sequence) -> None:
        object.__setattr__(self, "_sequence", sequence)
        object.__setattr__(self, "id", sequence.id)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a sequence view is read-only: {name} can't be set")

    @property
    def arrival_s(self) -> float:
        return self._sequence.arrival_s

    @property
    def priority(self) -> int:
        return self._sequence.priority

    @property
    def user(self) -> str:
        return self._sequence.user

    @property
    def num_prompt_tokens(self) -> int:
        return self._sequence.num_prompt_tokens

    @property
    def num_tokens(self) -> int:
        return len(self._sequence.tokens)

    @property
    def max_num_tokens(self) -> int:
        return self._sequence.max_num_tokens

    @property
    def num_computed(self) -> int:
        return self._sequence.num_computed

    @property
    def num_in_flight_max(self) -> int:
        return self._sequence.num_in_flight

    @property
    def num_draft(self) -> int:
        return 0

    @property
    def num_cached_tokens(self) -> int:
        return self._sequence.num_cached_tokens

    @property
    def num_pending(self) -> int:
        return self._sequence.num_pending

    @property
    def num_blocks(self) -> int:
        return len(self._sequence.blocks)

    @property
    def is_running(self) -> bool:
        return self._sequence.is_running

    @property
    def is_prefill(self) -> bool:
        return len(self._sequence.tokens) - self._sequence.num_under_way > 1

    def num_new_blocks(self, num_tokens: int) -> int:
        return self._sequence.num_new_blocks(num_tokens)

    def __repr__(self) -> str:
        return f"<sequence {self.id}: {self.num_computed} of {self.num_tokens} tokens computed>"
