"""Selects the active plugins, loads them, and determines which plugin fills each slot. Called once, when a process
starts.

Active are the defaults, those that --plugin names, and those that fill a slot, without those that --no-plugin names.
Slots: scheduler, attention and runner are required and keep their default unless they are named; the others
(OPTIONAL_KINDS) may be empty.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from plugserve.core.errors import PluginError, did_you_mean
from plugserve.core.plugin_system.api_level import old_level_warning
from plugserve.core.plugin_system.plugin_loading import KIND_WORDS, Installed, Plugin, load_file, load_installed
from plugserve.core.settings.old_names import RETIRED_PLUGINS
from plugserve.core.settings.selection import DEFAULT_PLUGINS, Selection, is_plugin_file

AUTO = "auto"
OWN_DISTRIBUTION = "plugserve"


@dataclass(frozen=True, slots=True)
class Slot:
    """A place that one strategy fills. default_name is its setting's default, default_plugins those behind it, the
    preferred one first."""

    setting: str
    kind: str
    default_name: str
    default_plugins: tuple[str, ...]

    @property
    def flag(self) -> str:
        return f"--{self.setting.replace('_', '-')}"


SLOTS = (
    Slot("scheduler", "schedulers", "fcfs", ("fcfs",)),
    Slot("attention", "attention_backends", AUTO, ("triton-paged", "torch-sdpa")),
    Slot("runner", "model_runners", AUTO, ("native-cpu", "torch")),
)
EXECUTOR = Slot("distributed_executor_backend", "executors", "mp", ("mp",))
"""Filled only for a model with several ranks."""

OPTIONAL_KINDS = ("prefix_caches", "lora_managers", "draft_proposers")


class Activation:
    """Loads the plugins of one selection. plugins holds the active ones by name, in order of activation; warnings are
    lines for the user."""

    def __init__(self, selection: Selection, installed: Mapping[str, list[Installed]]) -> None:
        self._selection = selection
        self._installed = installed
        self._had_torch = "torch" in sys.modules
        self.plugins: dict[str, Plugin] = {}
        self.warnings: list[str] = []

    def run(self) -> None:
        """Load all selected plugins. Raises PluginError with one line for the first fault."""
        self._check_installation()
        self._check_removals()
        for name in DEFAULT_PLUGINS:
            if not self._is_removed(name):
                self._activate_own(name)
        for name in self._selection.plugin:
            self._activate(name)
        for slot in SLOTS:
            self._fill(slot, getattr(self._selection, slot.setting))
        if self._selection.executor is not None:
            self._fill(EXECUTOR, self._selection.executor)
        self._check_clashes()
        self._check_optional_slots()

    # ------------------------------------------------ checks before loading

    def _check_installation(self) -> None:
        own = {one.name for found in self._installed.values() for one in found if one.distribution == OWN_DISTRIBUTION}
        if not own:
            raise PluginError(
                "plugserve is not installed in this environment, so that even its default plugins are missing; "
                "run `pip install -e .` in its checkout, or `make serve`"
            )
        slots = SLOTS if self._selection.executor is None else (*SLOTS, EXECUTOR)
        defaults = [*DEFAULT_PLUGINS, *(name for slot in slots for name in slot.default_plugins)]
        missing = [name for name in defaults if name not in own]
        if missing:
            raise PluginError(
                f"the installed plugserve doesn't register its default plugin {missing[0]!r}: the installation is out "
                "of date; run `pip install -e .` in its checkout again"
            )

    def _check_removals(self) -> None:
        wanted = {_plugin_name(name): name for name in self._selection.plugin}
        for name in self._selection.no_plugin:
            if name in wanted:
                raise PluginError(f"--plugin {wanted[name]} and --no-plugin {name} contradict each other; drop one")
            if name in RETIRED_PLUGINS:
                owner = RETIRED_PLUGINS[name]
                self.warnings.append(f"--no-plugin {name} has no effect: plugin {owner!r} provides what {name!r} did")
            elif name not in self._installed:
                raise PluginError(f"--no-plugin {name}: {self._not_installed(name)}")

    def _is_removed(self, name: str) -> bool:
        return name in self._selection.no_plugin

    # ------------------------------------------------ loading

    def _activate(self, name: str) -> None:
        """Load an installed plugin by name or a one-file plugin by path, once."""
        if is_plugin_file(name):
            self._add(load_file(name))
        elif name not in self.plugins:
            self._add(load_installed(self._only(name)))

    def _activate_own(self, name: str) -> None:
        """Load one of plugserve's own plugins, even if another distribution registers its name."""
        if name not in self.plugins:
            own = [one for one in self._installed[name] if one.distribution == OWN_DISTRIBUTION]
            self._add(load_installed(own[0]))

    def _add(self, plugin: Plugin) -> None:
        other = self.plugins.get(plugin.name)
        if other is not None:
            raise PluginError(
                f"two active plugins are named {plugin.name!r}: {other.source} and {plugin.source}; rename one, or "
                "select only one of them"
            )
        self.plugins[plugin.name] = plugin
        if warning := old_level_warning(plugin.level, str(plugin)):
            self.warnings.append(warning)
        if "torch" in sys.modules and not self._had_torch:
            self._had_torch = True
            self.warnings.append(
                f"{plugin} imports torch at its top: the server, which doesn't need it, now takes seconds and "
                "hundreds of MiB more; import it inside the factory"
            )

    def _only(self, name: str) -> Installed:
        """The one installed plugin of that name."""
        found = self._installed.get(name)
        if not found:
            raise PluginError(
                f"--plugin {name}: {self._not_installed(name)}; install the package that provides it with pip, or "
                "give the path of a .py file"
            )
        if len(found) > 1:
            owners = " and ".join(f"{one.distribution} {one.version}" for one in found)
            raise PluginError(f"plugin name {name!r} is registered by {owners}; uninstall one of them")
        return found[0]

    def _not_installed(self, name: str) -> str:
        near = did_you_mean(name, self._installed)
        return f"no installed plugin is named {name!r}.{near} Installed: {', '.join(sorted(self._installed))}"

    # ------------------------------------------------ slots

    def _fill(self, slot: Slot, wanted: str) -> None:
        """Activate a plugin that provides the strategy that the slot's setting names."""
        if wanted == slot.default_name:
            self._fill_with_default(slot)
            return
        plugin, slash, name = wanted.rpartition("/")
        if not name.strip() or (slash and not plugin.strip()):
            raise PluginError(f"{slot.flag} must be NAME or PLUGIN/NAME, got {wanted!r}")
        if slash:
            if plugin not in self.plugins:
                self._activate_for(slot, wanted, plugin)
            self._must_provide(slot, wanted, plugin, name)
        elif not self._providers(slot.kind, wanted):
            self._look_up(slot, wanted)

    def _fill_with_default(self, slot: Slot) -> None:
        self._activate_defaults(slot)
        name = None if slot.default_name == AUTO else slot.default_name
        if not self._providers(slot.kind, name):
            removed = " ".join(f"--no-plugin {plugin}" for plugin in slot.default_plugins)
            raise PluginError(
                f"{removed} leaves the {slot.setting} slot empty; fill it with another one: {slot.flag} NAME"
            )

    def _activate_defaults(self, slot: Slot) -> None:
        for plugin in slot.default_plugins:
            if not self._is_removed(plugin):
                self._activate_own(plugin)

    def _look_up(self, slot: Slot, wanted: str) -> None:
        """Activate the installed plugin of that name; failing that, see whether the default plugin provides it."""
        if wanted in self.plugins:
            self._must_provide(slot, wanted, wanted, wanted)
        elif wanted in self._installed:
            self._activate_for(slot, wanted, wanted)
            self._must_provide(slot, wanted, wanted, wanted)
        else:
            self._activate_defaults(slot)
            if not self._providers(slot.kind, wanted):
                raise self._unknown_strategy(slot, wanted)

    def _activate_for(self, slot: Slot, wanted: str, plugin: str) -> None:
        if self._is_removed(plugin):
            raise PluginError(f"{slot.flag} {wanted} needs plugin {plugin!r}, which --no-plugin turns off; drop one")
        if plugin not in self._installed:
            raise self._unknown_strategy(slot, wanted)
        self._activate(plugin)

    def _must_provide(self, slot: Slot, wanted: str, plugin: str, name: str) -> None:
        provided = self.plugins[plugin].provides.get(slot.kind, {})
        if name not in provided:
            word = KIND_WORDS[slot.kind]
            ways = " or ".join(f"{slot.flag} {plugin}/{one}" for one in provided)
            advice = f"; use {ways}" if provided else f", nor any other {word}"
            raise PluginError(f"{slot.flag} {wanted}: {self.plugins[plugin]} provides no {word} {name!r}{advice}")

    def _unknown_strategy(self, slot: Slot, wanted: str) -> PluginError:
        word = KIND_WORDS[slot.kind]
        provided = [name for plugin in self.plugins.values() for name in plugin.provides.get(slot.kind, {})]
        known = sorted({*provided, slot.default_name})
        return PluginError(
            f"{slot.flag} {wanted}: no {word} is named {wanted!r}."
            f"{did_you_mean(wanted, [*known, *self._installed])} Active plugins provide: {', '.join(known)}; "
            "an installed plugin is named by its own name or as PLUGIN/NAME (`plugserve plugins` lists them), "
            "another one has to be installed with pip"
        )

    def _providers(self, kind: str, name: str | None) -> list[Plugin]:
        """Active plugins that provide a strategy of that kind and name (None: any name)."""
        return [
            plugin
            for plugin in self.plugins.values()
            if (name in plugin.provides.get(kind, {}) if name else plugin.provides.get(kind))
        ]

    # ------------------------------------------------ checks after loading

    def _check_clashes(self) -> None:
        for kind, word in KIND_WORDS.items():
            owners: dict[str, Plugin] = {}
            for plugin in self.plugins.values():
                for name in plugin.provides.get(kind, {}):
                    other = owners.setdefault(name, plugin)
                    if other is not plugin:
                        raise PluginError(
                            f"{other} and {plugin} both provide the {word} {name!r}; turn one off: --no-plugin "
                            f"{plugin.name} keeps that of {other.name}, and leaving {other.name} out keeps that of "
                            f"{plugin.name}"
                        )

    def _check_optional_slots(self) -> None:
        for kind in OPTIONAL_KINDS:
            providers = self._providers(kind, None)
            if len(providers) > 1:
                names = " and ".join(str(plugin) for plugin in providers)
                raise PluginError(f"{names} both provide a {KIND_WORDS[kind]}, and only one can be active; drop one")
            if providers and len(providers[0].provides[kind]) > 1:
                names = ", ".join(providers[0].provides[kind])
                raise PluginError(f"{providers[0]} provides several {KIND_WORDS[kind]}s ({names}); it may provide one")


def _plugin_name(name: str) -> str:
    """The name that a plugin will have: a one-file plugin is named after its file."""
    return Path(name).stem.replace("_", "-") if is_plugin_file(name) else name
