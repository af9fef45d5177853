"""Renders the declared settings for a terminal: the page of `plugserve --help`, one topic, or all."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from plugserve.core.errors import ConfigError
from plugserve.core.settings.setting_groups import GROUPS
from plugserve.core.settings.setting_hints import same_thing
from plugserve.core.settings.setting_names import OptionModels, canonical, flag, kind_of, option_fields
from plugserve.core.settings.setting_types import SettingFacts
from plugserve.core.settings.settings import setting_facts
from plugserve.core.settings.settings_docs import flag_usage, shown_default, shown_value
from plugserve.core.settings.settings_sources import PREFIX

MOST_USED = (
    "model",
    "host",
    "port",
    "api_key",
    "config",
    "dtype",
    "max_model_len",
    "gpu_memory_utilization",
    "kv_cache_memory",
    "max_num_seqs",
    "enable_prefix_caching",
    "enable_lora",
    "enable_auto_tool_choice",
    "speculative_model",
    "plugin",
    "scheduler",
)
"""Settings on the page of `plugserve --help`."""

_FLAG_COLUMN = 34


def help_width() -> int:
    """Columns that help takes: the terminal's, at most 120."""
    return min(shutil.get_terminal_size((110, 24)).columns, 120)


def help_page(usage: str, options: OptionModels) -> str:
    """One page: usage, the most used settings, the given plugins' options, and how to get more."""
    return "\n\n".join([usage.rstrip(), _settings("Most used settings", MOST_USED), *_plugins(options), _more()]) + "\n"


def help_on(topic: str, options: OptionModels) -> str:
    """A topic: all, a group, a plugin with options, or one setting. Raises ConfigError for anything else."""
    word = topic.strip().lower().lstrip("-").replace("_", "-")
    if word == "all":
        groups = [_settings(group, _names_of(group)) for group in GROUPS]
        return "\n\n".join([*groups, *_plugins(options), _places()]) + "\n"
    for group in GROUPS:
        if word in _words_of(group) or word == group.lower():
            return _settings(group, _names_of(group)) + "\n"
    for plugin, model in options.items():
        if canonical(plugin) == word:
            return _options(plugin, model) + "\n"
    if word.replace("-", "_") in setting_facts():
        return _one(word.replace("-", "_"))
    topics = [*_topics(), *options, "all"]
    found = same_thing(word.replace("-", "_"), [*topics, *setting_facts()])
    near = f" Did you mean '{found.replace('_', '-')}'?" if found else ""
    raise ConfigError(f"--help={topic}: no such topic.{near} Topics: {', '.join(topics)}, or a setting")


def _words_of(group: str) -> list[str]:
    return re.findall(r"[a-z]+", group.lower())


def _topics() -> list[str]:
    return [_words_of(group)[0] for group in GROUPS]


def _names_of(group: str) -> list[str]:
    return [name for name, facts in setting_facts().items() if facts.group == group]


def _more() -> str:
    rows = [
        ("--help=GROUP", f"the settings of one group: {', '.join(_topics())}"),
        ("--help=NAME", "one setting, or the options of an active plugin"),
        ("--help=all", f"all {len(setting_facts())} settings"),
        ("plugserve COMMAND --help", "a command's own arguments"),
    ]
    return f"{_block('More', rows)}\n\n{_places()}"


def _places() -> str:
    text = (
        "Every setting is also a key of the config file (underscores for hyphens; plugin options under "
        f"plugins.NAME.OPTION) and an environment variable ({PREFIX}MAX_NUM_SEQS, {PREFIX}PLUGINS__NAME__OPTION). The "
        "command line overrides the environment, which overrides the file. --no-NAME turns a boolean off."
    )
    return textwrap.fill(text, help_width(), break_on_hyphens=False)


def _settings(title: str, names: Sequence[str]) -> str:
    facts = setting_facts()
    return _block(
        title,
        [
            (
                flag_usage(name, facts[name].metavar).partition(",")[0],
                _row_help(_help_with_note(facts[name]), shown_default(name)),
            )
            for name in names
        ],
    )


def _one(name: str) -> str:
    """One setting with all that is known of it."""
    facts = setting_facts()[name]
    lines = [_settings(facts.group, [name]), "", f"  takes {facts.accepts}; default {shown_default(name)}"]
    if facts.refused:
        values = f" ({', '.join(facts.refused_values)})" if facts.refused_values else ""
        lines.append(f"  not supported{values}: {facts.refused}")
    if facts.no_effect:
        values = f" ({', '.join(facts.no_effect_values)})" if facts.no_effect_values else ""
        lines.append(f"  has no effect{values}: {facts.no_effect}")
    lines.append(f"  also the key {name} in a file, and {PREFIX}{name.upper()} in the environment")
    return "\n".join(lines) + "\n"


def _plugins(options: OptionModels) -> list[str]:
    return [_options(plugin, model) for plugin, model in options.items()]


def _options(plugin: str, model: type[BaseModel]) -> str:
    rows = [
        (_option_usage(plugin, name, field.annotation), _row_help(field.description or "", _option_default(field)))
        for name, field in option_fields(model).items()
    ]
    return _block(f"Options of plugin {plugin}", rows)


def _option_usage(plugin: str, option: str, annotation: Any) -> str:
    name = f"{flag(plugin)}.{option.replace('_', '-')}"
    return name if kind_of(annotation) == "flag" else f"{name} {_metavar(annotation)}"


def _option_default(field: Any) -> str:
    return shown_value(field.get_default(call_default_factory=True, validated_data={}))


def _metavar(annotation: Any) -> str:
    return {int: "N", float: "X", str: "TEXT"}.get(annotation, "VALUE")


def _help_with_note(facts: SettingFacts) -> str:
    if facts.refused and not facts.refused_values:
        return f"{facts.help} (not supported yet)"
    return f"{facts.help} (no effect yet)" if facts.no_effect and not facts.no_effect_values else facts.help


def _row_help(help: str, default: str) -> str:
    return help if default in ("none", "false") else f"{help} [{default}]"


def _block(title: str, rows: Sequence[tuple[str, str]]) -> str:
    width = help_width()
    lines = [f"{title}:"]
    for usage, help in rows:
        wrapped = textwrap.wrap(help, max(width - _FLAG_COLUMN - 2, 30)) or [""]
        first = f"  {usage}"
        if len(first) >= _FLAG_COLUMN:
            lines.append(first)
        else:
            wrapped[0] = first.ljust(_FLAG_COLUMN) + wrapped[0]
            lines.append(wrapped.pop(0))
        lines += [" " * _FLAG_COLUMN + line for line in wrapped]
    return "\n".join(line.rstrip() for line in lines)
