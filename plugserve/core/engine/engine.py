"""The engine's step: plan, check, apply, launch, collect. Torch-free; knows nothing of processes, sockets or text.

One step in flight: step N+1 is planned and launched while N runs, then N is collected. So what a plan frees comes back
one step later, and a sequence that finished in step N may still have a harmless row in N+1, whose result is dropped.
"""

from __future__ import annotations

import logging
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field

from plugserve.core.contracts.engine_facts import EngineStats
from plugserve.core.contracts.prefix_cache import PrefixCache
from plugserve.core.contracts.runner import ModelRunner, NewRow, RunnerInfo, StepInput, StepResult
from plugserve.core.contracts.sampling import POOLINGS, SamplingParams
from plugserve.core.contracts.scheduling import Scheduler, StepBudget, StepPlan
from plugserve.core.engine.acceptance import Acceptance, DraftPolicy
from plugserve.core.engine.adapter_pool import AdapterPool
from plugserve.core.engine.delivery import Delivery
from plugserve.core.engine.kv.block_pool import BlockPool, IntegrityError
from plugserve.core.engine.kv.host_cache_index import Arrival, HostShelf
from plugserve.core.engine.kv.host_slots import HostTier
from plugserve.core.engine.kv.shared_prefixes import SharedPrefixes
from plugserve.core.engine.sequence import RequestKey, Sequence, SequenceHandle
from plugserve.core.engine.speculation import Speculation
from plugserve.core.engine.step_plan import check_plan
from plugserve.core.engine.step_time import StepTimeFit
from plugserve.core.engine.structured_output import Constraint, ConstraintCompiler
from plugserve.core.errors import GrammarError, PlanError, RequestFailedError
from plugserve.core.wire.block_hash import HASH_BYTES, adapter_key, salt_of
from plugserve.core.wire.messages import (
    FINISH_BAD_GRAMMAR,
    FINISH_COMPLETE,
    FINISH_ERROR,
    FINISH_LENGTH,
    FINISH_NO_ADAPTER,
    FINISH_NONE,
    FINISH_REFUSED,
    FINISH_STOP,
    StepOutputs,
)

log = logging.getLogger(__name__)

_MOST_RUNNER_ERRORS = 3  # in a row


@dataclass(slots=True)
class EngineLimits:
    """What one step may hold: tokens, sequences (device rows), LoRA adapters; and how many sequences may wait, None for
    any."""

    max_num_batched_tokens: int
    max_num_seqs: int
    max_num_waiting: int | None = None
    max_loras: int = 0


@dataclass(slots=True)
class _Launched:
    """A step in flight: its batch, in columns. constrained lists the rows whose token masks are still owed, arrivals
    the blocks that it copies to the host; num_decoding and num_pairs say what the step costs (see StepTime). num_tokens
    are upper bounds where num_drafts isn't 0, which is empty in a step that doesn't speculate."""

    step_id: int
    sequences: list[Sequence] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)
    samples: list[bool] = field(default_factory=list)
    constrained: list[int] = field(default_factory=list)
    arrivals: list[Arrival] = field(default_factory=list)
    num_drafts: list[int] = field(default_factory=list)
    num_decoding: int = 0
    num_pairs: int = 0


@dataclass(slots=True)
class _Deltas:
    """What changed on the device's rows since the last launch."""

    new_rows: list[NewRow] = field(default_factory=list)
    freed_rows: list[int] = field(default_factory=list)
    new_blocks: list[tuple[int, int, list[int]]] = field(default_factory=list)


class Engine:
    """Owns sequences, blocks and rows; asks scheduler what to compute and runner to compute it.

    eos_ids end a sequence unless its request ignores them. Used from one thread.
    """

    def __init__(
        self,
        *,
        runner: ModelRunner,
        info: RunnerInfo,
        scheduler: Scheduler,
        scheduler_name: str,
        limits: EngineLimits,
        eos_ids: Iterable[int] = (),
        prefix_cache: PrefixCache | None = None,
        cache_salt: str = "",
        compiler: ConstraintCompiler | None = None,
        draft_policy: DraftPolicy | None = None,
        proposer_name: str = "draft",
        scheduler_plugin: str = "",
        runner_plugin: str = "runner",
        clock: Callable[[], float] = time.monotonic,
        step_time: StepTimeFit | None = None,
    ) -> None:
        self.info = info
        self.limits = limits
        self.host_tier = HostTier(info.num_host_slots if prefix_cache is not None else 0)
        self._shelf = HostShelf(self.host_tier)
        self._shared_prefixes = SharedPrefixes()
        self.pool = BlockPool(info.num_blocks, prefix_cache, self._shelf if self.host_tier.num_slots else None)
        self.stats = EngineStats(num_blocks=info.num_blocks, num_free_blocks=info.num_blocks)
        self._schedule_key = f"{scheduler_plugin or scheduler_name} schedule"
        self._run_key = f"{runner_plugin} step"
        self.stats.plugin_seconds = {self._schedule_key: 0.0, self._run_key: 0.0}
        self._runner = runner
        self._scheduler = scheduler
        self._scheduler_name = scheduler_name
        self._eos_ids = frozenset(eos_ids)
        self._uses_prefix_cache = prefix_cache is not None
        self._cache_salt = cache_salt
        self._compiler = compiler
        self._speculation = Speculation(draft_policy, self.stats, proposer_name) if draft_policy else None
        self._compiling: dict[RequestKey, tuple[Sequence, Future[Constraint]]] = {}
        self._clock = clock
        self.adapters = AdapterPool(limits.max_loras, clock)
        self._delivery = Delivery()
        self._sequences: dict[int, Sequence] = {}  # live ones
        self._by_key: dict[RequestKey, Sequence] = {}
        self._leaving: dict[int, Sequence] = {}  # finished or preempted, with a step still in flight
        self._free_rows = list(range(limits.max_num_seqs - 1, -1, -1))
        self._num_running = 0
        self._launched: deque[_Launched] = deque()
        self._deltas = _Deltas()
        self._block_bytes = (info.kv_cache_bytes - info.draft_kv_bytes) // max(1, info.num_blocks)
        self._next_id = 0
        self._step_id = 0
        self.step_time = step_time if step_time is not None else StepTimeFit()
        self._prompt_latency_s = 0.0
        self._stalled_since: float | None = None
        self._num_runner_errors = 0
        self._left_behind = False  # after the last plan some sequence still waited

    # ---- requests

    @property
    def has_work(self) -> bool:
        """Something is alive or in flight: call step."""
        return bool(self._sequences or self._launched or self.adapters.waiting or self.adapters.has_changes)

    @property
    def is_compiling(self) -> bool:
        """Some request waits for its grammar: call admit_compiled now and then."""
        return bool(self._compiling)

    @property
    def is_stalled(self) -> bool:
        """The last plan was empty with nothing in flight: wait a little before the next step."""
        return self._stalled_since is not None

    def admit(
        self,
        key: RequestKey,
        prompt: array[int],
        params: SamplingParams,
        *,
        priority: int = 0,
        user: str = "",
        cache_salt: str = "",
        block_hashes: bytes = b"",
        adapter_id: int = 0,
    ) -> None:
        """Take a request in. One that can't be served is answered with an error, others are not disturbed.

        block_hashes are those of the prompt's full blocks under salt_of(), where the server has made them. adapter_id
        is that of a loaded LoRA adapter, 0 for none."""
        reason = self._refusal(key, prompt, params)
        if reason:
            self._delivery.add_error(key, reason)
            return
        adapter = self.adapters.find(adapter_id)
        if adapter_id and adapter is None:
            self._delivery.add_error(key, "The LoRA adapter has just been unloaded.", FINISH_NO_ADAPTER)
            return
        if self._is_full():
            message = f"The server is busy: {self.limits.max_num_waiting} requests wait already; try again in a moment."
            self._delivery.add_error(key, message, FINISH_REFUSED)
            return
        stop_ids = frozenset(params.stop_token_ids)
        sequence = Sequence(
            id=self._next_id,
            key=key,
            params=params,
            tokens=prompt,
            num_prompt_tokens=len(prompt),
            arrival_s=self._clock(),
            stop_ids=stop_ids if params.ignore_eos else stop_ids | self._eos_ids,
            pool=self.pool,
            block_size=self.info.block_size,
            shared_prefixes=self._shared_prefixes,
            salt=salt_of(self._cache_salt, adapter_key(adapter_id), cache_salt),
            prompt_hashes=block_hashes if len(block_hashes) == self._hash_bytes(prompt) else b"",
            priority=priority,
            user=user,
            uses_prefix_cache=self._uses_prefix_cache and not params.pooling,
            adapter=adapter,
            length_rule=self.info.length_rule,
            acceptance=Acceptance() if self._speculation is not None and not params.grammar else None,
        )
        self._next_id += 1
        self.stats.num_prompt_tokens += len(prompt)
        if params.grammar and self._compiler is not None:
            is_narrowed = params.allowed_token_ids or params.bad_words  # they may bar the way to the end
            compiled = self._compiler.submit(params.grammar, 0 if is_narrowed else params.max_tokens)
            self._compiling[key] = (sequence, compiled)
        else:
            self._enter(sequence)

    def _hash_bytes(self, prompt: array[int]) -> int:
        return len(prompt) // self.info.block_size * HASH_BYTES

    def _enter(self, sequence: Sequence) -> None:
        """From here on the scheduler may run it, once its adapter has a slot."""
        if sequence.adapter is None or self.adapters.enter(sequence):
            self._hand_over(sequence)

    def _hand_over(self, sequence: Sequence) -> None:
        self._sequences[sequence.id] = sequence
        self._by_key[sequence.key] = sequence
        try:
            self._scheduler.add(SequenceHandle(sequence))
        except Exception as error:
            self._fail(sequence, self._note_scheduler_error(error))

    def admit_compiled(self) -> None:
        """Let in the requests whose grammars are ready; answer those whose grammars are not usable."""
        for key, (sequence, compiled) in list(self._compiling.items()):
            if not compiled.done():
                continue
            del self._compiling[key]
            try:
                sequence.constraint = compiled.result()
            except Exception as error:
                if not isinstance(error, RequestFailedError):
                    log.exception("grammar compiler failed")
                is_users = isinstance(error, GrammarError)
                finish = FINISH_BAD_GRAMMAR if is_users else FINISH_ERROR
                self._delivery.add_error(key, str(error) or type(error).__name__, finish)
                continue
            self._enter(sequence)

    def _refusal(self, key: RequestKey, prompt: array[int], params: SamplingParams) -> str | None:
        total = len(prompt) + params.max_tokens
        if key in self._by_key or key in self._compiling or key in self.adapters.waiting:
            return f"request id {key[1]} is in use"
        if params.pooling and (params.pooling not in POOLINGS or params.max_tokens or params.grammar):
            return f"pooling is one of {', '.join(POOLINGS)}, with max_tokens 0 and no grammar"
        if not prompt or (params.max_tokens < 1 and not params.pooling):
            return "a request needs at least one prompt token and max_tokens of at least 1"
        if total > self.info.max_model_len:
            return f"prompt ({len(prompt)}) + max_tokens ({params.max_tokens}) is over {self.info.max_model_len} tokens"
        if not 0 <= min(prompt) <= max(prompt) < self.info.vocab_size:
            return f"the prompt holds a token id outside the vocabulary of {self.info.vocab_size}"
        if params.grammar and self._compiler is None:
            return "this engine has no grammar compiler"
        return None

    def _is_full(self) -> bool:
        """As many sequences wait as may. What free rows will take in the next step isn't waiting, as long as the last
        plan left nobody behind."""
        if self.limits.max_num_waiting is None:
            return False
        is_behind = self._left_behind and self._num_waiting > 0
        room = 0 if is_behind else len(self._free_rows)
        return self._num_waiting - room >= self.limits.max_num_waiting

    @property
    def _num_waiting(self) -> int:
        return len(self._sequences) - self._num_running + len(self._compiling) + len(self.adapters.waiting)

    def abort(self, key: RequestKey) -> None:
        """Forget a request; its blocks come back when the step in flight is collected. Unknown keys are ignored."""
        sequence = self._by_key.get(key)
        if sequence is not None:
            self._finish(sequence)
        elif key in self._compiling:
            self._compiling.pop(key)[1].cancel()
        elif key in self.adapters.waiting:
            self.adapters.abandon(key)

    def abort_worker(self, identity: bytes) -> int:
        """Forget every request of one server worker; returns how many."""
        keys = [key for key in [*self._by_key, *self._compiling, *self.adapters.waiting] if key[0] == identity]
        for key in keys:
            self.abort(key)
        return len(keys)

    def fail_all(self, message: str) -> None:
        """Answer every live request with an error."""
        for sequence in list(self._sequences.values()):
            self._fail(sequence, message)

    def take_outputs(self) -> list[tuple[bytes, StepOutputs]]:
        """What happened since the last call, one message a worker."""
        return self._delivery.take()

    # ---- the step

    def step(self) -> None:
        """Launch the next step, then collect the one before it."""
        if self.adapters.waiting:
            for sequence in self.adapters.admissible():
                self._hand_over(sequence)
        if self._sequences:
            self._launch()
        elif self.adapters.has_changes and not self._launched:
            self._step_id += 1
            self._send(_Launched(self._step_id))  # nobody runs, and an unloaded adapter's memory is wanted back
        if len(self._launched) > 1 or (self._launched and not self._sequences):
            self._collect()
        elif self._launched and self._stalled_since is not None:
            self._collect()  # nothing to add: what is in flight may bring blocks or tokens
            self._stalled_since = None
        for batch in self._launched:
            if batch.constrained:
                self._provide_masks(batch)

    def drain(self) -> None:
        """Collect everything in flight without launching more."""
        while self._launched:
            self._collect()

    def _launch(self) -> None:
        if self.info.length_rule is not None:
            self._restart_grown()
        if self._speculation is not None and self.pool.num_free < self._num_running:
            self._take_back_surplus()
        budget = self._budget()
        started_s = time.perf_counter()
        plan = StepPlan()
        try:
            plan = self._scheduler.schedule(budget)
            needs = check_plan(plan, budget, self._sequences, self._num_running, self._scheduler_name)
        except PlanError as error:
            self._fail_plan(error, plan)
            return
        except (Exception, SystemExit) as error:
            self.fail_all(self._note_scheduler_error(error))
            return
        finally:
            self.stats.plugin_seconds[self._schedule_key] += time.perf_counter() - started_s
        for id in plan.preempted:
            self._preempt(self._sequences[id])
        if not plan.scheduled:
            self._left_behind = len(self._sequences) > self._num_running
            if not plan.preempted:
                self._note_stall()
            return
        self._stalled_since = None
        self._apply(plan, needs)
        self._left_behind = len(self._sequences) > self._num_running

    def _restart_grown(self) -> None:
        """Compute anew what has grown past its model's length border, once its step in flight is collected. To the
        scheduler such a sequence is a running one whose prompt is not computed yet."""
        for sequence in self._sequences.values():
            if sequence.must_restart and not sequence.num_in_flight:
                self._stop_running(sequence)
                self._release(sequence)
                sequence.reset()
                self._claim_prefix(sequence)
                self._start(sequence)

    def _budget(self) -> StepBudget:
        return StepBudget(
            now_s=self._clock(),
            max_num_tokens=self.limits.max_num_batched_tokens,
            max_num_seqs=self._num_running + len(self._free_rows),
            num_free_blocks=self.pool.num_free,
            num_releasing_blocks=sum(len(sequence.own_blocks) for sequence in self._leaving.values()),
            num_blocks=self.pool.num_blocks,
            block_size=self.info.block_size,
            last_prompt_latency_s=self._prompt_latency_s,
            step_time=self.step_time.fit(),
        )

    def _note_scheduler_error(self, error: BaseException) -> str:
        """Log and count what the scheduler raised; returns what its requests are told."""
        log.error("scheduler failed name=%s", self._scheduler_name, exc_info=error)
        self.stats.num_plan_errors += 1
        errors = self.stats.plugin_errors
        errors[self._schedule_key] = errors.get(self._schedule_key, 0) + 1
        return f"scheduler {self._scheduler_name!r} raised {type(error).__name__}"

    def _fail_plan(self, error: PlanError, plan: StepPlan) -> None:
        """The plan is void. The sequence at fault is failed; without one, all that the plan named."""
        log.error("plan refused error=%s", error)
        self.stats.num_plan_errors += 1
        ids = [error.sequence_id] if error.sequence_id is not None else []
        if not ids and isinstance(plan, StepPlan):
            ids = [id for id, _ in plan.scheduled] + plan.preempted
        guilty = [self._sequences[id] for id in ids if id in self._sequences] or list(self._sequences.values())
        for sequence in guilty:
            self._fail(sequence, str(error))

    def _note_stall(self) -> None:
        now = self._clock()
        if self._stalled_since is None:
            self._stalled_since = now
        elif now - self._stalled_since > 5.0 and not self._launched:
            log.warning(
                "scheduler stalls name=%s waiting=%d free_blocks=%d: it has planned nothing for 5 s",
                self._scheduler_name, len(self._sequences), self.pool.num_free,
            )  # fmt: skip
            self._stalled_since = now

    def _apply(self, plan: StepPlan, needs: list[int]) -> None:
        """Start what waited, allocate blocks, and launch. needs are the blocks that each entry takes."""
        self._step_id += 1
        batch = _Launched(self._step_id)
        if self._speculation is not None:
            spare = self.limits.max_num_batched_tokens - sum(count for _, count in plan.scheduled)
            batch.num_drafts = self._speculation.choose(
                [(self._sequences[id], count) for id, count in plan.scheduled], spare, self.pool.num_free - sum(needs)
            )
        for id, _ in plan.scheduled:
            if not self._sequences[id].is_running:
                self._claim_prefix(self._sequences[id])
        for (id, count), needed in zip(plan.scheduled, needs, strict=True):
            sequence = self._sequences[id]
            if not sequence.is_running:
                self._start(sequence)
                needed = sequence.num_new_blocks(count)  # the cached blocks that it started with are not allocated
            if needed:
                self._add_blocks(sequence, needed)
            end = sequence.num_under_way + count
            samples = end >= len(sequence.tokens) and not sequence.params.pooling
            batch.num_decoding += samples and count == 1
            batch.num_pairs += count * end
            sequence.num_in_flight += count
            sequence.num_sampling += samples
            sequence.settle()
            if samples and sequence.constraint is not None:
                batch.constrained.append(len(batch.sequences))
            batch.sequences.append(sequence)
            batch.num_tokens.append(count)
            batch.samples.append(samples)
        if batch.num_drafts:
            self._add_drafts(batch)
        self._send(batch)

    def _send(self, batch: _Launched) -> None:
        """Hand a batch to the runner, with what has changed since the last one."""
        deltas, self._deltas = self._deltas, _Deltas()
        copy_out, copy_in = self.host_tier.take_copies()
        batch.arrivals = self._shelf.take_queued()
        self._launched.append(batch)
        has_adapters = self.adapters.has_entered and any(one.adapter is not None for one in batch.sequences)
        self._runner.launch(
            StepInput(
                step_id=batch.step_id,
                new_rows=deltas.new_rows,
                freed_rows=deltas.freed_rows,
                new_blocks=deltas.new_blocks,
                rows=[sequence.row for sequence in batch.sequences],
                num_tokens=batch.num_tokens,
                samples=batch.samples,
                constrained=list(batch.constrained),
                copy_out=copy_out,
                copy_in=copy_in,
                num_drafts=batch.num_drafts,
                adapters=self.adapters.take_changes() if self.adapters.has_changes else [],
                has_adapters=has_adapters,
            )
        )

    def _claim_prefix(self, sequence: Sequence) -> None:
        """Take the blocks and hold the host slots of a waiting sequence's cached prefix, before any allocation of this
        step can evict them."""
        matched = sequence.match_prefix()
        if matched:
            self.pool.share(matched)
            sequence.blocks = list(matched)
        if sequence.matched_slots:
            self.host_tier.hold(sequence.matched_slots)

    def _restore_prefix(self, sequence: Sequence) -> None:
        """Blocks for what the host tier holds of a prefix. They are remembered when their step is collected."""
        slots, start = sequence.matched_slots, len(sequence.blocks)
        self._shelf.touch(sequence.block_hashes[start : start + len(slots)])
        restored = self.pool.allocate(len(slots))
        for slot, block in zip(slots, restored, strict=True):
            self.host_tier.copy_in(slot, block)
        sequence.blocks = sequence.blocks + restored

    def _start(self, sequence: Sequence) -> None:
        """Give a waiting sequence a row; its prefix is claimed."""
        sequence.num_remembered_blocks = len(sequence.blocks)
        if sequence.matched_slots:
            self._restore_prefix(sequence)
        sequence.num_computed = len(sequence.blocks) * self.info.block_size
        if sequence.first_scheduled_s is None:
            sequence.first_scheduled_s = self._clock()
            sequence.num_cached_tokens = sequence.num_computed
            if sequence.reads_prefix_cache:
                self.stats.num_prefix_queried_tokens += sequence.num_prompt_tokens
                self.stats.num_prefix_hit_tokens += sequence.num_computed
                self.stats.num_prefix_hit_tokens_host += len(sequence.matched_slots) * self.info.block_size
        if sequence.uses_prefix_cache:
            sequence.extend_hashes()
            self._shared_prefixes.add(sequence)
        sequence.row = self._free_rows.pop()
        sequence.is_running = True
        self._num_running += 1
        sequence.settle()
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

    def _add_drafts(self, batch: _Launched) -> None:
        """Let the batch's rows compute their drafts as well, and give them the blocks that this may take."""
        for b, (sequence, num_drafts) in enumerate(zip(batch.sequences, batch.num_drafts, strict=True)):
            if num_drafts:
                batch.num_tokens[b] += num_drafts
                sequence.num_in_flight += num_drafts
                sequence.num_sampling += num_drafts
                sequence.settle()
                needed = sequence.num_new_blocks(0)
                if needed:
                    self._add_blocks(sequence, needed)

    def _take_back_surplus(self) -> None:
        """Blocks that drafts might have filled and didn't, now that they are wanted elsewhere."""
        for sequence in self._sequences.values():
            surplus = sequence.surplus_blocks() if sequence.is_running and sequence.acceptance is not None else 0
            if surplus:
                self.pool.free(sequence.blocks[-surplus:])
                sequence.blocks = sequence.blocks[:-surplus]

    def _add_blocks(self, sequence: Sequence, num_blocks: int) -> None:
        blocks = self.pool.allocate(num_blocks)
        self._deltas.new_blocks.append((sequence.row, len(sequence.blocks), blocks))
        sequence.blocks = sequence.blocks + blocks  # a new list: the row's delta may hold the old one

    def _provide_masks(self, batch: _Launched) -> None:
        """Send the masks that batch waits for: all tokens before its own are collected now. A sequence that ended
        meanwhile draws what it likes; nobody sees it."""
        assert self._compiler is not None
        masks = self._compiler.empty_masks(len(batch.constrained))
        for mask, b in zip(masks, batch.constrained, strict=True):
            sequence = batch.sequences[b]
            if sequence.constraint is not None and not sequence.is_finished:
                sequence.constraint.fill(mask)
        batch.constrained = []
        self._runner.provide_masks(batch.step_id, masks)

    def _preempt(self, sequence: Sequence) -> None:
        self.stats.num_preemptions += 1
        sequence.num_preemptions += 1
        self._stop_running(sequence)
        if sequence.num_in_flight:
            sequence.is_releasing = True
            self._leaving[sequence.id] = sequence
        else:
            self._release(sequence)
            sequence.reset()

    def _stop_running(self, sequence: Sequence) -> None:
        if sequence.is_running:
            sequence.is_running = False
            self._num_running -= 1
            self._shared_prefixes.remove(sequence.id)

    def _release(self, sequence: Sequence) -> None:
        """Give row and blocks back, and tell the device with the next launch."""
        self.pool.free(reversed(sequence.blocks))  # the end of a prefix is evicted before its start
        sequence.blocks = []
        if sequence.row >= 0:
            self._free_rows.append(sequence.row)
            self._deltas.freed_rows.append(sequence.row)
            sequence.row = -1

    def _finish(self, sequence: Sequence) -> None:
        """Take a live sequence out; blocks and row come back when nothing of it is in flight any more."""
        sequence.is_finished = True
        self._stop_running(sequence)
        del self._sequences[sequence.id]
        del self._by_key[sequence.key]
        if sequence.adapter is not None:
            self.adapters.leave(sequence)
        try:
            self._scheduler.remove(sequence.id)
        except Exception as error:
            self._note_scheduler_error(error)
        if sequence.num_in_flight:
            self._leaving[sequence.id] = sequence
        else:
            self._leaving.pop(sequence.id, None)
            self._release(sequence)

    def _fail(self, sequence: Sequence, message: str, finish: int = FINISH_ERROR) -> None:
        self._delivery.add_error(sequence.key, message, finish)
        self._finish(sequence)

    # ---- collecting

    def _collect(self) -> None:
        batch = self._launched.popleft()
        result = self._harvest(batch)
        if batch.arrivals:
            self._settle_arrivals(batch, result)
        self.stats.num_steps += 1
        counts = batch.num_tokens
        if self._speculation is not None:
            counts = self._speculation.settle(batch.sequences, batch.num_tokens, batch.num_drafts, result)
        self.stats.plugin_seconds[self._run_key] += result.duration_s
        if result.duration_s and batch.num_tokens:
            num_prompt_tokens = sum(batch.num_tokens) - sum(batch.num_drafts) - batch.num_decoding
            num_decoding = batch.num_decoding + sum(result.num_drafted.values())
            self.step_time.observe(num_prompt_tokens, num_decoding, batch.num_pairs, result.duration_s)
        for b, sequence in enumerate(batch.sequences):
            sequence.num_in_flight -= batch.num_tokens[b]
            sequence.num_sampling -= batch.samples[b] + (batch.num_drafts[b] if batch.num_drafts else 0)
            if not sequence.is_finished:
                self._advance(sequence, b, counts[b], result)
                sequence.settle()
            if self._leaving and sequence.num_in_flight == 0 and sequence.id in self._leaving:
                self._leave(sequence)

    def _settle_arrivals(self, batch: _Launched, result: StepResult) -> None:
        """A step that failed as a whole may not have come to its copies."""
        if len(result.failed) == len(batch.sequences):
            self._shelf.lost(batch.arrivals)
        else:
            self._shelf.arrived(batch.arrivals)
            self.pool.version += 1

    def _harvest(self, batch: _Launched) -> StepResult:
        """What the runner collected. A runner that raises fails the rows of the step; one that goes on raising is
        beyond help, and its error ends the process (which is started again)."""
        try:
            result = self._runner.collect()
        except Exception as error:
            self._num_runner_errors += 1
            if self._num_runner_errors >= _MOST_RUNNER_ERRORS:
                raise
            log.exception("runner failed in collect step_id=%d", batch.step_id)
            reason = f"the model runner failed: {type(error).__name__}"
            rows = range(len(batch.sequences))
            return StepResult(batch.step_id, tokens=[[] for _ in rows], failed=dict.fromkeys(rows, reason))
        self._num_runner_errors = 0
        return result

    def _leave(self, sequence: Sequence) -> None:
        del self._leaving[sequence.id]
        self._release(sequence)
        if not sequence.is_finished:
            sequence.reset()

    def _advance(self, sequence: Sequence, b: int, count: int, result: StepResult) -> None:
        """Confirm count computed tokens and the new ones; deliver, and finish where a limit or stop is reached."""
        if b in result.failed:
            self._fail(sequence, result.failed[b])
            return
        sequence.num_computed += count
        if sequence.params.num_prompt_logprobs is not None and sequence.num_delivered == 0:
            self._gather_prompt_logprobs(sequence, result.prompt_logprobs.get(b, []))
        if sequence.params.pooling:
            if sequence.num_computed >= sequence.num_prompt_tokens:
                self._finish_pooling(sequence, result.pooled.get(b))
            return
        new_tokens = result.tokens[b]
        if new_tokens:
            accepted, finish = self._accept(sequence, new_tokens)
            if len(accepted) < len(new_tokens):  # what it computed beyond its end is nobody's
                sequence.num_computed -= len(new_tokens) - len(accepted)
            if sequence.constraint is not None and finish != FINISH_STOP:
                problem = next((why for token in accepted if (why := sequence.constraint.accept(token))), None)
                if problem:
                    self._fail(sequence, problem, FINISH_BAD_GRAMMAR)
                    return
                finish = FINISH_COMPLETE if sequence.constraint.is_complete else finish
            if sequence.num_delivered == 0 and sequence.first_scheduled_s is not None:
                self._prompt_latency_s = self._clock() - sequence.first_scheduled_s
            logprobs = result.logprobs.get(b)
            self._delivery.add_tokens(sequence, accepted, finish, logprobs[: len(accepted)] if logprobs else None)
            self.stats.num_generated_tokens += len(accepted)
            if finish != FINISH_NONE:
                self._remember_blocks(sequence)
                self._finish(sequence)
                return
        if sequence.uses_prefix_cache:
            self._remember_blocks(sequence)

    def _finish_pooling(self, sequence: Sequence, vector: bytes | None) -> None:
        if vector is None:
            self._fail(sequence, "this server's runner does not pool hidden states")
            return
        self._delivery.add_pooled(sequence, vector)
        self._finish(sequence)

    def _accept(self, sequence: Sequence, new_tokens: list[int]) -> tuple[list[int], int]:
        """Append tokens up to a stop token or the limit; returns those and the FINISH_ code."""
        tokens = sequence.tokens
        for n, token in enumerate(new_tokens, start=1):
            tokens.append(token)
            length = len(tokens)
            if token in sequence.stop_ids and length - sequence.num_prompt_tokens > sequence.params.min_tokens:
                return new_tokens[:n], FINISH_STOP
            if length >= sequence.max_num_tokens:
                return new_tokens[:n], FINISH_LENGTH
        return new_tokens, FINISH_NONE

    def _gather_prompt_logprobs(self, sequence: Sequence, entries: list[object]) -> None:
        if sequence.prompt_logprobs is None:
            sequence.prompt_logprobs = [None]
        sequence.prompt_logprobs.extend(entries)  # type: ignore[arg-type]
        del sequence.prompt_logprobs[sequence.num_prompt_tokens :]

    def _remember_blocks(self, sequence: Sequence) -> None:
        """Name the blocks that filled up, so that later requests can share them."""
        if not sequence.uses_prefix_cache:
            return
        num_full = min(sequence.num_computed // self.info.block_size, len(sequence.blocks))
        if num_full > sequence.num_remembered_blocks:
            sequence.extend_hashes()
            for i in range(sequence.num_remembered_blocks, num_full):
                self.pool.remember(sequence.block_hashes[i], sequence.blocks[i])
            sequence.num_remembered_blocks = num_full
            self._shared_prefixes.update(sequence)

    # ---- watching

    def snapshot(self) -> EngineStats:
        """Current counts (the same object each time)."""
        self.stats.num_free_blocks = self.pool.num_free
        self.stats.num_requests_running = self._num_running
        self.stats.num_requests_waiting = self._num_waiting
        self.stats.num_host_blocks = self.host_tier.num_slots
        self.stats.num_used_host_blocks = self.host_tier.num_used
        self.stats.num_host_bytes_out = self.host_tier.num_copied_out * self._block_bytes
        self.stats.num_host_bytes_in = self.host_tier.num_copied_in * self._block_bytes
        self.stats.num_requests_waiting_for_adapter = len(self.adapters.waiting)
        self.stats.num_adapters = self.adapters.num_known
        self.stats.num_adapter_slots_in_use = self.adapters.num_slots_in_use
        self.stats.num_adapter_swaps = self.adapters.num_swaps
        return self.stats

    def check_integrity(self) -> None:
        """Compare the block pool with what sequences hold; a mismatch is logged and counted, never raised."""
        self.stats.num_integrity_checks += 1
        holders = self._sequences | self._leaving
        try:
            self.pool.check_integrity(sequence.blocks for sequence in holders.values())
            self._shelf.check_integrity()
            rows = sum(sequence.row >= 0 for sequence in holders.values())
            if rows + len(self._free_rows) != self.limits.max_num_seqs:
                raise IntegrityError(f"{rows} rows held and {len(self._free_rows)} free, of {self.limits.max_num_seqs}")
            self.adapters.check_integrity(self._sequences.values())
        except IntegrityError as error:
            self.stats.num_integrity_errors += 1
            log.error("block pool integrity error=%s", error)
