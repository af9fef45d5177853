"""docs/plugins says what the code says: a page for each hook, whose example is a plugin; links that lead somewhere."""

from __future__ import annotations

import re
import types
from pathlib import Path

import pytest

from plugserve.core.plugin_system.hook_docs import EXAMPLE, hook_page, hook_table, users_of_hooks
from plugserve.core.plugin_system.hook_facts import HOOK_FACTS
from plugserve.core.plugin_system.hookspecs import OLDEST_API, PLUGSERVE_API
from plugserve.core.plugin_system.plugin_loading import SPECS, load_object

DOCS = Path(__file__).parents[3] / "docs" / "plugins"
USERS = users_of_hooks(DOCS)


def test_every_hook_has_facts_and_a_page_and_no_other_has():
    assert list(HOOK_FACTS) == list(SPECS)
    assert {page.stem for page in (DOCS / "hooks").glob("*.md")} == set(SPECS)


@pytest.mark.parametrize("name", SPECS)
def test_page_says_what_the_code_says(name):
    page = (DOCS / "hooks" / f"{name}.md").read_text()
    assert page.partition(EXAMPLE)[0] == hook_page(name, USERS[name]), (
        "write it anew: python -m plugserve.core.plugin_system.hook_docs --write docs/plugins"
    )


@pytest.mark.parametrize("name", SPECS)
def test_example_is_a_plugin_that_has_the_hook(name):
    example = (DOCS / "hooks" / f"{name}.md").read_text().partition(EXAMPLE)[2]
    (code,) = re.findall(r"```python\n(.*?)```", example, flags=re.DOTALL)
    module = types.ModuleType("example")
    exec(compile(code, name, "exec"), vars(module))
    assert list(load_object("example", module).hooks) == [name]


def test_index_has_the_table_of_hooks():
    assert hook_table() in (DOCS / "index.md").read_text()


def test_users_are_found_in_built_in_plugins_and_examples():
    assert USERS["plugserve_schedulers"]["fcfs"] == "../../../plugserve/plugins/schedulers/fcfs.py"
    assert USERS["plugserve_schedulers"]["plugserve-sjf"] == "../../../examples/plugserve-sjf"
    assert USERS["plugserve_register_routes"] == {"engine_events.py": "../../../examples/one_file/engine_events.py"}


def test_levels_are_in_order():
    assert 1 <= OLDEST_API <= PLUGSERVE_API
    assert all(1 <= facts.since <= PLUGSERVE_API for facts in HOOK_FACTS.values())


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_every_conformance_class_is_on_the_page_on_testing():
    import plugserve.testing

    text = (DOCS / "testing.md").read_text()
    for name in dir(plugserve.testing):
        assert f"`{name}" in text or f", `{name}`" in text or name == "ToolExample", name
