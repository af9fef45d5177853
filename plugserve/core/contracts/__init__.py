"""What plugins and core promise each other: Protocols and frozen data, no base class to inherit.

Standard library only at run time (torch under TYPE_CHECKING), so that a scheduler is testable in a bare interpreter.
Who calls what, and when, is said at each method; nothing here is called more often than once a step, except
AttentionBackend.run (once a layer).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch

    from plugserve.core.contracts.model import DecoderSpec
    from plugserve.core.wire.messages import EngineInfo, EngineStats, SamplingParams

# ---------------------------------------------------------------- scheduler


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
        """When the engine admitted it, on the clock of StepBudget.now_s."""

    @property
    def priority(self) -> int:
        """The request's priority; lower is more urgent, 0 by default."""

    @property
    def user(self) -> str:
        """Who asked: the API key's name, the request's user field, or both as KEY/USER; "" when unknown."""

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
        sequence), 1 for a decoding one. 0 when the step in flight already brings its last token, and while it waits
        for what that step brings: blocks that it gave back, or a prefix that another sequence is computing."""

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
        """How many blocks core has to allocate to compute num_tokens more of it."""


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
    """What one plan may spend. Core refuses a plan that spends more.

    num_free_blocks can be allocated in this plan. num_releasing_blocks become free when the step in flight is
    collected, so they count for the next plan. last_prompt_latency_s is how long the newest prompt took from its
    first scheduling to its first token (0 before the first one).
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
    """What the next step computes: (sequence id, number of tokens) pairs in batch order, and whom to preempt.

    A scheduled sequence that waits becomes running. A preempted one gives back its blocks (after its step in flight)
    and waits again; it may not be scheduled in the same plan. An empty plan is allowed: nothing runs until the next
    call (core asks again when something arrives or is collected, and every few milliseconds otherwise).
    """

    scheduled: list[tuple[int, int]] = field(default_factory=list)
    preempted: list[int] = field(default_factory=list)


@runtime_checkable
class Scheduler(Protocol):
    """Decides which sequences compute how many tokens in the next step.

    Lives in the engine process, called from its one thread. Knows sequences as read-only views; moves no memory.
    An exception or a plan that breaks the budget fails the requests it touched and is counted; the engine goes on.
    One that heeds the settings max_itl_ms and scheduler_delay_factor has an attribute follows_pace = True; beside
    others these settings are answered with a warning.
    """

    def add(self, view: SequenceView) -> None:
        """A sequence arrived. The view stays valid and up to date until remove."""

    def remove(self, id: int) -> None:
        """A sequence finished, failed or was aborted, running or not. Its view must not be used afterwards."""

    def schedule(self, budget: StepBudget) -> StepPlan:
        """Plan the next step. Called once a step while any sequence is alive."""


# ---------------------------------------------------------------- model facts


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """The attention of one model, as backends see it. dtype and device are torch's names ("float32", "cpu").

    scale multiplies q @ k. windows has one entry a layer: its sliding window in tokens (a token sees itself and
    window - 1 before it), or None; () means that no layer has one. soft_cap bounds scores by cap * tanh(score / cap).
    """

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    dtype: str
    device: str
    windows: tuple[int | None, ...] = ()
    soft_cap: float | None = None


@dataclass(frozen=True, slots=True)
class PluginContext:
    """What a factory gets. options is the plugin's own validated options object (None if it declares none).

    device and dtype are torch's names; spec is None before the model is known (schedulers, prefix caches of a
    simulation). config is the read-only settings object. architectures and weight_formats are what active plugins
    provide, by name; runners need them.

    make_proposer is how a runner gets the active DraftProposer while it loads (called with what else its context
    should hold, by name), None without one. build_runner and reserve_kv are for proposers: build_runner loads a draft
    model (an id, a folder or a .gguf file) beside the served one, reserve_kv sets bytes aside for each token that the
    KV cache holds.

    lora_spec is for factories of LoRA managers. make_lora_manager is for runners: None where no plugin serves adapters;
    a runner that can calls it once, in load.
    """

    options: Any
    config: Any
    device: str = "cpu"
    dtype: str = "float32"
    block_size: int = 16
    max_model_len: int = 0
    spec: AttentionSpec | None = None
    architectures: Mapping[str, ArchitectureFunction] = field(default_factory=dict)
    weight_formats: Mapping[str, WeightFormat] = field(default_factory=dict)
    make_proposer: Callable[..., DraftProposer] | None = None
    build_runner: Callable[[str], DraftRunner] | None = None
    reserve_kv: Callable[[int], None] | None = None
    lora_spec: LoraSpec | None = None
    make_lora_manager: Callable[[LoraSpec], LoraManager] | None = None


# ---------------------------------------------------------------- weights


@dataclass(frozen=True, slots=True)
class WeightSource:
    """A model whose weights are wanted: its folder or file, its config (Hugging Face's keys), and a function that says
    the shape of each tensor that the model will ask for, by name."""

    path: Path
    config: Mapping[str, Any]
    shapes: Callable[[], Mapping[str, Sequence[int]]]
    show_progress: bool = True


@runtime_checkable
class WeightFormat(Protocol):
    """Reads weights. Lives in the engine process and is used while a model loads."""

    is_automatic: bool
    """False: only used when --load-format names it."""

    def refusal(self, source: WeightSource) -> str | None:
        """Why it can't read source, in half a line, or None. --load-format auto takes the first that doesn't refuse."""

    def open(self, source: WeightSource) -> Iterable[tuple[str, torch.Tensor]]:
        """(Hugging Face's name, tensor on the CPU) of every tensor, in any floating dtype. Raises ModelError, for what
        can be told in advance before the first tensor."""


# ---------------------------------------------------------------- attention


@dataclass(frozen=True, slots=True)
class KVLayout:
    """The shape of one layer's cache; core makes one tensor a layer, uninitialised, of the model's dtype.

    shape holds the word "num_blocks" where the number of blocks goes, e.g. (2, "num_blocks", 16, 3, 64).
    bytes_per_block is what one block costs in all layers together.
    """

    shape: tuple[int | str, ...]
    bytes_per_block: int


@dataclass(slots=True)
class AttentionBatch:
    """One step's rows; T tokens of B sequences, lying one sequence after another.

    query_lens[b] new tokens are the last ones of context_lens[b] tokens in the cache (new ones included). Backends that
    are not graph_safe work from these Python numbers. In a step that is captured they only bound what a replay may
    bring: one token (or none) a row, and the longest context.

    Tensors on the device, the truth in every step: slots [T] int64 (block * block_size + offset, where each new token's
    key and value go); block_table [B, max_blocks] int32 (the first ceil(context_len / block_size) entries of a row are
    valid); query_starts [B + 1] int32, where each row's tokens start, and T at last; context_lengths [B] int32.
    """

    query_lens: list[int]
    context_lens: list[int]
    slots: torch.Tensor
    block_table: torch.Tensor
    block_size: int
    query_starts: torch.Tensor
    context_lengths: torch.Tensor


@runtime_checkable
class AttentionBackend(Protocol):
    """Paged attention over core's blocks.

    prepare allocates once, plan does a step's device work on metadata, run attends in one layer without synchronising.
    Where graph_safe, plan and run of a step with one token a row may be captured in a CUDA graph and replayed with
    other contents of the same tensors: neither looks at a device value from the host, and work space comes from
    prepare or from torch's allocator (which captures into the graph's own pool).
    """

    graph_safe: bool
    """False: steps run eagerly, never captured. Said once at start with the cost."""

    def refusal(self, spec: AttentionSpec) -> str | None:
        """Why this backend can't serve spec, in half a line, or None. Called before kv_layout."""

    def kv_layout(self, spec: AttentionSpec) -> KVLayout:
        """The cache's shape. Called once, before memory is planned."""

    def prepare(self, max_num_tokens: int, max_num_seqs: int) -> None:
        """Allocate work space for steps up to this size. Called once before the first step."""

    def plan(self, batch: AttentionBatch) -> Any:
        """Make what all layers of this step share (masks, gathers, work lists). Called once a step; the result
        is handed to each run of the step."""

    def run(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kv: torch.Tensor, step: Any, layer: int
    ) -> torch.Tensor:
        """Write k and v into kv at the step's slots, then attend causally within each sequence and layer's window.

        q [T, num_heads, head_dim]; k, v [T, num_kv_heads, head_dim]; kv as kv_layout, the tensor of layer (counted
        from 0). Returns [T, num_heads, head_dim].
        """


# ---------------------------------------------------------------- prefix cache


@runtime_checkable
class PrefixCache(Protocol):
    """An index from block hashes to KV blocks. Core owns the blocks and their reference counts; the index only
    remembers which block holds what. Hashes are chained (a hash stands for all tokens up to the end of its block) and
    salted with model, adapter and the request's cache_salt, so equal hashes mean equal keys and values.

    Called from the engine's thread: match once an admission, insert when blocks fill, release and evict as blocks'
    reference counts fall to zero and memory runs short. No call is O(cache size).
    """

    def match(self, hashes: Sequence[bytes]) -> list[int]:
        """Blocks of the longest known prefix of hashes, in order."""

    def insert(self, hash: bytes, block: int) -> bool:
        """Remember a full block. False when the hash is already known by another block (block stays unindexed)."""

    def retain(self, block: int) -> None:
        """block is in use (again): it may not be evicted."""

    def release(self, block: int) -> None:
        """Nobody uses block any more; it may be evicted from now on. Only called for indexed blocks."""

    def evict(self, num_blocks: int) -> list[int]:
        """Forget up to num_blocks released blocks, least valuable first, and return them to core."""

    def clear(self) -> list[int]:
        """Forget everything; returns the released blocks (which core frees)."""

    @property
    def num_evictable(self) -> int:
        """How many blocks evict could return now."""

    def holds(self, block: int) -> bool:
        """True when the index remembers block."""


# ---------------------------------------------------------------- LoRA


@dataclass(frozen=True, slots=True)
class LoraSlice:
    """Outputs [start, start + size) of a site: what Hugging Face calls module within a layer ("self_attn.q_proj")."""

    module: str
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class LoraSite:
    """A matrix of every layer that adapters may change: name is "qkv", "o", "gate_up" or "down".

    It maps input_size to output_size; slices are the parts that lie in it one after another. fused is what models that
    fuse them themselves call the whole ("self_attn.qkv_proj"), "" where there is one slice.
    """

    name: str
    input_size: int
    slices: tuple[LoraSlice, ...]
    fused: str = ""

    @property
    def output_size(self) -> int:
        return sum(part.size for part in self.slices)


@dataclass(frozen=True, slots=True)
class LoraSpec:
    """What a LoRA manager must know of a model. dtype and device are torch's names.

    max_loras adapters of rank up to max_rank have slots at the same time, numbered from 0. weight_prefixes are (prefix
    in Hugging Face's model, prefix here), for models whose layers are not at model.layers.
    """

    num_layers: int
    sites: tuple[LoraSite, ...]
    dtype: str
    device: str
    max_loras: int
    max_rank: int
    weight_prefixes: tuple[tuple[str, str], ...] = ()


@runtime_checkable
class LoraManager(Protocol):
    """Reads adapters, holds those that have a slot, and adds their share to the model's projections.

    y += scaling * B (A x) for each row's own adapter (Hu et al. 2021). Core decides which adapter has which slot, and
    never changes a slot between the plan and the applies of a step. read runs on a thread of its own, everything else
    on the runner's.
    """

    graph_safe: bool
    """False: steps in which some row has an adapter run eagerly, never captured."""

    def read(self, path: Path) -> Any:
        """An adapter's weights from its folder, in host memory; what load gets later, as often as it needs a slot.
        Raises AdapterError with one line that names the cause for whatever can't be served."""

    def load(self, slot: int, adapter: Any) -> None:
        """Put an adapter into a slot; nothing of what was there before may remain."""

    def unload(self, slot: int) -> None:
        """Empty a slot and let go of what it held."""

    def plan(self, slots: Sequence[int], num_tokens: Sequence[int]) -> Any:
        """What all sites of one step share. Row b of the step has num_tokens[b] tokens, which lie one row after
        another, and the adapter in slots[b], -1 for none. Not called where all are -1."""

    def apply(self, site: str, layer: int, x: torch.Tensor, y: torch.Tensor, step: Any) -> None:
        """Add to y [T, output_size] what the rows' adapters make of x [T, input_size]; rows without one stay as they
        are, bit for bit."""

    @property
    def size_bytes(self) -> int:
        """Device memory that it holds now."""


# ---------------------------------------------------------------- runner


@dataclass(frozen=True, slots=True)
class LengthRule:
    """For models whose RoPE frequencies depend on a sequence's length once that is past border tokens.

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
    """One step for the runner: small deltas against the device's state, then the batch in columns.

    Row b of the batch computes num_tokens[b] tokens of device row rows[b], starting at the row's own count of computed
    tokens (which the device keeps and advances). samples[b]: the last of them draws the next token, which the device
    feeds back by itself. new_blocks extends rows' block tables: (row, index of the first new entry, block ids).
    constrained lists the batch rows whose draw needs a token mask, which follows by provide_masks.
    copy_out and copy_in move whole blocks of KV between the device and host memory before anything is computed: first
    every (block, host slot) pair of copy_out, in order, then every (host slot, block) pair of copy_in. A block that is
    copied out holds what earlier steps left there, and this step may already write it.

    num_drafts is empty, or row b may speculate with up to num_drafts[b] drafts, which num_tokens[b] includes as an
    upper bound: the runner drafts what it can, computes the row's one token and the drafts, and keeps those that it
    accepts.

    adapters are (slot, what LoraManager.read made, or None to empty the slot), to be done before the step, in order; a
    step that only does that has no rows.
    has_adapters: some row of the batch has a LoRA adapter, so that the step can't be a captured one.
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
    """One step's harvest, in the batch order of its StepInput.

    tokens[b] is the list of new tokens of batch row b (empty where it did not sample). logprobs and prompt_logprobs
    are sparse, keyed by batch row: one entry a new token, and one a prompt token computed in this step whose
    predecessor is known. pooled holds the pooled vector (raw float32) of each row that asks for pooling and whose
    last prompt token this step computed; such rows never sample. failed names batch rows whose result is not usable,
    with the reason. num_drafted says of rows that speculated how many drafts were verified (0 where none was found);
    such a row computed as many tokens as it has new ones. draft_s is how long its DraftProposer took, has_draft_error
    that it failed, so that the step went without drafts.
    """

    step_id: int
    tokens: list[list[int]]
    duration_s: float = 0.0
    logprobs: dict[int, list[Any]] = field(default_factory=dict)
    prompt_logprobs: dict[int, list[Any]] = field(default_factory=dict)
    pooled: dict[int, bytes] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    num_drafted: dict[int, int] = field(default_factory=dict)
    draft_s: float = 0.0
    has_draft_error: bool = False


@dataclass(frozen=True, slots=True)
class RunnerInfo:
    """What a runner knows after load: sizes in bytes; max_model_len may be lower than asked when memory is short.
    max_num_batched_tokens is what one step may compute (the setting, or what suits the device). length_rule is None
    for all models but those with the RoPE kinds dynamic and longrope. num_host_slots is how many blocks it can keep in
    host memory (--swap-space); 0: it doesn't carry out copy_out and copy_in, and is never asked to. max_num_drafts is
    how many drafts a row may have in a step, 0 without speculation; draft_weight_bytes (in weight_bytes) and
    draft_kv_bytes (in kv_cache_bytes) are what the draft model takes."""

    vocab_size: int
    max_model_len: int
    max_num_batched_tokens: int
    num_blocks: int
    block_size: int
    kv_cache_bytes: int
    weight_bytes: int
    dtype: str
    device: str
    length_rule: LengthRule | None = None
    num_host_slots: int = 0
    max_num_drafts: int = 0
    draft_weight_bytes: int = 0
    draft_kv_bytes: int = 0


@runtime_checkable
class ModelRunner(Protocol):
    """Runs the model. Owns the device's state, the KV tensors and sampling; knows nothing of requests.

    Called from the engine's thread. launch must not wait for the device; collect waits for the oldest launched step.
    At most two steps are in flight.
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
        """Wait for the oldest launched step that was not collected, and return its harvest."""

    def close(self) -> None:
        """Free the device's memory. Called once, with nothing in flight."""


# ---------------------------------------------------------------- speculation


@dataclass(slots=True)
class DraftStep:
    """Rows that a step will verify drafts of. Row i is sequence ids[i] on device row rows[i]: its known tokens are
    tokens[rows[i], :lengths[i]], and at most num_drafts[i] (1 or more) that come next are wanted.

    tokens [num_rows, max_len + 1] int32 lies on the device. What stands in a row after its known tokens is scratch that
    a proposer may write (a draft model's own drafts, to read them back).
    """

    ids: list[int]
    rows: list[int]
    lengths: list[int]
    num_drafts: list[int]
    tokens: torch.Tensor


@dataclass(slots=True)
class Drafts:
    """What a proposer found: tokens [B, k] of which the first counts[i] of row i count.

    probs [B, k, V] are the distributions that the tokens were drawn from (each row sums to 1), independently of the
    target's draws; None when the tokens follow from the history alone, without chance. Core's verification is exact in
    both cases, and only as good as the drafts are likely.
    """

    tokens: torch.Tensor
    counts: list[int]
    probs: torch.Tensor | None = None


@runtime_checkable
class DraftProposer(Protocol):
    """Guesses the tokens that come next. Lives in the engine process, called from the runner's thread.

    Drafts can't change what is generated, only how fast: verification is core's. A raise drafts nothing in that step
    and is counted; after three in a row it isn't asked again.
    """

    def propose(self, step: DraftStep, k: int) -> Drafts:
        """Drafts for the rows of step; k is the largest of step.num_drafts. Called once a step that speculates. Between
        two calls a sequence may have grown by any number of tokens, accepted drafts or others."""

    def forget(self, id: int) -> None:
        """Sequence id has left its row: it finished, was aborted or preempted. It may come back, with other blocks."""


class DraftRunner(Protocol):
    """A draft model that reads the rows and block tables of the served one and has keys and values of its own."""

    @property
    def kv_bytes_per_token(self) -> int:
        """For reserve_kv."""

    def forward(self, rows: list[int], starts: list[int], counts: list[int]) -> torch.Tensor:
        """Compute tokens starts[i] to starts[i] + counts[i] - 1 of each row; float32 logits [B, V] after the last one
        of each. Keys and values before starts must have been computed and not been overwritten since."""

    def sample(
        self, logits: torch.Tensor, rows: list[int], num_known: list[int]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Tokens [B] by each row's own sampling parameters, and the distributions [B, V] that they were drawn from (one
        token has it all where temperature is 0; None where it is 0 in all rows). num_known[i] is where row i's token
        will stand. logits are changed in place."""


# ---------------------------------------------------------------- answers: thinking and tool calls


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """What a piece of text adds to call number index of an answer. The call's first delta has its name; the joined
    arguments are the text of a JSON object, unless the answer breaks off in them."""

    index: int
    arguments: str
    name: str | None = None


@dataclass(frozen=True, slots=True)
class ToolDelta:
    """What a piece of text adds to an answer that may hold calls."""

    content: str = ""
    calls: Sequence[ToolCallDelta] = ()


@runtime_checkable
class ToolParser(Protocol):
    """Finds tool calls in one answer's text, in a server worker. However the text is cut into pieces, the joined
    results are the same; what was told is never taken back. special_tokens: tokens of the model's vocabulary that mark
    calls and would otherwise not be part of the text."""

    special_tokens: Collection[str]

    def feed(self, text: str) -> ToolDelta:
        """Take more text; returns what is certain by now."""

    def finish(self) -> ToolDelta:
        """The text has ended: what was held back. Called once, last."""


@runtime_checkable
class ReasoningParser(Protocol):
    """Tells thinking from the rest of one answer's text, in a server worker. However the text is cut into pieces, the
    joined results are the same. Thinking stands between opening and closing, two texts or special tokens; both belong
    to neither part. may_think: thinking may still begin; is_thinking: it has begun and not ended. Before the first text
    the two tell what the prompt says, and what binds the rest of the answer leaves thinking alone."""

    opening: str
    closing: str
    may_think: bool
    is_thinking: bool

    def feed(self, text: str) -> tuple[str, str]:
        """Take more text; returns (thinking, content), as far as they are certain by now."""

    def finish(self) -> tuple[str, str]:
        """The text has ended: what was held back, as (thinking, content). Called once, last."""


# ---------------------------------------------------------------- server-side views for request hooks


@dataclass(frozen=True, slots=True)
class RequestView:
    """A client's request as request hooks see it. body is the parsed JSON; headers are lower-case."""

    id: str
    path: str
    method: str
    headers: Mapping[str, str]
    client: str
    model: str | None = None
    body: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """plugserve_authorize's way to say no: an HTTP status (401, 403, 429, ...) and one line for the client."""

    status: int
    message: str
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RequestUsage:
    """num_reasoning_tokens are those of num_generated_tokens that were thinking, None where the model's aren't told."""

    num_prompt_tokens: int
    num_generated_tokens: int
    num_cached_tokens: int = 0
    num_reasoning_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class RequestTimings:
    """Seconds, from the moment the request was read. first_token_s is None when no token came."""

    total_s: float
    queue_s: float = 0.0
    first_token_s: float | None = None
    finish_reason: str | None = None


@runtime_checkable
class EngineHandle(Protocol):
    """An engine as plugins see it, in a server worker (register_routes) or in the engine process (engine_started)."""

    model: str
    info: EngineInfo

    def stats(self) -> EngineStats:
        """The newest known snapshot; does not wait."""


SchedulerFactory = Callable[[PluginContext], Scheduler]
AttentionFactory = Callable[[PluginContext], AttentionBackend]
PrefixCacheFactory = Callable[[PluginContext], PrefixCache]
DraftProposerFactory = Callable[[PluginContext], DraftProposer]
LoraFactory = Callable[[PluginContext], LoraManager]
ArchitectureFunction = Callable[[Mapping[str, Any]], "DecoderSpec"]
WeightFormatFactory = Callable[[PluginContext], WeightFormat]
RunnerFactory = Callable[..., ModelRunner]
ToolParserFactory = Callable[[Sequence[Mapping[str, Any]]], ToolParser]
ReasoningParserFactory = Callable[[str], ReasoningParser]
