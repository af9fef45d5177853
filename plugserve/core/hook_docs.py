"""The table of hooks in docs/plugins.md, made from hookspecs. `python -m plugserve.core.hook_docs` prints it."""

from __future__ import annotations

import inspect

from plugserve.core import hookspecs
from plugserve.core.plugin_loading import ASYNC_HOOKS, SPECS


def hook_table() -> str:
    """Every hook with its arguments and its documentation, in life-cycle order, in Markdown."""
    rows = ["| hook | what it is for, who calls it and when |", "|---|---|"]
    for name, signature in SPECS.items():
        text = " ".join((inspect.getdoc(getattr(hookspecs, name)) or "").split()).replace("|", "\\|")
        note = " May be async." if name in ASYNC_HOOKS else ""
        rows.append(f"| `{name}({', '.join(signature.parameters)})` | {text}{note} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(hook_table(), end="")
