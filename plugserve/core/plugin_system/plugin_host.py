"""The active plugins of one process: slots, factories, options, hooks and report.

Every process loads the same selection and gets the same plugins in the same order. plugin_loading and plugin_activation
find and import them, plugin_guard calls them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from plugserve.core.contracts.requests import Identity, Refusal, RequestOutcome, RequestView
from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.errors import PluginError, did_you_mean
from plugserve.core.metrics.metric_store import MetricStore
from plugserve.core.metrics.plugin_registry import PluginRegistry
from plugserve.core.plugin_system.failure_policy import FailurePolicy
from plugserve.core.plugin_system.plugin_activation import AUTO, OPTIONAL_KINDS, SLOTS, Activation
from plugserve.core.plugin_system.plugin_guard import CallListener, PluginGuard
from plugserve.core.plugin_system.plugin_loading import KIND_WORDS, Installed, Plugin, discover
from plugserve.core.plugin_system.plugin_report import PluginReport, contents, report_installed
from plugserve.core.plugin_system.plugin_trace import is_tracing
from plugserve.core.settings.selection import Selection
from plugserve.core.settings.settings import Settings


@dataclass(frozen=True, slots=True)
class SlotFill:
    """The content of a slot: the strategy's name and its plugin. For `--attention auto`, name is "auto" and plugin
    lists the candidates, as the engine decides. An empty optional slot has the name "none"."""

    name: str
    plugin: str = ""
    source: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.source})" if self.source else self.name


class PluginHost:
    """Made by load. guard makes all calls of plugins. warnings are lines for the user, printed once by the command."""

    def __init__(
        self,
        plugins: Mapping[str, Plugin],
        installed: Mapping[str, list[Installed]],
        *,
        trace: bool,
        warnings: Collection[str] = (),
    ) -> None:
        self.plugins = dict(plugins)
        self.warnings = tuple(warnings)
        self._installed = installed
        self.guard = PluginGuard(list(self.plugins.values()), trace=trace)
        self.warnings += tuple(self.guard.warnings)

    @classmethod
    def load(cls, selection: Selection) -> PluginHost:
        """Load the selected plugins. Raises PluginError with one line for a broken one."""
        installed = discover()
        activation = Activation(selection, installed)
        activation.run()
        return cls(activation.plugins, installed, trace=is_tracing(), warnings=activation.warnings)

    # ------------------------------------------------ what is there

    @property
    def active_names(self) -> Collection[str]:
        """Active plugins in order of activation."""
        return list(self.plugins)

    @property
    def installed_names(self) -> Collection[str]:
        """All plugins that installed distributions register."""
        return list(self._installed)

    def names(self, kind: str) -> list[str]:
        """The strategies of a kind (a key of plugin_loading.PROVIDER_HOOKS) that active plugins provide, in order of
        preference: those of explicitly selected plugins before the default's."""
        return [name for plugin in self.plugins.values() for name in plugin.provides.get(kind, {})]

    def factory(self, kind: str, name: str) -> tuple[Callable[..., Any], str]:
        """The factory of a strategy, NAME or PLUGIN/NAME, and the name of the plugin that provides it."""
        plugin_name, _, strategy = name.rpartition("/")
        for plugin in self.plugins.values():
            if plugin_name in ("", plugin.name) and strategy in plugin.provides.get(kind, {}):
                return plugin.provides[kind][strategy], plugin.name
        near = did_you_mean(strategy, self.names(kind))
        raise PluginError(f"no active plugin provides the {KIND_WORDS[kind]} {name!r}.{near}")

    def slots(self, settings: Settings) -> dict[str, SlotFill]:
        """The content of each slot, for the start-up lines."""
        fills: dict[str, SlotFill] = {}
        for slot in SLOTS:
            wanted = getattr(settings, slot.setting)
            names = self.names(slot.kind) if wanted == AUTO else [wanted]
            owners = list(dict.fromkeys(self.factory(slot.kind, name)[1] for name in names))
            sources = ", ".join(dict.fromkeys(self.plugins[owner].source for owner in owners))
            label = f"auto: {' or '.join(names)}" if wanted == AUTO else wanted.rpartition("/")[2]
            fills[slot.setting] = SlotFill(label, ", ".join(owners), sources)
        if (executor := settings.executor) is not None:
            owner = self.factory("executors", executor)[1]
            fills["executor"] = SlotFill(executor.rpartition("/")[2], owner, self.plugins[owner].source)
        for kind in OPTIONAL_KINDS:
            for name in self.names(kind)[:1]:
                owner = self.factory(kind, name)[1]
                fills[KIND_WORDS[kind]] = SlotFill(name, owner, self.plugins[owner].source)
            fills.setdefault(KIND_WORDS[kind], SlotFill("none"))
        return fills

    def option_models(self) -> dict[str, type[BaseModel]]:
        """The options of active plugins that declare any."""
        return {plugin.name: plugin.options for plugin in self.plugins.values() if plugin.options}

    def options(self, plugin_name: str, settings: Settings) -> BaseModel | None:
        """A plugin's validated options, or None if it declares none."""
        model = self.plugins[plugin_name].options
        return settings.plugin_options(plugin_name, model) if model else None

    def report(self, inspect: bool = False) -> list[PluginReport]:
        """All plugins, active ones first. inspect imports the inactive ones, each in a child process."""
        active = [self._report_active(plugin) for plugin in self.plugins.values()]
        inactive = [
            report_installed(self._installed[name], inspect=inspect)
            for name in sorted(self._installed)
            if name not in self.plugins
        ]
        return active + inactive

    def _report_active(self, plugin: Plugin) -> PluginReport:
        held = contents(plugin)
        return PluginReport(
            plugin.name,
            plugin.distribution,
            plugin.version,
            "active",
            held.provides,
            held.hooks,
            held.options,
            seconds=sum((seconds for (name, _), seconds in self.seconds.items() if name == plugin.name), 0.0),
            num_errors=sum(count for (name, _), count in self.errors.items() if name == plugin.name),
            num_quarantines=sum(count for (name, _), count in self.quarantines.items() if name == plugin.name),
        )

    # ------------------------------------------------ calling hooks

    @property
    def errors(self) -> Counter[tuple[str, str]]:
        """The number of failures by (plugin, hook)."""
        return self.guard.errors

    @property
    def calls(self) -> Mapping[tuple[str, str], int]:
        """The number of calls of each (plugin, hook)."""
        return self.guard.calls

    @property
    def seconds(self) -> Mapping[tuple[str, str], float]:
        """Time spent in each (plugin, hook)."""
        return self.guard.seconds

    @property
    def quarantines(self) -> Counter[tuple[str, str]]:
        """The number of times that a plugin was left out or switched off, by the (plugin, hook) that failed."""
        return self.guard.quarantines

    def implements(self, hook_name: str) -> bool:
        """An active plugin implements the hook."""
        return self.guard.implements(hook_name)

    def watch(self, listener: CallListener) -> None:
        """Report every call to listener from now on."""
        self.guard.watch(listener)

    def note_failure(self, plugin: str, call: str, error: BaseException, policy: FailurePolicy) -> None:
        """A strategy failed; see PluginGuard.note_failure."""
        self.guard.note_failure(plugin, call, error, policy)

    def note_time(self, plugin: str, call: str, seconds: float) -> None:
        """Count the time of a strategy's call."""
        self.guard.note_time(plugin, call, seconds)

    def configure(self, settings: Settings, store: MetricStore | None = None) -> None:
        """Call plugserve_configure and plugserve_metrics of every plugin; an exception stops the start with one line.
        Once a process. Metrics are counted into store; without one, nothing shows them."""
        self.guard.start("plugserve_configure", config=settings.view())
        if self.implements("plugserve_metrics"):
            kept = store if store is not None else MetricStore()
            self.guard.start_each("plugserve_metrics", lambda plugin: {"metrics": PluginRegistry(plugin, kept)})

    def start(self, hook_name: str, **arguments: Any) -> None:
        """Call a start-up hook (plugserve_register_routes) of every plugin; an exception becomes a PluginError."""
        self.guard.start(hook_name, **arguments)

    def observe(self, hook_name: str, **arguments: Any) -> None:
        """Call a synchronous observing hook of every plugin; an exception is logged and counted."""
        self.guard.observe(hook_name, **arguments)

    async def observe_async(self, hook_name: str, **arguments: Any) -> None:
        """Call an observing request hook of every plugin, async or not; an exception is logged and counted."""
        await self.guard.observe_async(hook_name, **arguments)

    async def authorize(self, request: RequestView) -> Refusal | Identity | None:
        """The first plugin's refusal, else the first identity, or None; see PluginGuard.authorize."""
        return await self.guard.authorize(request)

    async def sampling_params(
        self, request: RequestView, params: SamplingParams, num_choices: int, num_prompts: int
    ) -> SamplingParams:
        """params as plugserve_sampling_params changed them; see PluginGuard.sampling_params."""
        return await self.guard.sampling_params(request, params, num_choices, num_prompts)

    async def request_ended(self, request: RequestView, outcome: RequestOutcome) -> None:
        """Call plugserve_request_ended, the last hook of a request for which authorize was called."""
        await self.guard.request_ended(request, outcome)

    async def request_received(self, request: RequestView) -> Mapping[str, Any] | None:
        """The body as plugins changed it, or None; see PluginGuard.request_received."""
        return await self.guard.request_received(request)
