"""All settings of a process as one read-only object. Each setting is declared once, in the *_settings.py of its group.

Flags, config-file keys, environment variables, help (settings_docs) and docs/configuration.md are made from the
declarations; settings_reader reads the values.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

from plugserve.core.contracts.settings_view import SettingsView, readable_settings
from plugserve.core.settings.feature_settings import FeatureSettings, PluginSettings
from plugserve.core.settings.many_models_settings import ManyModelsSettings
from plugserve.core.settings.model_settings import ModelSettings, ParallelSettings
from plugserve.core.settings.performance_settings import PerformanceSettings
from plugserve.core.settings.router_settings import RouterSettings
from plugserve.core.settings.selection import Selection, selected_plugins
from plugserve.core.settings.server_settings import FileSettings, ServerSettings
from plugserve.core.settings.setting_types import SettingFacts

_USER_OF_URL = re.compile(r"(?<=://)[^/@\s]+(?=@)")
Options = TypeVar("Options", bound=BaseModel)


class Settings(
    # pydantic collects fields from the last base to the first
    FileSettings,
    RouterSettings,
    ServerSettings,
    PluginSettings,
    FeatureSettings,
    PerformanceSettings,
    ParallelSettings,
    ManyModelsSettings,
    ModelSettings,
):
    """All settings, validated and read-only.

    Made by settings_reader.read_settings, or from JSON (model_validate_json) in child processes. The constructor reads
    the given values alone: never the environment, the command line or a file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=False)

    # filled from plugins' own options; not settings themselves
    plugins: dict[str, dict[str, Any]] = Field(default_factory=dict)
    secret_options: list[str] = Field(default_factory=list)

    def selection(self) -> Selection:
        """The selection of plugins for the plugin host; equal in every process."""
        return Selection(
            plugin=selected_plugins(self.plugin, self.enable_prefix_caching, self.enable_lora, self._drafts_by_model()),
            no_plugin=tuple(self.no_plugin),
            scheduler=self.scheduler,
            attention=self.attention,
            runner=self.runner,
            executor=self.executor,
        )

    @property
    def num_ranks(self) -> int:
        """Processes that share one model."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @property
    def executor(self) -> str | None:
        """The executor that starts them; None where there is one rank alone and none is named."""
        named = "ray" if self.worker_use_ray else self.distributed_executor_backend
        return named or ("mp" if self.num_ranks > 1 else None)

    def _drafts_by_model(self) -> bool:
        """--speculative-model is used by the plugin draft-model, unless that is turned off in favour of another one."""
        return self.speculative_model is not None and "draft-model" not in self.no_plugin

    def changed(self) -> dict[str, Any]:
        """Settings that differ from their defaults, plugin options as NAME.option; secrets read "***"."""
        changes = {name: getattr(self, name) for name in setting_facts() if getattr(self, name) != default_of(name)}
        changes |= {name: "***" for name in changes if setting_facts()[name].is_secret}
        for plugin, options in self.plugins.items():
            for option, value in options.items():
                key = f"{plugin}.{option}"
                changes[key] = "***" if key in self.secret_options else value
        return {name: without_passwords(value) for name, value in changes.items()}

    def view(self) -> SettingsView:
        """The view of the settings that plugins may read."""
        values = {name: getattr(self, name) for name in readable_settings()}
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        return SettingsView(**values, plugin_tables=self.plugins, changed_names=frozenset(self.changed()))

    def plugin_options(self, plugin: str, model: type[Options]) -> Options:
        """The validated options of one plugin."""
        return model.model_validate(self.plugins.get(plugin, {}))


def without_passwords(value: Any) -> Any:
    """The value with user and password of each URL in it replaced by ***."""
    match value:
        case str():
            return _USER_OF_URL.sub("***", value)
        case list():
            return [without_passwords(entry) for entry in value]
        case dict():
            return {key: without_passwords(entry) for key, entry in value.items()}
    return value


def setting_facts() -> dict[str, SettingFacts]:
    """The declaration's facts by setting, in order of declaration."""
    return {name: _facts(field) for name, field in Settings.model_fields.items() if field.json_schema_extra}


def _facts(field: FieldInfo) -> SettingFacts:
    return cast(Any, field.json_schema_extra)["facts"]  # type: ignore[no-any-return]


def default_of(name: str) -> Any:
    """A setting's default value."""
    return Settings.model_fields[name].get_default(call_default_factory=True, validated_data={})
