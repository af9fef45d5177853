"""The strategies of one engine: made by the factories of active plugins, each with a context of its kind."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from plugserve.core.contracts.attention import AttentionBackend, AttentionSpec
from plugserve.core.contracts.drafting import DraftProposer, DraftRunner
from plugserve.core.contracts.encoding import EncoderRunner
from plugserve.core.contracts.executor import Executor, OnEnd, OnMessage
from plugserve.core.contracts.factories import (
    AttentionContext,
    DraftProposerContext,
    ExecutorContext,
    FactoryContext,
    LoraContext,
    PrefixCacheContext,
    RunnerContext,
    SchedulerContext,
    WeightFormatContext,
)
from plugserve.core.contracts.lora import LoraManager, LoraSpec
from plugserve.core.contracts.parallel import ALONE, RankPlacement
from plugserve.core.contracts.prefix_cache import PrefixCache
from plugserve.core.contracts.runner import ModelRunner, RunnerInfo
from plugserve.core.contracts.scheduling import Scheduler
from plugserve.core.contracts.weights import ModelSource, WeightFormat
from plugserve.core.engine.guarded_lora_manager import GuardedLoraManager
from plugserve.core.engine.kv.guarded_prefix_cache import GuardedPrefixCache
from plugserve.core.errors import ConfigError, NotCoveredError, PluginError, one_line
from plugserve.core.plugin_system.failure_policy import is_shutdown
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.plugin_system.strategy_factory import make_strategy
from plugserve.core.settings.settings import Settings
from plugserve.core.wire.heartbeats import Pulse

log = logging.getLogger(__name__)
Context = TypeVar("Context", bound=FactoryContext)

AUTOMATIC_RUNNERS = ("native-cpu", "torch")
"""What --runner auto takes, the preferred one first; the last one takes what the others don't cover."""


class EngineStrategies:
    """Afterwards slots holds what fills each slot, and read_adapter reads a LoRA adapter's folder; it is None where
    none are served. With is_quiet the choice of attention is not logged. note_progress takes the share of the model
    that a runner has read."""

    def __init__(
        self,
        settings: Settings,
        host: PluginHost,
        source: ModelSource,
        *,
        is_quiet: bool = False,
        note_progress: Callable[[float], None] | None = None,
    ) -> None:
        self._settings = settings
        self._level = logging.DEBUG if is_quiet else logging.INFO
        self._view = settings.view()
        self._host = host
        self._source = source
        self._note_progress = note_progress if note_progress is not None else Pulse.unwatched().note_progress
        self.slots: dict[str, str] = {}
        self.read_adapter: Callable[[Path], Any] | None = None

    def make_runner(self, placement: RankPlacement = ALONE) -> ModelRunner:
        """Make the runner, not loaded yet, of one of the ranks that share the model. Raises ConfigError for --attention
        with a runner that has its own, and for ranks with a runner that doesn't share."""
        runner: ModelRunner = self._made_runner("runner", placement)
        name = self.slots["runner"]
        if runner.owns_attention and self._settings.attention != "auto":
            raise ConfigError(
                f"--attention {self._settings.attention} has no effect: runner {name!r} brings its own "
                "attention; leave one of the two out"
            )
        if placement.num_ranks > 1 and not getattr(runner, "shares_models", False):
            raise ConfigError(
                f"--tensor-parallel-size and --pipeline-parallel-size: runner {name!r} runs a model on one device; "
                "use 1"
            )
        return runner

    def make_executor(self, on_message: OnMessage, on_end: OnEnd) -> Executor:
        """What runs the other ranks of a model with several."""
        name = self._settings.executor
        assert name is not None
        facts = {"model": self._source.name, "source": self._source, "num_ranks": self._settings.num_ranks}
        executor: Executor = self._make(
            "executors", name, "executor", ExecutorContext, **facts, on_message=on_message, on_end=on_end
        )
        return executor

    def make_encoder_runner(self) -> EncoderRunner:
        """Make the runner of an encoder, not loaded yet. Raises PluginError for a runner that is for decoders only."""
        runner: EncoderRunner = self._made_runner("encoder runner")
        return runner

    def _made_runner(self, contract: str, placement: RankPlacement = ALONE) -> Any:
        """The runner that --runner names; with auto the first that covers model and settings."""
        if self._settings.runner != "auto":
            return self._runner_named(self._settings.runner, contract, placement)
        *preferred, last = self._automatic_runners(placement)
        for name in preferred:
            try:
                return self._runner_named(name, contract, placement)
            except NotCoveredError as error:
                log.log(self._level, "runner auto: %s", error)
        return self._runner_named(last, contract, placement)

    def _automatic_runners(self, placement: RankPlacement) -> list[str]:
        """Names in order of preference."""
        names = [name for name in AUTOMATIC_RUNNERS if name in self._host.names("model_runners")]
        if placement.num_ranks > 1 or self._settings.attention != "auto":
            names = names[-1:]  # which shares models, and takes attention backends
        return names or self._host.names("model_runners")

    def _runner_named(self, name: str, contract: str, placement: RankPlacement) -> Any:
        factory, plugin = self._host.factory("model_runners", name)
        runner = make_strategy(plugin, contract, name, partial(factory, self._runner_context(plugin, placement)))
        self.slots["runner"] = name
        return runner

    def _runner_context(self, plugin: str, placement: RankPlacement) -> RunnerContext:
        """The context of plugin's runner factory, with the architectures and weight formats of active plugins."""
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
            note_progress=self._note_progress,
            placement=placement,
        )

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
            log.log(self._level, "attention backend refused name=%s reason=%s", name, reason)
            refusals.append(f"{name}: {reason}")
        raise ConfigError(f"no attention backend can serve this model ({'; '.join(refusals)})")

    def make_scheduler(self, info: RunnerInfo) -> Scheduler:
        name = self._settings.scheduler
        scheduler: Scheduler = self._make("schedulers", name, "scheduler", SchedulerContext, **self._facts(info))
        return scheduler

    def make_prefix_cache(self, info: RunnerInfo) -> GuardedPrefixCache | None:
        """None where no plugin offers one."""
        names = self._host.names("prefix_caches")
        if not names:
            return None
        made: PrefixCache = self._make(
            "prefix_caches", names[0], "prefix cache", PrefixCacheContext, **self._facts(info)
        )
        return GuardedPrefixCache(made, self.owner("prefix_caches", "prefix cache"), self._host.guard)

    def _facts(self, info: RunnerInfo) -> dict[str, Any]:
        """The fields of scheduler and prefix cache contexts besides options and config."""
        return {
            "device": info.device,
            "dtype": info.dtype,
            "block_size": self._settings.block_size,
            "max_model_len": info.max_model_len,
        }

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

    def _make_lora_manager(self, spec: LoraSpec) -> LoraManager:
        name = self._host.names("lora_managers")[0]
        made: LoraManager = self._make("lora_managers", name, "LoRA manager", LoraContext, lora_spec=spec)
        manager = GuardedLoraManager(made, self.owner("lora_managers", "LoRA manager"), self._host.guard)
        if not manager.graph_safe and spec.device != "cpu":
            log.info("steps with LoRA requests run eagerly, without CUDA graphs name=%s", name)
        self.read_adapter = manager.read
        return manager

    def owner(self, kind: str, slot: str) -> str:
        """The plugin that fills a slot, "" for an empty one."""
        name = self.slots.get(slot)
        return self._host.factory(kind, name)[1] if name else ""

    def _make(self, kind: str, name: str, slot: str, context: type[FactoryContext], **facts: Any) -> Any:
        """Call the factory of a strategy; its error names the plugin."""
        factory, plugin = self._host.factory(kind, name)
        made = make_strategy(plugin, slot, name, partial(factory, self._context(plugin, context, **facts)))
        self.slots[slot] = name
        return made

    def _context(self, plugin: str, kind: type[Context], **facts: Any) -> Context:
        return kind(options=self._host.options(plugin, self._settings), config=self._view, **facts)
