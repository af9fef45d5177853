"""Builds an engine from settings, plugins and a model.

Imports no torch by itself: the runner's factory brings what it needs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from msgspec.structs import asdict

from plugserve.core.contracts.attention import AttentionBackend, AttentionSpec
from plugserve.core.contracts.engine_facts import EngineInfo
from plugserve.core.contracts.factories import (
    AttentionContext,
    DraftProposerContext,
    FactoryContext,
    LoraContext,
    PrefixCacheContext,
    RunnerContext,
    SchedulerContext,
    WeightFormatContext,
)
from plugserve.core.contracts.lora import LoraManager, LoraSpec
from plugserve.core.contracts.prefix_cache import PrefixCache
from plugserve.core.contracts.runner import ModelRunner, RunnerInfo
from plugserve.core.contracts.scheduling import Scheduler
from plugserve.core.contracts.speculation import DraftProposer, DraftRunner
from plugserve.core.contracts.weights import ModelSource, WeightFormat
from plugserve.core.engine.acceptance import DraftPolicy
from plugserve.core.engine.engine import Engine
from plugserve.core.engine.engine_state import EngineLimits
from plugserve.core.engine.kv.guarded_prefix_cache import GuardedPrefixCache
from plugserve.core.engine.step_log import RecordedStepTimes
from plugserve.core.engine.step_time import StepTimeFit
from plugserve.core.engine.structured_output import ConstraintCompiler
from plugserve.core.engine.watched_runner import WatchedRunner
from plugserve.core.errors import ConfigError, PluginError, one_line
from plugserve.core.model_files.model_source import eos_token_ids, load_text_model
from plugserve.core.plugin_system.failure_policy import is_shutdown
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.plugin_system.strategy_factory import make_strategy
from plugserve.core.settings.settings import Settings, default_of
from plugserve.core.wire.heartbeats import Pulse
from plugserve.core.wire.trace_file import HASHED_TOKENS, VERSION, TraceFacts

log = logging.getLogger(__name__)
Context = TypeVar("Context", bound=FactoryContext)


class EngineBuilder:
    """Makes one engine. Afterwards slots says what fills each slot, and read_adapter reads a LoRA adapter's folder; it
    is None where none are served."""

    def __init__(self, settings: Settings, host: PluginHost, source: ModelSource, pulse: Pulse | None = None) -> None:
        self._settings = settings
        self._view = settings.view()
        self._pulse = pulse if pulse is not None else Pulse.unwatched()
        self._host = host
        self._source = source
        self.slots: dict[str, str] = {}
        self.read_adapter: Callable[[Path], Any] | None = None

    def build(self) -> tuple[Engine, ModelRunner, RunnerInfo]:
        """Load the model and fill the slots. Raises UserError for what the user can correct."""
        runner_name = self._settings.runner
        factory, plugin = self._host.factory("model_runners", runner_name)
        make = partial(factory, self._runner_context(plugin))
        runner: ModelRunner = make_strategy(plugin, "runner", runner_name, make)
        self.slots["runner"] = runner_name
        if runner.owns_attention and self._settings.attention != "auto":
            raise ConfigError(
                f"--attention {self._settings.attention} has no effect: runner {runner_name!r} brings its own "
                "attention; leave one of the two out"
            )
        info = runner.load()
        draft_policy = self._draft_policy(info)
        if self._host.names("lora_managers") and self.read_adapter is None:
            raise ConfigError(f"runner {runner_name!r} serves no LoRA adapters; leave --enable-lora out")
        facts = self._cache_facts(info)
        scheduler = self._make("schedulers", self._settings.scheduler, "scheduler", SchedulerContext, **facts)
        self._warn_of_pace(scheduler)
        prefix_caches = self._host.names("prefix_caches")
        prefix_cache = self._make_prefix_cache(facts) if prefix_caches else None
        self._say_tier(info, bool(prefix_caches))
        eos_ids = eos_token_ids(self._source)
        engine = Engine(
            runner=WatchedRunner(runner, info, self._pulse),
            info=info,
            scheduler=scheduler,
            scheduler_name=self._settings.scheduler,
            limits=EngineLimits(
                info.max_num_batched_tokens,
                self._settings.max_num_seqs,
                self._settings.max_num_queued_requests,
                self._settings.max_loras if self.read_adapter is not None else 0,
            ),
            eos_ids=eos_ids,
            prefix_cache=prefix_cache,
            cache_salt=self.cache_salt,
            compiler=ConstraintCompiler(
                self._read_tokenizer, info.vocab_size, eos_ids, closes_in_time=self._settings.close_bound_answers
            ),
            draft_policy=draft_policy,
            proposer_name=self._owner("draft_proposers", "draft proposer"),
            scheduler_plugin=self._owner("schedulers", "scheduler"),
            runner_plugin=self._owner("model_runners", "runner"),
            step_time=self._step_times(info),
            guard=self._host.guard,
        )
        if prefix_cache is not None:
            prefix_cache.count_from_zero()
        return engine, runner, info

    def _cache_facts(self, info: RunnerInfo) -> dict[str, Any]:
        """What contexts of schedulers and prefix caches hold beside options and config."""
        return {
            "device": info.device,
            "dtype": info.dtype,
            "block_size": self._settings.block_size,
            "max_model_len": info.max_model_len,
        }

    def _make_prefix_cache(self, facts: dict[str, Any]) -> GuardedPrefixCache:
        name = self._host.names("prefix_caches")[0]
        made: PrefixCache = self._make("prefix_caches", name, "prefix cache", PrefixCacheContext, **facts)
        return GuardedPrefixCache(made, self._owner("prefix_caches", "prefix cache"), self._host.guard)

    def _owner(self, kind: str, slot: str) -> str:
        """The plugin that fills a slot, "" for an empty one."""
        name = self.slots.get(slot)
        return self._host.factory(kind, name)[1] if name else ""

    def _say_tier(self, info: RunnerInfo, has_prefix_cache: bool) -> None:
        """One line about host memory for KV, where there is something to say."""
        if has_prefix_cache and info.num_host_slots:
            log.info("host tier blocks=%d: evicted prefixes are kept in host memory", info.num_host_slots)
        elif self._settings.swap_space:
            why = "the model runner keeps no blocks there" if has_prefix_cache else "only a prefix cache uses it"
            log.warning("--swap-space %g has no effect: %s", self._settings.swap_space, why)

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

    def _make_proposer(
        self,
        *,
        spec: AttentionSpec,
        max_model_len: int,
        build_runner: Callable[[str], DraftRunner],
        reserve_kv: Callable[[int], None],
    ) -> DraftProposer:
        """The active draft proposer, made for a runner that offers build_runner and reserve_kv."""
        proposer: DraftProposer = self._make(
            "draft_proposers",
            self._host.names("draft_proposers")[0],
            "draft proposer",
            DraftProposerContext,
            spec=spec,
            block_size=self._settings.block_size,
            max_model_len=max_model_len,
            build_runner=build_runner,
            reserve_kv=reserve_kv,
        )
        return proposer

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
                f"runner {self._settings.runner!r} verifies no drafts, so speculation ({names[0]}) has no effect: "
                "leave one of the two out"
            )
        return DraftPolicy(info.max_num_drafts, is_adaptive=self._settings.adaptive_speculation)

    @property
    def cache_salt(self) -> str:
        """The model's part of the salt of block hashes."""
        return str(self._source.path)

    def _read_tokenizer(self) -> str:
        return load_text_model(self._source).tokenizer.to_str()

    def _context(self, plugin: str, kind: type[Context], **facts: Any) -> Context:
        return kind(options=self._host.options(plugin, self._settings), config=self._view, **facts)

    def _runner_context(self, plugin: str) -> RunnerContext:
        """With all that active plugins know of models."""
        formats: dict[str, WeightFormat] = {}
        for name in self._host.names("weight_formats"):
            factory, owner = self._host.factory("weight_formats", name)
            make = partial(factory, self._context(owner, WeightFormatContext))
            formats[name] = make_strategy(owner, "weight format", name, make)
        return self._context(
            plugin,
            RunnerContext,
            source=self._source,
            choose_attention=self._choose_attention,
            block_size=self._settings.block_size,
            architectures={
                name: self._host.factory("architectures", name)[0] for name in self._host.names("architectures")
            },
            weight_formats=formats,
            make_proposer=self._make_proposer if self._host.names("draft_proposers") else None,
            make_lora_manager=self._make_lora_manager if self._host.names("lora_managers") else None,
        )

    def _make_lora_manager(self, spec: LoraSpec) -> LoraManager:
        name = self._host.names("lora_managers")[0]
        manager: LoraManager = self._make("lora_managers", name, "LoRA manager", LoraContext, lora_spec=spec)
        if not manager.graph_safe and spec.device != "cpu":
            log.info("steps with LoRA requests run eagerly, without CUDA graphs name=%s", name)
        self.read_adapter = manager.read
        return manager

    def _make(self, kind: str, name: str, slot: str, context: type[FactoryContext], **facts: Any) -> Any:
        """Call the factory of a strategy; what it raises names its plugin."""
        factory, plugin = self._host.factory(kind, name)
        made = make_strategy(plugin, slot, name, partial(factory, self._context(plugin, context, **facts)))
        self.slots[slot] = name
        return made

    def _choose_attention(self, spec: AttentionSpec) -> AttentionBackend:
        """The backend that --attention names, or the first candidate that doesn't refuse spec."""
        wanted = self._settings.attention
        refusals = []
        for name in self._host.names("attention_backends") if wanted == "auto" else [wanted]:
            factory, plugin = self._host.factory("attention_backends", name)
            context = self._context(plugin, AttentionContext, spec=spec, block_size=self._settings.block_size)
            backend: AttentionBackend = make_strategy(plugin, "attention", name, partial(factory, context))
            try:
                reason = backend.refusal(spec)
            except BaseException as error:
                if is_shutdown(error):
                    raise
                raise PluginError(
                    f"plugin {plugin!r}: attention {name!r} failed in refusal: {one_line(error)}"
                ) from error
            if reason is None:
                self.slots["attention"] = name
                return backend
            log.info("attention backend refused name=%s reason=%s", name, reason)
            refusals.append(f"{name}: {reason}")
        raise ConfigError(f"no attention backend can serve this model ({'; '.join(refusals)})")


def engine_info(info: RunnerInfo, slots: dict[str, str], load_seconds: float, cache_salt: str = "") -> EngineInfo:
    """What a loaded engine reports to other processes. cache_salt is the model's part of the salt of block hashes."""
    prefix_salt = cache_salt if "prefix cache" in slots else ""
    return EngineInfo(**asdict(info), load_seconds=load_seconds, slots=slots, prefix_salt=prefix_salt)
