"""Finds installed plugins, imports one, and checks its hooks. plugin_activation selects the active ones.

Discovery reads the metadata of installed distributions (entry-point group "plugserve") and imports nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel

from plugserve.core.errors import PluginError, did_you_mean, one_line
from plugserve.core.plugin_system import hookspecs
from plugserve.core.plugin_system.api_level import MOVING, declared_level, registered_level
from plugserve.core.plugin_system.failure_policy import is_shutdown
from plugserve.core.plugin_system.plugin_trace import is_tracing, raised, returned, trace_call

ENTRY_POINT_GROUP = "plugserve"
HOOK_PREFIX = "plugserve_"
IMPL_MARK = "plugserve_impl"

PROVIDER_HOOKS: Mapping[str, str] = {
    "schedulers": "plugserve_schedulers",
    "attention_backends": "plugserve_attention_backends",
    "prefix_caches": "plugserve_prefix_caches",
    "draft_proposers": "plugserve_draft_proposers",
    "lora_managers": "plugserve_lora_managers",
    "model_runners": "plugserve_model_runners",
    "executors": "plugserve_executors",
    "architectures": "plugserve_architectures",
    "weight_formats": "plugserve_weight_formats",
    "tool_parsers": "plugserve_tool_parsers",
    "reasoning_parsers": "plugserve_reasoning_parsers",
}
"""Kinds of strategy, and the hook that provides each."""

KIND_WORDS: Mapping[str, str] = {
    "schedulers": "scheduler",
    "attention_backends": "attention backend",
    "prefix_caches": "prefix cache",
    "draft_proposers": "draft proposer",
    "lora_managers": "LoRA manager",
    "model_runners": "model runner",
    "executors": "executor",
    "architectures": "architecture",
    "weight_formats": "weight format",
    "tool_parsers": "tool parser",
    "reasoning_parsers": "reasoning parser",
}

ASYNC_HOOKS = frozenset(
    {"plugserve_authorize", "plugserve_request_received", "plugserve_request_finished", "plugserve_error"}
)
"""Hooks whose implementations may be async functions."""

SPECS: Mapping[str, inspect.Signature] = {
    name: inspect.signature(function)
    for name, function in vars(hookspecs).items()
    if name.startswith(HOOK_PREFIX) and inspect.isfunction(function)
}


@dataclass(frozen=True, slots=True)
class Installed:
    """A plugin that an installed distribution registers, not imported yet."""

    name: str
    distribution: str
    version: str
    entry_point: EntryPoint

    def __str__(self) -> str:
        return f"plugin {self.name!r} ({self.distribution} {self.version})"


@dataclass(slots=True)
class Plugin:
    """A loaded plugin. provides is keyed by kind, then by the strategy's name. distribution of a one-file plugin is
    its path, and its version is empty. level is the hook level that it is written for, None where it names none."""

    name: str
    distribution: str
    version: str
    object: Any
    hooks: dict[str, Callable[..., Any]]
    provides: dict[str, dict[str, Callable[..., Any]]] = field(default_factory=dict)
    options: type[BaseModel] | None = None
    level: int | None = None

    def __str__(self) -> str:
        return f"plugin {self.name!r} ({self.source})"

    @property
    def source(self) -> str:
        """Distribution and version, or the path."""
        return f"{self.distribution} {self.version}".strip()


# ---------------------------------------------------------------- discovery


def discover() -> dict[str, list[Installed]]:
    """All registered plugins by name; a name that several distributions register has several entries."""
    found: dict[str, list[Installed]] = {}
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        distribution = entry_point.dist
        name = distribution.name if distribution else "unknown distribution"
        version = distribution.version if distribution else ""
        found.setdefault(entry_point.name, []).append(Installed(entry_point.name, name, version, entry_point))
    for registered in found.values():
        registered.sort(key=lambda one: (one.distribution, one.version))
    return found


# ---------------------------------------------------------------- import


def load_installed(installed: Installed) -> Plugin:
    """Import an installed plugin and check it. Raises PluginError with one line for the first fault."""
    level = registered_level(installed.entry_point, str(installed))
    module_name, _, attribute = installed.entry_point.value.partition(":")
    module_name = module_name.strip()
    module = _import(module_name, installed)
    target: Any = module
    for part in filter(None, attribute.split("[")[0].strip().split(".")):
        if not hasattr(target, part):
            raise PluginError(
                f"{installed}: entry point {installed.entry_point.value!r} names {part!r}, "
                f"which {module_name} doesn't have.{did_you_mean(part, vars(module))}"
            )
        target = getattr(target, part)
    plugin = _checked(installed.name, installed.distribution, installed.version, target, str(installed))
    plugin.level = plugin.level if level is None else level
    return plugin


def _import(module_name: str, installed: Installed) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise PluginError(
                f"{installed}: entry point {installed.entry_point.value!r} names a module that doesn't exist "
                f"({error.name})"
            ) from None
        raise _import_error(str(installed), error) from error
    except BaseException as error:
        if is_shutdown(error):
            raise
        raise _import_error(str(installed), error) from error


def load_file(path: str) -> Plugin:
    """Import a one-file plugin; its name is the file's, with hyphens for underscores."""
    file = Path(path)
    name = file.stem.replace("_", "-")
    if not file.is_file():
        raise PluginError(f"--plugin {path}: no such file (looked in {file.absolute().parent})")
    module_name = f"plugserve_one_file_{file.stem}"
    spec = importlib.util.spec_from_file_location(module_name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pydantic look types up there
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[module_name]
        if is_shutdown(error):
            raise
        raise _import_error(f"plugin {name!r} ({path})", error) from error
    return _checked(name, path, "", module, f"plugin {name!r} ({path})")


def load_object(name: str, target: Any) -> Plugin:
    """Check a module, object or class as if an installed distribution registered it. For the conformance kit."""
    return _checked(name, "not installed", "", target, f"plugin {name!r}")


def _import_error(plugin: str, error: BaseException) -> PluginError:
    return PluginError(f"{plugin} can't be imported: {one_line(error)}")


# ---------------------------------------------------------------- checks


def _checked(name: str, distribution: str, version: str, target: Any, title: str) -> Plugin:
    """A Plugin from what its entry point names: a module, an object, or a class (which is instantiated)."""
    level = declared_level(target, title)
    if inspect.isclass(target):
        try:
            target = target()
        except BaseException as error:
            if is_shutdown(error):
                raise
            raise PluginError(f"{title}: its class can't be made without arguments: {one_line(error)}") from error
    hooks = _hooks(target, title)
    plugin = Plugin(name, distribution, version, target, hooks, level=level)
    for kind, hook in PROVIDER_HOOKS.items():
        if hook in hooks:
            plugin.provides[kind] = _provided(plugin, hook, hooks[hook])
    for name, factory in plugin.provides.get("model_runners", {}).items():
        _check_takes_context(factory, f"{title}: its model runner factory {name!r}")
    if "plugserve_options" in hooks:
        plugin.options = _options_model(plugin, hooks["plugserve_options"])
    return plugin


def _hooks(target: Any, title: str) -> dict[str, Callable[..., Any]]:
    """The hook implementations of a plugin object by hook name, in the order of hookspecs."""
    found: dict[str, Callable[..., Any]] = {}
    for attribute in dir(target):
        if not isinstance(target, ModuleType) and attribute.startswith("__"):
            continue
        if isinstance(inspect.getattr_static(type(target), attribute, None), property):
            continue  # reading it would run the plugin's code
        function = _attribute(target, attribute, title)
        if not inspect.isroutine(function):
            continue
        marks = getattr(function, IMPL_MARK, None)
        if isinstance(marks, dict):
            hook = marks.get("specname") or attribute
            if hook in SPECS:
                _check_implementation(function, hook, marks, title)
                if hook in found:
                    raise PluginError(f"{title} implements {hook} twice; keep one of the functions")
                found[hook] = function
            elif not marks.get("optionalhook"):
                raise PluginError(f"{title}: there is no hook {hook!r}.{did_you_mean(hook, SPECS)}")
        elif attribute.startswith(HOOK_PREFIX):
            raise PluginError(_unmarked(attribute, title))
    if not found:
        raise PluginError(f"{title} has no hooks; mark its plugserve_* functions with @plugserve.hookimpl")
    return {hook: found[hook] for hook in SPECS if hook in found}


def _attribute(target: Any, attribute: str, title: str) -> Any:
    try:
        return getattr(target, attribute, None)
    except BaseException as error:
        if is_shutdown(error):
            raise
        raise PluginError(f"{title}: reading its attribute {attribute!r} raised {one_line(error)}") from error


def _unmarked(attribute: str, title: str) -> str:
    advice = "put @plugserve.hookimpl above it"
    if attribute not in SPECS:
        advice = (
            f"rename it, or mark it with @plugserve.hookimpl if it is meant as a hook.{did_you_mean(attribute, SPECS)}"
        )
    return f"{title}: function {attribute!r} is not marked as a hook; {advice}"


def _check_implementation(function: Callable[..., Any], hook: str, marks: Mapping[str, Any], title: str) -> None:
    if marks.get("wrapper") or marks.get("hookwrapper"):
        raise PluginError(f"{title}: {hook} is a hook wrapper; plugserve calls implementations one by one")
    if inspect.iscoroutinefunction(function) and hook not in ASYNC_HOOKS:
        raise PluginError(f"{title}: {hook} may not be async; it is called where nothing awaits it")
    signature = inspect.signature(function)
    known = SPECS[hook].parameters
    for argument, parameter in signature.parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY and argument in known:
            raise PluginError(
                f"{title}: {hook} takes {argument!r} as a keyword-only argument, which pluggy doesn't pass; "
                "remove the * before it"
            )
        named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        is_extra = argument not in known
        if named and not (is_extra and (parameter.default is parameter.empty or did_you_mean(argument, known))):
            continue
        raise PluginError(
            f"{title}: wrong signature {hook}({_arguments(signature)}), the specification is "
            f"{hook}({', '.join(known)}); {_bare(parameter)!r} is not one of its arguments."
            f"{did_you_mean(argument, known)}"
        )


def _arguments(signature: inspect.Signature) -> str:
    return ", ".join(_bare(parameter) for parameter in signature.parameters.values())


def _bare(parameter: inspect.Parameter) -> str:
    """An argument's name, with the stars of *args and **kwargs."""
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}
    return next((mark for kind, mark in stars.items() if parameter.kind is kind), "") + parameter.name


def _provided(plugin: Plugin, hook: str, function: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    try:
        provided = _traced(plugin, hook, function)
    except BaseException as error:
        if is_shutdown(error):
            raise
        raise PluginError(f"{plugin}: {hook} raised {one_line(error)}") from error
    if not isinstance(provided, Mapping):
        raise PluginError(f"{plugin}: {hook} must return a mapping of names to factories, got {provided!r}")
    for name, factory in provided.items():
        if not isinstance(name, str) or not name or "/" in name or not callable(factory):
            raise PluginError(
                f"{plugin}: {hook} must map names (text without '/') to callables, got {name!r}: {factory!r}"
            )
    return dict(provided)


def _check_takes_context(factory: Callable[..., Any], title: str) -> None:
    """Raises PluginError for a runner factory of level 1, which takes three arguments."""
    try:
        inspect.signature(factory).bind(None)
    except ValueError:
        return  # a callable without a signature, such as a built-in one
    except TypeError:
        raise PluginError(
            f"{title} must take one argument, context; since hook level 2 context.source and context.choose_attention "
            f"hold the others ({MOVING})"
        ) from None


def _traced(plugin: Plugin, hook: str, function: Callable[..., Any]) -> Any:
    """Call a hook without arguments."""
    if not is_tracing():
        return function()
    try:
        result = function()
    except BaseException as error:
        trace_call(plugin.name, hook, {}, raised(error))
        raise
    trace_call(plugin.name, hook, {}, returned(result))
    return result


def _options_model(plugin: Plugin, function: Callable[..., Any]) -> type[BaseModel]:
    try:
        model = _traced(plugin, "plugserve_options", function)
    except BaseException as error:
        if is_shutdown(error):
            raise
        raise PluginError(f"{plugin}: plugserve_options raised {one_line(error)}") from error
    if not (inspect.isclass(model) and issubclass(model, BaseModel)):
        raise PluginError(f"{plugin}: plugserve_options must return a pydantic model class, got {model!r}")
    required = [name for name, info in model.model_fields.items() if info.is_required()]
    if required:
        raise PluginError(f"{plugin}: every option needs a default, {required[0]!r} has none")
    return model
