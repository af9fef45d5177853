"""Model runners: one step's input and result, and what a runner reports after loading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import msgspec

from plugserve.core.contracts.memory import MemoryLedger
from plugserve.core.contracts.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class LengthRule:
    """The rule of models whose RoPE frequencies depend on a sequence's length beyond border tokens.

    A prompt's tokens follow the prompt's length, a generated token its own position + 1. restarts: frequencies change
    once, at the border, so a sequence that grows past it is computed anew (LongRoPE); otherwise they change with every
    token, and what is computed stays as it is (dynamic NTK), as transformers does both.
    """

    border: int
    restarts: bool


@dataclass(slots=True)
class NewRow:
    """A sequence takes a device row. token_ids are all known tokens (prompt, and generated ones after a preemption);
    the first num_prompt_tokens of them are the prompt. num_computed of them already have keys and values in blocks.
    stop_ids are the ids that end it (EOS included unless ignored): held back until min_tokens are generated.
    rope_length is the least length that its tokens' RoPE frequencies follow (see LengthRule). id is the sequence's.
    adapter_slot is the slot of its LoRA adapter, -1 for none."""

    row: int
    token_ids: Sequence[int]
    num_prompt_tokens: int
    num_computed: int
    blocks: list[int]
    params: SamplingParams
    stop_ids: tuple[int, ...]
    rope_length: int = 0
    id: int = -1
    adapter_slot: int = -1


@dataclass(slots=True)
class StepInput:
    """One step for the runner: small deltas against the device's rows, then the batch in columns, one entry a sequence.

    Entry b computes num_tokens[b] tokens of device row rows[b], starting at the row's own count of computed tokens
    (which the device keeps and advances). samples[b]: the last of them draws the next token, which the device feeds
    back by itself. new_blocks extends rows' block tables: (row, index of the first new block in its table, block ids).
    constrained lists the entries whose draw needs a token mask, which follows by provide_masks.
    copy_out and copy_in move whole blocks of KV between the device and host memory before anything is computed: first
    every (block, host slot) pair of copy_out, in order, then every (host slot, block) pair of copy_in. A block that is
    copied out holds what earlier steps left there, and this step may already write it.

    num_drafts is empty, or entry b may speculate with up to num_drafts[b] drafts, which num_tokens[b] includes as an
    upper bound: the runner drafts what it can, computes the entry's one token and the drafts, and keeps those that it
    accepts.

    adapters are (slot, what LoraManager.read made, or None to empty the slot), to be done before the step, in order; a
    step that only does that has no rows.
    has_adapters: some entry has a LoRA adapter, so that the step can't be a captured one.
    """

    step_id: int
    new_rows: list[NewRow]
    freed_rows: list[int]
    new_blocks: list[tuple[int, int, list[int]]]
    rows: list[int]
    num_tokens: list[int]
    samples: list[bool]
    constrained: list[int] = field(default_factory=list)
    copy_out: list[tuple[int, int]] = field(default_factory=list)
    copy_in: list[tuple[int, int]] = field(default_factory=list)
    num_drafts: list[int] = field(default_factory=list)
    adapters: list[tuple[int, Any]] = field(default_factory=list)
    has_adapters: bool = False


@dataclass(slots=True)
class StepResult:
    """The results of one step, by the entries of its StepInput.

    tokens[b] is the list of new tokens of entry b (empty where it did not sample). The mappings are sparse, keyed by
    entry. logprobs holds one item a new token, prompt_logprobs one a prompt token computed in this step whose
    predecessor is known. pooled holds the pooled vector (raw float32) of each entry that asks for pooling and whose
    last prompt token this step computed; such entries never sample. failed holds the reasons of failed entries;
    has_failed: the step failed as a whole, so that nothing of it may have been done.
    num_drafted holds how many drafts of an entry that speculated were verified (0 where none was found); such an entry
    computed as many tokens as it has new ones. draft_s is how long the DraftProposer took; with has_draft_error it
    failed, or is switched off, and the step had no drafts. draft_error is its exception; with is_proposer_off it is
    switched off.
    """

    step_id: int
    tokens: list[list[int]]
    duration_s: float = 0.0
    logprobs: dict[int, list[Any]] = field(default_factory=dict)
    prompt_logprobs: dict[int, list[Any]] = field(default_factory=dict)
    pooled: dict[int, bytes] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    has_failed: bool = False
    num_drafted: dict[int, int] = field(default_factory=dict)
    draft_s: float = 0.0
    has_draft_error: bool = False
    draft_error: BaseException | None = None
    is_proposer_off: bool = False


class LoadStage(msgspec.Struct, frozen=True, array_like=True):
    """A part of load, such as "read weights" or "warm up"; times on time.monotonic's clock."""

    name: str
    started_s: float
    ended_s: float


class RunnerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A runner's facts after load. Sizes are in bytes. max_model_len may be lower than asked when memory is short;
    max_num_batched_tokens is what one step may compute (the setting, or what suits the device). task is "generate", for
    encoders "embed" or "score". length_rule is None
    for all models but those with the RoPE kinds dynamic and longrope. num_host_slots is how many blocks fit into host
    memory (--swap-space); at 0 steps have no copy_out and copy_in. max_num_drafts is how many drafts a row may have in
    a step, 0 without speculation; draft_weight_bytes (in weight_bytes) and draft_kv_bytes (in kv_cache_bytes) are what
    the draft model takes. offloaded_weight_bytes stay in host memory (--cpu-offload-gb) and are not in weight_bytes.
    memory is the prediction that was made before loading; core fills it in, for runners that are MemoryEstimators.
    With num_ranks above 1 all sizes are one rank's, the largest of them. With num_stages above 1 the ranks are a
    pipeline: as many groups of sequences take turns, a step each, and one more step than that is in flight at most.
    load_stages say what load spent its time on; traces show them."""

    vocab_size: int
    max_model_len: int
    max_num_batched_tokens: int
    num_blocks: int
    block_size: int
    kv_cache_bytes: int
    weight_bytes: int
    dtype: str
    device: str
    task: str = "generate"
    length_rule: LengthRule | None = None
    num_host_slots: int = 0
    max_num_drafts: int = 0
    draft_weight_bytes: int = 0
    draft_kv_bytes: int = 0
    offloaded_weight_bytes: int = 0
    memory: MemoryLedger | None = None
    num_ranks: int = 1
    num_stages: int = 1
    load_stages: list[LoadStage] = []


@runtime_checkable
class ModelRunner(Protocol):
    """Runs the model. Owns the device's state, the KV tensors and sampling, for rows; requests are the engine's.

    Called from the engine's thread. launch must not wait for the device; collect waits for the oldest launched step.
    At most two steps are in flight (RunnerInfo.num_stages + 1 in a pipeline).

    A runner whose attribute shares_models is True can share a model with runners in other processes
    (RunnerContext.placement); without the attribute, --tensor-parallel-size is 1.
    """

    owns_attention: bool
    """True: the runner brings its own attention and KV layout, and --attention is refused beside it."""

    def load(self) -> RunnerInfo:
        """Load weights, allocate the KV cache, warm up. Raises ModelError or ConfigError with one clear line."""

    def launch(self, step: StepInput) -> None:
        """Queue one step."""

    def provide_masks(self, step_id: int, masks: Any) -> None:
        """Token masks for a launched step with constrained rows, in their order: uint32 [rows, words], bit t of a row
        allows token t. Called once before that step is collected; its forward pass may already run."""

    def collect(self) -> StepResult:
        """Wait for the oldest launched step that was not collected, and return its result."""

    def close(self) -> None:
        """Free the device's memory. Called once, with nothing in flight."""
