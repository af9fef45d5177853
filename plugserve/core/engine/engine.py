"""The engine's step: plan, check, apply, launch, collect. Torch-free.

One step in flight: step N+1 is planned and launched while N runs, then N is collected. So blocks that a plan frees can
be used one step later, and a sequence that finished in step N may still have an entry in N+1, whose result is dropped.
In a pipeline of several stages, as many steps are in flight, of different sequences (micro_batches.py).

A step's batch has entries, numbered from 0 in the order of the plan; each entry is one sequence, in its device row.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable

from plugserve.core.contracts.engine_facts import EngineStats
from plugserve.core.contracts.prefix_cache import PrefixCache
from plugserve.core.contracts.runner import ModelRunner, RunnerInfo, StepInput, StepResult
from plugserve.core.contracts.scheduling import Scheduler, StepBudget, StepPlan
from plugserve.core.engine.acceptance import DraftPolicy
from plugserve.core.engine.adapter_pool import AdapterPool
from plugserve.core.engine.admission import Admission
from plugserve.core.engine.batch import Batch
from plugserve.core.engine.delivery import Delivery
from plugserve.core.engine.device_rows import DeviceRows
from plugserve.core.engine.engine_gauges import EngineGauges
from plugserve.core.engine.engine_state import EngineLimits, EngineState
from plugserve.core.engine.guarded_runner import GuardedRunner
from plugserve.core.engine.kv.block_pool import IntegrityError
from plugserve.core.engine.kv.kv_manager import NO_COPIES
from plugserve.core.engine.kv.make_kv_manager import make_kv_manager
from plugserve.core.engine.live_sequences import LiveSequences
from plugserve.core.engine.mask_sender import MaskSender
from plugserve.core.engine.micro_batches import MicroBatches, OneGroup
from plugserve.core.engine.plain_entries import advance_plain
from plugserve.core.engine.plugin_counts import PluginCounts
from plugserve.core.engine.sequence import Sequence
from plugserve.core.engine.speculation import Speculation
from plugserve.core.engine.step_plan import Planner, UnusablePlanError
from plugserve.core.engine.step_time import StepTimeFit
from plugserve.core.engine.structured_output import ConstraintCompiler
from plugserve.core.engine.switched_off import NoAdapters, NoFlightRecorder, NoSpeculation
from plugserve.core.plugin_system.plugin_guard import PluginGuard
from plugserve.core.wire.messages import FINISH_BAD_GRAMMAR, FINISH_COMPLETE, FINISH_NONE, FINISH_STOP, StepOutputs

log = logging.getLogger(__name__)

_STALL_WARNING_S = 5.0


class Engine:
    """Calls scheduler for a plan and runner to compute it. Used from one thread.

    eos_ids end a sequence unless its request ignores them. cache_salt is the model's part of block hashes' salt.
    scheduler_plugin, runner_plugin and proposer_name name the plugins in stats. guard handles the failures of plugins
    and counts them in stats. flight records requests and steps.
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
        guard: PluginGuard | None = None,
        flight: NoFlightRecorder | None = None,
    ) -> None:
        guard = guard if guard is not None else PluginGuard()
        self.stats = EngineStats(num_blocks=info.num_blocks, num_free_blocks=info.num_blocks)
        guard.watch(PluginCounts(self.stats))
        self.kv = make_kv_manager(info, self.stats, prefix_cache, cache_salt)
        self.adapters = AdapterPool(limits.max_loras, limits.max_cpu_loras, clock) if limits.max_loras else NoAdapters()
        self.step_time = step_time if step_time is not None else StepTimeFit()
        self.flight = flight if flight is not None else NoFlightRecorder()
        self._rows = DeviceRows(limits.max_num_seqs)
        self._delivery = Delivery(clock)
        self._launched: deque[Batch] = deque()
        self._groups = MicroBatches(info.num_stages, self._launched) if info.num_stages > 1 else OneGroup()
        state = EngineState(
            info,
            limits,
            self.stats,
            clock,
            self.kv,
            self._rows,
            self.adapters,
            self._delivery,
            self.flight,
            self._groups,
        )
        self._speculation = (
            Speculation(draft_policy, self.stats, proposer_name, guard) if draft_policy else NoSpeculation()
        )
        self._planner = Planner(scheduler, scheduler_name, scheduler_plugin, self.stats, guard)
        self._live = LiveSequences(state, self._planner)
        self._admission = Admission(state, self._live, self._speculation, compiler, eos_ids)
        # called for requests that arrive and end
        self.admit = self._admission.admit
        self.abort = self._admission.abort
        self.abort_worker = self._admission.abort_worker
        self.admit_compiled = self._admission.admit_compiled
        self.refuse_adapter = self._admission.refuse_adapter
        self._gauges = EngineGauges(state, self._live, self._admission)
        self.flight.connect(self._gauges)
        self._runner = GuardedRunner(runner, runner_plugin, self.stats, guard)
        self._masks = MaskSender(self._runner, compiler, self._launched)
        self._max_num_tokens = limits.max_num_batched_tokens
        self._has_length_rule = info.length_rule is not None
        self._clock = clock
        self._step_id = 0
        self._prompt_latency_s = 0.0
        self._stalled_since: float | None = None

    # ---- requests (see Admission)

    @property
    def has_work(self) -> bool:
        """Something is alive or in flight: call step."""
        return bool(self._live.by_id or self._launched or self.adapters.waiting or self.adapters.changes)

    @property
    def is_compiling(self) -> bool:
        """Some request waits for its grammar: call admit_compiled regularly."""
        return bool(self._admission.compiling)

    @property
    def is_stalled(self) -> bool:
        """The last plan was empty with nothing in flight, or all requests wait for adapters to be read: wait a little
        before the next step."""
        is_reading = bool(self.adapters.waiting) and not (self._live.by_id or self._launched or self.adapters.changes)
        return is_reading or self._stalled_since is not None

    def take_outputs(self) -> list[tuple[bytes, StepOutputs]]:
        """The outputs since the last call, one message a worker."""
        return self._delivery.take()

    # ---- the step

    def step(self) -> None:
        """Launch the next step, then collect the one before it (in a pipeline: the oldest)."""
        if self.adapters.waiting:
            self._admission.admit_with_adapters()
        if self._live.by_id:
            self._plan_and_launch()
        elif self.adapters.changes and not self._launched:
            self._step_id += 1
            self._launch(Batch(self._step_id))  # nothing runs: free the memory of unloaded adapters
        if self._launched and self._stalled_since is not None:
            self._collect()  # nothing to add: what is in flight may bring blocks or tokens
            self._stalled_since = None
        elif self._launched and not self._live.by_id:
            self._collect()
        while len(self._launched) > self._groups.depth:
            self._collect()
        self._masks.send()

    def drain(self) -> None:
        """Collect everything in flight without launching more."""
        while self._launched:
            self._collect()

    # ---- planning

    def _plan_and_launch(self) -> None:
        live = self._live
        if self._has_length_rule:
            self._restart_grown()
        if self.kv.num_free < live.num_running:
            self._speculation.reclaim_blocks(live.by_id.values())
        if not any(self._plan_group() for _ in self._groups.turns(live.num_waiting)):
            self._note_stall()
        self._admission.has_left_behind = live.num_waiting > 0

    def _plan_group(self) -> bool:
        """Plan and launch a step of the sequences that have the turn. False: the plan was empty."""
        live = self._live
        try:
            plan, needs = self._planner.plan(self._budget(), live.by_id, live.num_running)
        except UnusablePlanError as error:
            for id in error.sequence_ids:
                live.fail(live.by_id[id], str(error))
            return True
        for id in plan.preempted:
            live.preempt(live.by_id[id])
        if plan.preempted:  # what starts from blocks of theirs now takes these out of the free count
            needs = [live.by_id[id].num_new_blocks(count) for id, count in plan.scheduled]
        if plan.scheduled:
            self._stalled_since = None
            self._launch(self._apply(plan, needs))
        return bool(plan.scheduled or plan.preempted)

    def _restart_grown(self) -> None:
        """Recompute sequences that have grown past their model's length border, once their step in flight is collected.
        The scheduler sees such a sequence as a running one whose prompt is not computed yet."""
        for sequence in self._live.by_id.values():
            if sequence.must_restart and not sequence.num_in_flight:
                self._live.restart(sequence)

    def _budget(self) -> StepBudget:
        kv = self.kv
        return StepBudget(
            now_s=self._clock(),
            max_num_tokens=self._max_num_tokens,
            max_num_seqs=self._live.num_running + self._groups.num_startable(self._rows.num_free),
            num_free_blocks=kv.num_free,
            num_releasing_blocks=kv.num_releasing(self._live.leaving.values()),
            num_blocks=kv.num_blocks,
            block_size=kv.block_size,
            last_prompt_latency_s=self._prompt_latency_s,
            step_time=self._groups.step_time(self.step_time.fit()),
        )

    def _note_stall(self) -> None:
        now = self._clock()
        if self._stalled_since is None:
            self._stalled_since = now
        elif now - self._stalled_since > _STALL_WARNING_S and not self._launched:
            log.warning(
                "scheduler stalls name=%s waiting=%d free_blocks=%d: its plans were empty for %g s",
                self._planner.name, len(self._live.by_id), self.kv.num_free, _STALL_WARNING_S,
            )  # fmt: skip
            self._stalled_since = now

    # ---- launching

    def _apply(self, plan: StepPlan, needs: list[int]) -> Batch:
        """Start the waiting sequences of the plan and allocate blocks. needs are the blocks that each entry takes."""
        self._step_id += 1
        self.flight.launching = self._step_id
        sequences = self._live.by_id
        batch = Batch(self._step_id)
        batch.num_drafts = self._speculation.choose(
            plan.scheduled, needs, sequences, self._max_num_tokens, self.kv.num_free
        )
        for id, _ in plan.scheduled:
            if not sequences[id].is_running:
                self.kv.claim(sequences[id])
        num_pairs = 0
        for (id, count), needed in zip(plan.scheduled, needs, strict=True):
            sequence = sequences[id]
            if not sequence.is_running:
                self._live.start(sequence)
                needed = sequence.num_new_blocks(count)  # the cached blocks that it started with are not allocated
            if needed:
                self._rows.add_blocks(sequence, self.kv.allocate(needed))
            sequence.num_in_flight += count
            end = sequence.num_computed + sequence.num_in_flight
            samples = end >= len(sequence.tokens) and not sequence.params.pooling
            num_pairs += count * end
            if samples:
                sequence.num_sampling += 1
                batch.num_decoding += count == 1
                if sequence.constraint is not None:
                    batch.constrained.append(len(batch.sequences))
            sequence.settle()
            batch.sequences.append(sequence)
            batch.num_tokens.append(count)
            batch.samples.append(samples)
        batch.num_pairs = num_pairs
        if batch.num_drafts:
            self._add_drafts(batch)
        return batch

    def _add_drafts(self, batch: Batch) -> None:
        """Let the entries compute their drafts as well, and give them the blocks that this may take."""
        for b, (sequence, num_drafts) in enumerate(zip(batch.sequences, batch.num_drafts, strict=True)):
            if num_drafts:
                batch.num_tokens[b] += num_drafts
                sequence.num_in_flight += num_drafts
                sequence.num_sampling += num_drafts
                sequence.settle()
                needed = sequence.num_new_blocks(0)
                if needed:
                    self._rows.add_blocks(sequence, self.kv.allocate(needed))

    def _launch(self, batch: Batch) -> None:
        """Launch a batch on the runner, with the changes since the last one."""
        deltas = self._rows.take_deltas()
        copies = batch.copies = self.kv.take_copies()
        adapters = self.adapters
        self._launched.append(batch)
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
                copy_out=copies.to_host,
                copy_in=copies.to_device,
                num_drafts=batch.num_drafts,
                adapters=adapters.take_changes() if adapters.changes else [],
                has_adapters=adapters.num_entered > 0 and any(one.adapter is not None for one in batch.sequences),
            )
        )

    # ---- collecting

    def _collect(self) -> None:
        self._masks.send()  # drawing the oldest step may wait for them
        batch = self._launched.popleft()
        result = self._runner.collect(batch.step_id, len(batch.sequences))
        num_generated = self.stats.num_generated_tokens
        if batch.copies is not NO_COPIES:
            self.kv.settle_copies(batch.copies, has_failed=len(result.failed) == len(batch.sequences))
        counts = self._speculation.settle(batch.sequences, batch.num_tokens, batch.num_drafts, result)
        if result.duration_s and batch.num_tokens:
            self._note_duration(batch, result)
        rest = advance_plain(batch, result, self._delivery)
        self.stats.num_generated_tokens += len(batch.sequences) - len(rest)
        for b in rest:
            sequence = batch.sequences[b]
            sequence.num_in_flight -= batch.num_tokens[b]
            sequence.num_sampling -= batch.samples[b] + (batch.num_drafts[b] if batch.num_drafts else 0)
            if not sequence.is_finished:
                self._advance(sequence, b, counts[b], result)
                sequence.settle()
        self.stats.note_step(batch.num_prompt_tokens, self.stats.num_generated_tokens - num_generated)
        self.kv.note_computed(batch.sequences)
        if self._live.leaving:
            self._live.release_collected(batch.sequences)
        self.flight.step(batch, result.duration_s)

    def _note_duration(self, batch: Batch, result: StepResult) -> None:
        num_decoding = batch.num_decoding + sum(result.num_drafted.values())
        self.step_time.observe(batch.num_prompt_tokens, num_decoding, batch.num_pairs, result.duration_s)

    def _advance(self, sequence: Sequence, b: int, count: int, result: StepResult) -> None:
        """Confirm count computed tokens and the new ones; deliver, and finish where a limit or stop is reached."""
        if b in result.failed:
            self._live.fail(sequence, result.failed[b])
            return
        sequence.num_computed += count
        if sequence.params.num_prompt_logprobs is not None and sequence.num_delivered == 0:
            sequence.add_prompt_logprobs(result.prompt_logprobs.get(b, []))
        if sequence.params.pooling:
            if sequence.num_computed >= sequence.num_prompt_tokens:
                self._finish_pooling(sequence, result.pooled.get(b))
            return
        new_tokens = result.tokens[b]
        if not new_tokens:
            return
        accepted, finish = sequence.accept(new_tokens)
        if len(accepted) < len(new_tokens):  # tokens computed beyond its end are discarded
            sequence.num_computed -= len(new_tokens) - len(accepted)
        if sequence.constraint is not None and finish != FINISH_STOP:
            problem = next((why for token in accepted if (why := sequence.constraint.accept(token))), None)
            if problem:
                self._live.fail(sequence, problem, FINISH_BAD_GRAMMAR)
                return
            finish = FINISH_COMPLETE if sequence.constraint.is_complete else finish
        if sequence.num_delivered == 0 and sequence.first_scheduled_s is not None:
            self._prompt_latency_s = self._clock() - sequence.first_scheduled_s
            self.flight.first_token(sequence.flight)
        logprobs = result.logprobs.get(b)
        self._delivery.add_tokens(sequence, accepted, finish, logprobs[: len(accepted)] if logprobs else None)
        self.stats.num_generated_tokens += len(accepted)
        if finish != FINISH_NONE:
            self.kv.note_computed((sequence,))
            self._live.finish(sequence, finish)

    def _finish_pooling(self, sequence: Sequence, vector: bytes | None) -> None:
        if vector is None:
            self._live.fail(sequence, "this server's runner does not pool hidden states")
            return
        self._delivery.add_pooled(sequence, vector)
        self._live.finish(sequence, FINISH_STOP)

    # ---- watching

    def snapshot(self) -> EngineStats:
        """Current counts, in an object that does not change any more."""
        self._gauges.report()
        self.stats.memory = self._runner.measure_memory()
        return self.stats.copy()

    def check_integrity(self) -> None:
        """Compare the block pool with what sequences hold; a mismatch is logged and counted, never raised."""
        self.stats.num_integrity_checks += 1
        try:
            self._live.check_integrity()
        except IntegrityError as error:
            self.stats.num_integrity_errors += 1
            log.error("block pool integrity error=%s", error)
