"""Chooses the parsers of a model's answers: those that flags name, else those whose marks occur in its chat
template."""

from __future__ import annotations

from functools import partial
from typing import Final

from plugserve.core.contracts.factories import ReasoningParserFactory, ToolParserFactory
from plugserve.core.errors import PluginError, did_you_mean
from plugserve.core.plugin_system.failure_policy import STRATEGY_POLICIES
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.plugin_system.strategy_factory import make_strategy
from plugserve.core.settings.settings import Settings
from plugserve.server.text.answer_parsers import AnswerParsers

_NONE: Final = "none"
_GENERIC: Final = "generic-json"
_TOOL_MARKS: Final = (
    ("<tool_call>", "hermes"),
    ("[TOOL_CALLS]", "mistral"),
    ("[func_name1(", "pythonic"),
    ("<|python_start|>", "pythonic"),
    ("<|python_tag|>", "llama3-json"),
    ("Environment: ipython", "llama3-json"),
)
_REASONING_MARKS: Final = (("<think>", "think-tags"), ("</think>", "think-tags"))
"""Pairs of a mark in chat templates and the parser of models whose template contains it."""


def check_parser_flags(settings: Settings, host: PluginHost) -> None:
    """Raises PluginError for a flag that names an unknown parser; before anything is loaded."""
    if settings.tool_call_parser is not None:
        _known(host, "tool_parsers", settings.tool_call_parser)
    if settings.reasoning_parser not in (None, _NONE):
        _known(host, "reasoning_parsers", settings.reasoning_parser)


def choose_parsers(settings: Settings, host: PluginHost, template: str) -> AnswerParsers:
    """Raises PluginError for a parser that is unknown or does not work."""
    tools, tool_plugin = _tool_parser(settings, host, template)
    reasoning, reasoning_plugin = _reasoning_parser(settings, host, template)
    special_tokens: tuple[str, ...] = ()
    if tools is not None:
        name = _tool_parser_name(settings, template)
        special_tokens += tuple(make_strategy(tool_plugin, "tool parser", name, partial(tools, [])).special_tokens)
    if reasoning is not None:
        name = _reasoning_parser_name(settings, template)
        parser = make_strategy(reasoning_plugin, "reasoning parser", name, partial(reasoning, ""))
        special_tokens += (parser.opening, parser.closing)
    reads_json = tools is not None and _tool_parser_name(settings, template) == _GENERIC
    note_failure = partial(host.note_failure, policy=STRATEGY_POLICIES["tool parser"])
    return AnswerParsers(
        tools, reasoning, tool_plugin, reasoning_plugin, special_tokens, reads_json, note_failure, host.note_time
    )


def _tool_parser(settings: Settings, host: PluginHost, template: str) -> tuple[ToolParserFactory | None, str]:
    """The tool parser's name; None if tool_choice auto is off. It is on for the embedded model."""
    if not settings.enable_auto_tool_choice and settings.model:
        return None, ""
    return host.factory("tool_parsers", _known(host, "tool_parsers", _tool_parser_name(settings, template)))


def _tool_parser_name(settings: Settings, template: str) -> str:
    return settings.tool_call_parser or _marked(_TOOL_MARKS, template) or _GENERIC


def _reasoning_parser(settings: Settings, host: PluginHost, template: str) -> tuple[ReasoningParserFactory | None, str]:
    name = _reasoning_parser_name(settings, template)
    if name == _NONE:
        return None, ""
    return host.factory("reasoning_parsers", _known(host, "reasoning_parsers", name))


def _reasoning_parser_name(settings: Settings, template: str) -> str:
    return settings.reasoning_parser or _marked(_REASONING_MARKS, template) or _NONE


def _marked(marks: tuple[tuple[str, str], ...], template: str) -> str | None:
    return next((name for mark, name in marks if mark in template), None)


def _known(host: PluginHost, kind: str, name: str) -> str:
    """name, or its spelling with hyphens where only that is known (other servers write llama3_json). Raises PluginError
    for one that no active plugin provides."""
    names = host.names(kind)
    spelling = name if name in names else name.replace("_", "-")
    if "/" in name or spelling in names:
        return name if "/" in name else spelling
    flag = "--tool-call-parser" if kind == "tool_parsers" else "--reasoning-parser"
    raise PluginError(
        f"{flag} {name}: no active plugin provides it.{did_you_mean(name, names)} There are: {', '.join(names)}"
    )
