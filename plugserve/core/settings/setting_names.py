"""Resolves names of settings: flags, other names, plugin options. setting_hints has the hints for unknown names."""

from __future__ import annotations

import types
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from plugserve.core.errors import ConfigError, did_you_mean
from plugserve.core.settings.old_names import OLD_NAMES
from plugserve.core.settings.setting_hints import flag_hint, name_hint
from plugserve.core.settings.settings import Settings, default_of, setting_facts
from plugserve.core.settings.vllm_names.vllm_name import VllmName
from plugserve.core.settings.vllm_names.vllm_settings import SHORT_FLAGS, VLLM_SETTINGS

Kind = Literal["flag", "list", "value"]
OptionModels = Mapping[str, type[BaseModel]]


@dataclass(frozen=True, slots=True)
class Name:
    """A known name, resolved. plugin is None for plugserve's own settings. kind: "flag" takes no value on the command
    XX takes all words up to the next one."""

    setting: str
    kind: Kind
    plugin: str | None = None
    inverted: bool = False
    old_name_of: str | None = None
    takes_many: bool = False
    is_none_by_default: bool = False
    empty_types: tuple[type, ...] = ()
    vllm: VllmName | None = None

    def takes_empty(self, value: Any) -> bool:
        """True where an empty text, list or table is a value of its own."""
        return isinstance(value, self.empty_types)

    @property
    def key(self) -> str:
        """The setting's name in Given.places and in messages."""
        return f"{self.plugin}.{self.setting}" if self.plugin else self.setting


def flag(name: str) -> str:
    """A setting's or option's flag."""
    return "--" + name.replace("_", "-")


def canonical(plugin: str) -> str:
    """A plugin's name as it is compared: prefix_cache in an environment variable is prefix-cache."""
    return plugin.lower().replace("_", "-")


@dataclass(slots=True)
class KnownNames:
    """The names that can be used now: settings, and the options of active plugins.

    installed are the names of all installed plugins, for the error message. Lenient ones (before plugins are loaded)
    return None for an unknown name; strict ones raise ConfigError.
    """

    options: OptionModels = field(default_factory=dict)
    active: Collection[str] = ()
    installed: Collection[str] = ()
    is_strict: bool = True

    def find(self, name: str, spelt: str, where: str) -> Name | None:
        """The setting that name (with underscores) means. spelt and where are for the error message."""
        if known := self._own(name):
            return known
        if self.is_strict:
            raise ConfigError(f"unknown setting {spelt!r} {where}.{name_hint(name, spelt)}")
        return None

    def find_flag(self, spelt: str) -> tuple[Name, bool] | None:
        """The setting that a flag means, and its value where it takes none (False for --no-...)."""
        name = spelt.removeprefix("--").replace("-", "_")
        if not spelt.startswith("--"):
            name = SHORT_FLAGS.get(spelt, "")
        if known := self._own(name) or self._option_flag(spelt[2:]):
            if not spelt.startswith("--") and known.vllm is None:
                known = replace(known, old_name_of=known.setting)
            return known, not known.inverted
        if name.startswith("no_"):
            known = self._own(name[3:]) or self._option_flag(spelt[5:])
            if known and known.kind == "flag":
                return known, known.inverted
        if "." in name and self.is_strict:
            plugin, _, option = spelt[2:].removeprefix("no-").rpartition(".")
            raise self.option_error(plugin, option.replace("-", "_"), spelt, "on the command line")
        if self.is_strict:
            raise ConfigError(f"unknown setting {spelt!r} on the command line.{flag_hint(spelt)}")
        return None

    def find_json(self, spelt: str) -> tuple[Name, list[str]] | None:
        """The setting and the keys that --NAME.KEY.KEY means, for a setting whose value is a JSON object."""
        base, *keys = spelt.split(".")
        known = self._own(base[2:].replace("-", "_") if base.startswith("--") else SHORT_FLAGS.get(base, ""))
        if known is None or not all(keys):
            return None
        is_json = known.vllm.is_json if known.vllm else _holds_table(Settings.model_fields[known.setting].annotation)
        if not is_json:
            return None
        return known, [key.replace("-", "_") for key in keys] if known.vllm else keys

    def find_option(self, plugin: str, option: str, spelt: str, where: str) -> Name | None:
        """The option of an active plugin."""
        if known := self._option(plugin, option):
            return known
        if self.is_strict:
            raise self.option_error(plugin, option, spelt, where)
        return None

    def option_error(self, plugin: str, option: str, spelt: str, where: str) -> ConfigError:
        """Why there is no such option: no such plugin, not active, no options at all, or another spelling."""
        name = canonical(plugin)
        active = {canonical(known): known for known in self.active}
        if name in active:
            model = self.options.get(active[name])
            if model is None:
                return ConfigError(f"{spelt!r} {where}: plugin {active[name]!r} has no options")
            known = option_fields(model)
            return ConfigError(
                f"unknown option {option!r} of plugin {active[name]!r} ({spelt} {where}).{did_you_mean(option, known)}"
            )
        for known_name in self.installed:
            if canonical(known_name) == name:
                return ConfigError(
                    f"{spelt!r} {where}: plugin {known_name!r} is installed but not active; activate it with "
                    f"--plugin {known_name}, or by naming it in a slot (--scheduler, --attention, --runner)"
                )
        near = did_you_mean(name, [*self.active, *self.installed])
        return ConfigError(
            f"{spelt!r} {where}: no installed plugin is named {plugin!r}.{near} `plugserve plugins` lists them"
        )

    def _own(self, name: str) -> Name | None:
        old = OLD_NAMES.get(name)
        setting = old.new if old else name
        if setting not in setting_facts():
            return _vllm_name(name)
        kind = kind_of(Settings.model_fields[setting].annotation)
        facts = setting_facts()[setting]
        return Name(
            setting,
            kind,
            inverted=bool(old and old.inverted),
            old_name_of=setting if old else None,
            takes_many=facts.takes_many,
            is_none_by_default=default_of(setting) is None,
            empty_types=(list,) * (kind == "list") + (str,) * facts.is_secret,
        )

    def _option_flag(self, text: str) -> Name | None:
        plugin, dot, option = text.rpartition(".")
        return self._option(plugin, option.replace("-", "_")) if dot else None

    def _option(self, plugin: str, option: str) -> Name | None:
        for known, model in self.options.items():
            if canonical(known) == canonical(plugin) and option in option_fields(model):
                annotation = option_fields(model)[option].annotation
                return Name(option, kind_of(annotation), plugin=known, empty_types=_empty_types(annotation))
        return None


def _vllm_name(name: str) -> Name | None:
    vllm = VLLM_SETTINGS.get(name)
    if vllm is None:
        return None
    return Name(name, vllm.kind, takes_many=vllm.takes_many, is_none_by_default=True, vllm=vllm)


def option_fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """A plugin's options by the name that its model reads them under."""
    return {info.alias or name: info for name, info in model.model_fields.items()}


def kind_of(annotation: Any) -> Kind:
    """How a value of this type is given on the command line."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return kind_of(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        kinds = {kind_of(part) for part in typing.get_args(annotation) if part is not type(None)}
        return kinds.pop() if len(kinds) == 1 else "value"
    if annotation is bool:
        return "flag"
    if (origin or annotation) in (list, tuple, set, frozenset, Sequence):
        return "list"
    return "value"


def _empty_types(annotation: Any) -> tuple[type, ...]:
    """Those of text, list and table that a value of this type may be."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated or origin in (typing.Union, types.UnionType):
        return tuple(found for part in typing.get_args(annotation) for found in _empty_types(part))
    if annotation is Any:
        return (str, list, dict)
    if annotation in (str, SecretStr):
        return (str,)
    if kind_of(annotation) == "list":
        return (list,)
    return (dict,) if (origin or annotation) is dict or is_model(annotation) else ()


def _holds_table(annotation: Any) -> bool:
    return dict in _empty_types(annotation)


def is_model(annotation: Any) -> bool:
    """True for a class of pydantic models."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
