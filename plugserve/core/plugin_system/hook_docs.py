"""The pages of docs/plugins/hooks, one a hook, and the table of hooks, made from hookspecs and hook_facts.

`python -m plugserve.core.plugin_system.hook_docs --write docs/plugins` writes the generated part of each page;
what follows "## Example" is written by hand and kept. Without --write it prints the table.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from plugserve.core.plugin_system import hookspecs
from plugserve.core.plugin_system.failure_policy import HOOK_POLICIES
from plugserve.core.plugin_system.hook_facts import HOOK_FACTS
from plugserve.core.plugin_system.plugin_loading import ASYNC_HOOKS, SPECS

EXAMPLE = "## Example"
_TABLE_START, _TABLE_END = "<!-- hooks: made by plugserve.core.plugin_system.hook_docs -->", "<!-- end of hooks -->"
_IMPLEMENTS = re.compile(r"^\s*(?:async )?def (plugserve_\w+)\(", re.MULTILINE)


def hook_table() -> str:
    """Every hook with its page, its process, and when it is called, in life-cycle order, in Markdown."""
    rows = ["| hook | process | called when |", "|---|---|---|"]
    for name, signature in SPECS.items():
        facts = HOOK_FACTS[name]
        shown = f"{name}({', '.join(signature.parameters)})"
        rows.append(f"| [`{shown}`](hooks/{name}.md) | {facts.process} | {facts.when} |")
    return "\n".join(rows) + "\n"


def hook_page(name: str, users: Mapping[str, str]) -> str:
    """The generated part of a hook's page. users are the plugins that implement it, and where each is found."""
    function, facts = getattr(hookspecs, name), HOOK_FACTS[name]
    result = str(SPECS[name].return_annotation)
    arguments = ", ".join(f"{one.name}: {one.annotation}" for one in SPECS[name].parameters.values())
    is_async = "yes" if name in ASYNC_HOOKS else "no"
    used = ", ".join(f"[{user}]({place})" for user, place in users.items()) or "none yet"
    return f"""\
# {name}

```text
@plugserve.hookimpl
def {name}({arguments}) -> {result}: ...
```

{inspect.getdoc(function)} An implementation may take fewer arguments.

| | |
|---|---|
| process | {facts.process} |
| when | {facts.when} |
| how often | {facts.how_often} |
| may be async | {is_async} |
| a plugin that fails in it | {facts.exception}{HOOK_POLICIES[name].value} |
| hook level | {facts.since} |
| plugins that use it | {used} |

"""


def users_of_hooks(docs: Path) -> dict[str, dict[str, str]]:
    """By hook, the built-in plugins and those in examples/ that implement it, and the path to each from a hook's page.

    Sources are read, not imported. docs is docs/plugins of a checkout.
    """
    root = docs.parents[1]
    sources: list[tuple[str, str, str]] = []
    own = [one for one in entry_points(group="plugserve") if one.dist is not None and one.dist.name == "plugserve"]
    for entry in sorted(own, key=lambda one: one.name):
        spec = find_spec(entry.module)
        if spec is not None and spec.origin is not None:
            place = Path(*entry.module.split(".")).with_suffix(".py")
            sources.append((entry.name, str(place), Path(spec.origin).read_text("utf-8")))
    for package in sorted((root / "examples").glob("plugserve-*/plugserve_*/__init__.py")):
        folder = package.parents[1]
        sources.append((folder.name, str(folder.relative_to(root)), package.read_text("utf-8")))
    for file in sorted((root / "examples" / "one_file").glob("*.py")):
        sources.append((file.name, str(file.relative_to(root)), file.read_text("utf-8")))
    users: dict[str, dict[str, str]] = {name: {} for name in SPECS}
    for user, where, source in sources:
        for hook in _IMPLEMENTS.findall(source):
            if hook in users:
                users[hook][user] = f"../../../{where}"
    return users


def write(docs: Path) -> None:
    """Write the generated parts below docs (docs/plugins)."""
    folder = docs / "hooks"
    folder.mkdir(exist_ok=True)
    for name, users in users_of_hooks(docs).items():
        page = folder / f"{name}.md"
        example = page.read_text("utf-8").partition(EXAMPLE)[2] if page.exists() else "\n"
        page.write_text(hook_page(name, users) + EXAMPLE + example, "utf-8")
    index = docs / "index.md"
    before, _, rest = index.read_text("utf-8").partition(_TABLE_START)
    after = rest.partition(_TABLE_END)[2]
    index.write_text(f"{before}{_TABLE_START}\n\n{hook_table()}\n{_TABLE_END}{after}", "utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"] and len(sys.argv) == 3:
        write(Path(sys.argv[2]).resolve())
    else:
        print(hook_table(), end="")
