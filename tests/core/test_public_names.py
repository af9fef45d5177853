"""plugserve exports every name that a public contract mentions."""

from __future__ import annotations

import ast
import builtins
import collections.abc
import inspect
import subprocess
import sys
import typing

import pytest

import plugserve
from plugserve.core.plugin_system import hookspecs
from plugserve.core.plugin_system.plugin_loading import SPECS

PUBLIC = {name: getattr(plugserve, name) for name in plugserve.__all__}
CONSTANTS = ("__version__", "PLUGSERVE_API")
OTHERS = {"torch", "BaseModel"}
"""Names of other packages, imported for type checking alone."""


def mentioned(thing):
    """The names in the annotations of a class (its fields, public methods and properties) or of a function."""
    if inspect.isclass(thing):
        for text in vars(thing).get("__annotations__", {}).values():
            yield from names_in(text)
        for name, member in vars(thing).items():
            function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            if inspect.isfunction(function) and (name in ("__init__", "__call__") or not name.startswith("_")):
                yield from mentioned(function)
    elif inspect.isfunction(thing):
        for text in thing.__annotations__.values():
            yield from names_in(text)
    else:  # a type such as Callable[[SchedulerContext], Scheduler]
        yield from classes_in(thing)


def names_in(annotation):
    if not isinstance(annotation, str):
        return classes_in(annotation)
    return {node.id for node in ast.walk(ast.parse(annotation, mode="eval")) if isinstance(node, ast.Name)}


def classes_in(annotation):
    if isinstance(annotation, list | tuple):
        return {name for part in annotation for name in classes_in(part)}
    if arguments := typing.get_args(annotation):
        return classes_in(list(arguments))
    return {annotation.__name__} if inspect.isclass(annotation) else set()


def is_public(name, thing):
    """name is exported, or not plugserve's own: a type variable, an alias of Python's types, another package's."""
    value = getattr(inspect.getmodule(thing), name, None)
    is_ours = inspect.isclass(value) and value.__module__.startswith("plugserve.")
    is_known = value is not None or hasattr(builtins, name) or name in OTHERS or inspect.getmodule(thing) is None
    return name in PUBLIC or (is_known and not is_ours) or hasattr(collections.abc, name) or hasattr(typing, name)


def missing(thing):
    return sorted(name for name in set(mentioned(thing)) if not is_public(name, thing))


@pytest.mark.parametrize("name", sorted(PUBLIC.keys() - set(CONSTANTS) - {"hookimpl"}))
def test_what_a_public_name_mentions_is_public(name):
    assert missing(PUBLIC[name]) == []


@pytest.mark.parametrize("hook", SPECS)
def test_what_a_hook_mentions_is_public(hook):
    assert missing(getattr(hookspecs, hook)) == []


def test_the_check_finds_a_name_that_is_not_exported():
    class Contract:
        facts: NotExported  # noqa: F821

    assert missing(Contract) == ["NotExported"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_level_one_name_of_the_context_still_works():
    assert plugserve.PluginContext is plugserve.FactoryContext


def test_former_name_of_the_answer_delta_still_works_with_a_warning():
    with pytest.warns(DeprecationWarning, match="AnswerDelta"):
        assert plugserve.ToolDelta is plugserve.AnswerDelta


def test_the_package_itself_imports_no_module_of_its_own():
    """Templates and grammars run in processes that import plugserve for its folders alone."""
    program = "import sys, plugserve; print([name for name in sys.modules if name.startswith('plugserve.')])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"
    assert {"Scheduler", "LLM", "__all__"} <= set(dir(plugserve))
    assert not hasattr(plugserve, "no_such_name")
