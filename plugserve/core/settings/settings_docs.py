"""Renders the declared settings as the table of docs/configuration.md; settings_help renders them for a terminal.

`python -m plugserve.core.settings.settings_docs` prints the table; `--write FILE` puts it into a document.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined

from plugserve.core.errors import ConfigError
from plugserve.core.settings.setting_groups import GROUPS
from plugserve.core.settings.setting_names import flag, kind_of
from plugserve.core.settings.settings import Settings, default_of, setting_facts


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
                    values = f" ({', '.join(facts.no_effect_values)})" if facts.no_effect_values else ""
                    notes.append(f"**No effect so far**{values}: {facts.no_effect}.")
                row = (f"`{flag_usage(name, facts.metavar)}`", shown_default(name), " ".join(notes))
                parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
        parts.append("")
    return "\n".join(parts) + "\n"


def write_table(path: Path, heading: str, table: str) -> None:
    """Put a table into a document: it is all that follows the heading."""
    before, found, _ = path.read_text(encoding="utf-8").partition(f"{heading}\n")
    if not found:
        raise ConfigError(f"{path} has no line {heading!r} to put the table under")
    path.write_text(f"{before}{heading}\n\n{table}", encoding="utf-8")


def shown_default(name: str) -> str:
    """A setting's default as people read it."""
    return setting_facts()[name].shown_default or shown_value(default_of(name))


def shown_value(value: Any) -> str:
    """A value as people read it."""
    if value is None or value == [] or value is PydanticUndefined:
        return "none"
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def flag_usage(name: str, metavar: str) -> str:
    """A setting's flag with its value, or with its negation."""
    if kind_of(Settings.model_fields[name].annotation) == "flag":
        return f"{flag(name)}, {flag('no_' + name)}"
    return f"{flag(name)} {metavar}"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"] and len(sys.argv) == 3:
        write_table(Path(sys.argv[2]), "## Settings", settings_table())
    else:
        print(settings_table(), end="")
