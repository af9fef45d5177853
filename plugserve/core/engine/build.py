"""Builds an engine from settings, plugins and a model.

Imports no torch: the runner's factory imports what it needs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec.structs import asdict

from plugserve.core.contracts.engine_facts import EngineInfo
from plugserve.core.contracts.executor import OnEnd
from plugserve.core.contracts.runner import ModelRunner, RunnerInfo
from plugserve.core.contracts.scheduling import Scheduler
from plugserve.core.contracts.weights import ModelSource
from plugserve.core.engine.acceptance import DraftPolicy
from plugserve.core.engine.engine import Engine
from plugserve.core.engine.engine_state import EngineLimits
from plugserve.core.engine.flight_recorder import make_flight_recorder
from plugserve.core.engine.memory_check import MemoryCheck, load_checked
from plugserve.core.engine.ranks.rank_group import RankGroup, end_this_process
from plugserve.core.engine.ranks.shared_runner import SharedRunner
from plugserve.core.engine.step_log import RecordedStepTimes
from plugserve.core.engine.step_time import StepTimeFit
from plugserve.core.engine.strategies import EngineStrategies
from plugserve.core.engine.structured_output import ConstraintCompiler
from plugserve.core.engine.watched_runner import WatchedRunner
from plugserve.core.errors import ConfigError
from plugserve.core.model_files.model_source import eos_token_ids, load_text_model
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.settings import Settings, default_of
from plugserve.core.wire.heartbeats import Pulse
from plugserve.core.wire.trace_file import HASHED_TOKENS, VERSION, TraceFacts

log = logging.getLogger(__name__)


class EngineBuilder:
    """Makes one engine. on_rank_end is called when another process that shares the model ends; flight_path is the file
    that its flight recorder makes, if it has one. Afterwards slots holds what fills each slot, and read_adapter reads a
    LoRA adapter's folder; it is None where none are served."""

    def __init__(
        self,
        settings: Settings,
        host: PluginHost,
        source: ModelSource,
        pulse: Pulse | None = None,
        on_rank_end: OnEnd = end_this_process,
        flight_path: Path | None = None,
    ) -> None:
        self._settings = settings
        self._flight_path = flight_path
        self._on_rank_end = on_rank_end
        self._shared: SharedRunner | None = None
        self._pulse = pulse if pulse is not None else Pulse.unwatched()
        self._host = host
        self._source = source
        self._strategies = EngineStrategies(settings, host, source, note_progress=self._pulse.note_progress)

    @property
    def slots(self) -> dict[str, str]:
        return self._strategies.slots

    @property
    def read_adapter(self) -> Callable[[Path], Any] | None:
        read = self._strategies.read_adapter
        return read if read is None or self._shared is None else self._shared.reader(read)

    def build(self) -> tuple[Engine, ModelRunner, RunnerInfo]:
        """Load the model and fill the slots. Raises UserError for what the user can correct."""
        strategies, settings = self._strategies, self._settings
        runner = self._make_runner()
        info = load_checked(runner, MemoryCheck(settings, self._host, self._source))
        if info.num_stages != settings.pipeline_parallel_size:
            raise ConfigError(
                f"--pipeline-parallel-size {settings.pipeline_parallel_size}: runner {strategies.slots['runner']!r} "
                "doesn't cut a model by layers; use 1"
            )
        draft_policy = self._draft_policy(info)
        if self._host.names("lora_managers") and self.read_adapter is None:
            raise ConfigError(f"runner {strategies.slots['runner']!r} serves no LoRA adapters; leave --enable-lora out")
        scheduler = strategies.make_scheduler(info)
        self._warn_of_pace(scheduler)
        self._warn_of_offload(info)
        prefix_cache = strategies.make_prefix_cache(info)
        self._log_host_memory(info, prefix_cache is not None)
        eos_ids = self._eos_ids(info.vocab_size)
        engine = Engine(
            runner=WatchedRunner(runner, info, self._pulse),
            info=info,
            scheduler=scheduler,
            scheduler_name=settings.scheduler,
            limits=EngineLimits(
                info.max_num_batched_tokens,
                settings.max_num_seqs,
                settings.max_num_queued_requests,
                self._num_adapter_slots(),
                settings.max_cpu_loras,
            ),
            eos_ids=eos_ids,
            prefix_cache=prefix_cache,
            cache_salt=self.cache_salt,
            compiler=ConstraintCompiler(
                self._read_tokenizer, info.vocab_size, eos_ids, closes_in_time=settings.close_bound_answers
            ),
            draft_policy=draft_policy,
            proposer_name=strategies.owner("draft_proposers", "draft proposer"),
            scheduler_plugin=strategies.owner("schedulers", "scheduler"),
            runner_plugin=strategies.owner("model_runners", "runner"),
            step_time=self._step_times(info),
            guard=self._host.guard,
            flight=make_flight_recorder(self._flight_path, settings, info, self._source),
        )
        if prefix_cache is not None:
            prefix_cache.count_from_zero()
        return engine, runner, info

    def _make_runner(self) -> ModelRunner:
        if self._settings.num_ranks == 1:
            if self._settings.executor not in (None, "mp"):
                log.warning(
                    "--distributed-executor-backend %s has no effect: one process runs the model",
                    self._settings.executor,
                )
            return self._strategies.make_runner()
        self._check_pipeline()
        group = RankGroup(self._settings, self._source, self._strategies.make_executor, self._pulse, self._on_rank_end)
        estimate = MemoryCheck(self._settings, self._host, self._source).ledger if group.is_pipeline else None
        self._shared = SharedRunner(self._strategies.make_runner(group.placement(0)), group, estimate)
        return self._shared

    def _check_pipeline(self) -> None:
        """Raises ConfigError for what a pipeline can't do."""
        num_stages, proposers = self._settings.pipeline_parallel_size, self._host.names("draft_proposers")
        if num_stages > 1 and proposers:
            raise ConfigError(
                f"--pipeline-parallel-size {num_stages} can't go with speculation ({proposers[0]}): its stages don't "
                "verify drafts; leave one of the two out"
            )

    def _num_adapter_slots(self) -> int:
        """0 where no adapters are served. One in a step is in host memory, too."""
        settings = self._settings
        if self.read_adapter is None:
            return 0
        if settings.max_loras > settings.max_cpu_loras:
            log.warning(
                "--max-loras %d is lowered to --max-cpu-loras %d: adapters of one step are in host memory, too",
                settings.max_loras,
                settings.max_cpu_loras,
            )
        return min(settings.max_loras, settings.max_cpu_loras)

    def _eos_ids(self, vocab_size: int) -> tuple[int, ...]:
        """The model's end-of-text ids without those above its number of logits, which show that its files don't
        match."""
        found = eos_token_ids(self._source)
        known = tuple(token_id for token_id in found if token_id < vocab_size)
        if known != found:
            stray = ", ".join(str(token_id) for token_id in found if token_id not in known)
            then = "" if known else "; answers end at max_tokens or a stop string alone"
            log.warning(
                "end-of-text ids are ignored model=%s ids=%s: the model has %d tokens; its config and weights may not "
                "belong together%s", self._source.name, stray, vocab_size, then,
            )  # fmt: skip
        return known

    def _log_host_memory(self, info: RunnerInfo, has_prefix_cache: bool) -> None:
        """Log one line about KV blocks in host memory, if there are any or --swap-space asks for them."""
        if info.num_host_slots:
            gib = info.num_host_slots * (info.kv_cache_bytes - info.draft_kv_bytes) / info.num_blocks / (1 << 30)
            whose = "preempted sequences and evicted prefixes" if has_prefix_cache else "preempted sequences"
            log.info("host memory blocks=%d gib=%.2f: keeps those of %s", info.num_host_slots, gib, whose)
        elif self._settings.swap_space:
            log.warning(
                "--swap-space %g has no effect: the model runner keeps no blocks there", self._settings.swap_space
            )

    def _step_times(self, info: RunnerInfo) -> StepTimeFit:
        settings = self._settings
        if settings.record_trace is None:
            return StepTimeFit()
        facts = TraceFacts(
            plugserve_trace=VERSION,
            model=self._source.name,
            scheduler=settings.scheduler,
            block_size=info.block_size,
            num_blocks=info.num_blocks,
            num_host_blocks=info.num_host_slots or None,
            max_num_seqs=settings.max_num_seqs,
            max_num_batched_tokens=info.max_num_batched_tokens,
            max_model_len=info.max_model_len,
            hash_tokens=HASHED_TOKENS,
        )
        return RecordedStepTimes(settings.record_trace, facts)

    def _warn_of_pace(self, scheduler: Scheduler) -> None:
        settings = self._settings
        wanted = {"--max-itl-ms": settings.max_itl_ms, "--scheduler-delay-factor": settings.scheduler_delay_factor}
        for flag, value in wanted.items():
            if value and not getattr(scheduler, "follows_pace", False):
                log.warning("%s %g has no effect: scheduler %r doesn't follow it", flag, value, settings.scheduler)

    def _warn_of_offload(self, info: RunnerInfo) -> None:
        gib = self._settings.cpu_offload_gb
        if gib and not info.offloaded_weight_bytes:
            is_on_host = info.device == "cpu"
            why = (
                "on a CPU all weights are in host memory" if is_on_host else "the model runner keeps them on its device"
            )
            log.warning("--cpu-offload-gb %g has no effect: %s", gib, why)

    def _draft_policy(self, info: RunnerInfo) -> DraftPolicy | None:
        """Raises ConfigError for a runner that was to verify drafts and can't."""
        names = self._host.names("draft_proposers")
        if not names:
            if self._settings.speculative_model is not None:
                raise ConfigError(
                    f"--speculative-model {self._settings.speculative_model} has no effect: no active plugin drafts; "
                    "leave out --no-plugin draft-model, or name another plugin that does"
                )
            if self._settings.num_speculative_tokens != default_of("num_speculative_tokens"):
                log.warning("--num-speculative-tokens has no effect without --speculative-model or --plugin ngram")
            return None
        if not info.max_num_drafts:
            raise ConfigError(
                f"runner {self.slots['runner']!r} verifies no drafts, so speculation ({names[0]}) has no effect: "
                "leave one of the two out"
            )
        return DraftPolicy(info.max_num_drafts, is_adaptive=self._settings.adaptive_speculation)

    @property
    def cache_salt(self) -> str:
        """The model's part of the salt of block hashes."""
        return str(self._source.path)

    def _read_tokenizer(self) -> str:
        return load_text_model(self._source).tokenizer.to_str()


def engine_info(info: RunnerInfo, slots: dict[str, str], load_seconds: float, cache_salt: str = "") -> EngineInfo:
    """The facts about a loaded engine for other processes. cache_salt is the model's part of the salt of block
    hashes."""
    prefix_salt = cache_salt if "prefix cache" in slots else ""
    return EngineInfo(**asdict(info), load_seconds=load_seconds, slots=slots, prefix_salt=prefix_salt)
