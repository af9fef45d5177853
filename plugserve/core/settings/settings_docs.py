"""Renders the declared settings: `plugserve --help` and the table of docs/configuration.md.

`python -m plugserve.core.settings.settings_docs` prints the table; `--write FILE` puts it into a document.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined

from plugserve.core.errors import ConfigError
from plugserve.core.settings.old_names import OLD_NAMES
from plugserve.core.settings.setting_groups import GROUPS
from plugserve.core.settings.setting_names import OptionModels, flag, kind_of, option_fields
from plugserve.core.settings.setting_types import SettingFacts
from plugserve.core.settings.settings import Settings, default_of, setting_facts
from plugserve.core.settings.settings_sources import PREFIX

_FLAG_COLUMN = 34


def help_text(usage: str, options: OptionModels) -> str:
    """Every flag, grouped; options are the active plugins' models."""
    blocks = [usage.rstrip()]
    for group in GROUPS:
        rows = [
            (_flag_usage(name, facts.metavar), _row_help(_help_with_note(facts), shown_default(name)))
            for name, facts in setting_facts().items()
            if facts.group == group
        ]
        blocks.append(_help_group(group, rows))
    for plugin, model in options.items():
        rows = [
            (_option_usage(plugin, name, field.annotation), _row_help(field.description or "", _option_default(field)))
            for name, field in option_fields(model).items()
        ]
        blocks.append(_help_group(f"Options of plugin {plugin}", rows))
    blocks.append(
        "Every setting is also a key of the config file (underscores for hyphens; plugin options under\n"
        f"plugins.NAME.OPTION) and an environment variable ({PREFIX}MAX_NUM_SEQS,\n"
        f"{PREFIX}PLUGINS__NAME__OPTION). The command line overrides the environment, which overrides the file."
    )
    return "\n\n".join(blocks) + "\n"


def settings_table() -> str:
    """The generated part of docs/configuration.md, in Markdown."""
    parts = []
    for group in GROUPS:
        parts.append(f"### {group}\n\n| setting | default | what it does |\n|---|---|---|")
        for name, facts in setting_facts().items():
            if facts.group == group:
                notes = [facts.help, f"Takes {facts.accepts}."]
                if facts.refused:
                    values = f" ({', '.join(facts.refused_values)})" if facts.refused_values else ""
                    notes.append(f"**Refused so far**{values}: {facts.refused}.")
                if facts.no_effect:
                    notes.append(f"**No effect so far**: {facts.no_effect}.")
                row = (f"`{_flag_usage(name, facts.metavar)}`", shown_default(name), " ".join(notes))
                parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
        parts.append("")
    parts.append("### Old names\n\nEach works with one warning line, as flag, file key and environment variable.\n")
    parts.append("| old name | setting |\n|---|---|")
    for spelling, old in OLD_NAMES.items():
        parts.append(f"| `{flag(spelling)}` | `{flag(old.new)}`{' (the opposite)' if old.inverted else ''} |")
    return "\n".join(parts) + "\n"


def write_table(path: Path) -> None:
    """Put the table into a document: it is all that follows the heading "## Settings"."""
    before, heading, _ = path.read_text(encoding="utf-8").partition("## Settings\n")
    if not heading:
        raise ConfigError(f"{path} has no line '## Settings' to put the table under")
    path.write_text(f"{before}{heading}\n{settings_table()}", encoding="utf-8")


def shown_default(name: str) -> str:
    """A setting's default as people read it."""
    return setting_facts()[name].shown_default or _shown(default_of(name))


def _shown(value: Any) -> str:
    if value is None or value == [] or value is PydanticUndefined:
        return "none"
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def _option_default(field: Any) -> str:
    return _shown(field.get_default(call_default_factory=True, validated_data={}))


def _flag_usage(name: str, metavar: str) -> str:
    if kind_of(Settings.model_fields[name].annotation) == "flag":
        return f"{flag(name)}, {flag('no_' + name)}"
    return f"{flag(name)} {metavar}"


def _option_usage(plugin: str, option: str, annotation: Any) -> str:
    name = f"--{plugin}.{option.replace('_', '-')}"
    return name if kind_of(annotation) == "flag" else f"{name} {_metavar(annotation)}"


def _metavar(annotation: Any) -> str:
    return {int: "N", float: "X", str: "TEXT"}.get(annotation, "VALUE")


def _help_with_note(facts: SettingFacts) -> str:
    if facts.refused and not facts.refused_values:
        return f"{facts.help} (not supported yet)"
    return f"{facts.help} (no effect yet)" if facts.no_effect else facts.help


def _row_help(help: str, default: str) -> str:
    return help if default in ("none", "false") else f"{help} [{default}]"


def _help_group(title: str, rows: list[tuple[str, str]]) -> str:
    width = min(shutil.get_terminal_size((110, 24)).columns, 120)
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


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"] and len(sys.argv) == 3:
        write_table(Path(sys.argv[2]))
    else:
        print(settings_table(), end="")
