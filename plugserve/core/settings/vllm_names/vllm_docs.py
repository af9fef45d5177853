"""Renders the tables of docs/vllm.md: what becomes of vLLM's settings.

`python -m plugserve.core.settings.vllm_names.vllm_docs --write FILE` puts them into a document.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from plugserve.core.settings.old_names import OLD_NAMES
from plugserve.core.settings.setting_names import flag
from plugserve.core.settings.settings_docs import write_table
from plugserve.core.settings.vllm_names.not_supported import NOT_SUPPORTED
from plugserve.core.settings.vllm_names.translations import TRANSLATIONS
from plugserve.core.settings.vllm_names.vllm_name import Reason
from plugserve.core.settings.vllm_names.vllm_settings import SHORT_FLAGS, VLLM_VARIABLES
from plugserve.core.settings.vllm_names.without_effect import WITHOUT_EFFECT

HEADING = "## The tables"


def vllm_tables() -> str:
    """The tables in Markdown."""
    return "\n\n".join(["\n".join(_aliases()), "\n".join(_translated()), *map("\n".join, _by_reason())]) + "\n"


def _aliases() -> Iterator[str]:
    yield "### Other names of a setting\n\n| name | setting |\n|---|---|"
    for name, old in OLD_NAMES.items():
        yield f"| `{flag(name)}` | `{flag(old.new)}`{' (the opposite)' if old.inverted else ''} |"
    for short, name in SHORT_FLAGS.items():
        yield f"| `{short}` | `{flag(name)}` |"
    for variable, name in VLLM_VARIABLES.items():
        yield f"| `{variable}` in the environment | `{flag(name)}` |"


def _translated() -> Iterator[str]:
    yield "### Translated\n\n| vLLM | here |\n|---|---|"
    for name, (_, meaning) in TRANSLATIONS.items():
        yield f"| `{flag(name)}` | {meaning} |"


def _by_reason() -> Iterator[list[str]]:
    titles: Sequence[tuple[str, Sequence[Reason]]] = (
        ("### Without effect", WITHOUT_EFFECT),
        ("### Not supported", NOT_SUPPORTED),
    )
    for title, reasons in titles:
        yield [f"{title}\n\n| settings | why |\n|---|---|", *map(_row, reasons)]


def _row(reason: Reason) -> str:
    names = ", ".join(f"`{flag(name)}`{_accepted(reason, name)}" for name in reason.names())
    return f"| {names} | {reason.why} |"


def _accepted(reason: Reason, name: str) -> str:
    same = reason.same.get(name, "")
    return f" (but {', '.join(same.split())})" if same and name not in reason.flags.split() else ""


if __name__ == "__main__" and sys.argv[1:2] == ["--write"]:
    write_table(Path(sys.argv[2]), HEADING, vllm_tables())
