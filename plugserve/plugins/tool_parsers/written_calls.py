"""The built-in tool parsers by name; each notation has a file of its own."""

from __future__ import annotations

from collections.abc import Mapping

from plugserve.core.contracts.factories import ToolParserFactory
from plugserve.core.plugin_system.hookspecs import hookimpl
from plugserve.plugins.tool_parsers.generic_json import generic_json
from plugserve.plugins.tool_parsers.hermes import hermes
from plugserve.plugins.tool_parsers.llama3_json import llama3_json
from plugserve.plugins.tool_parsers.mistral import mistral
from plugserve.plugins.tool_parsers.pythonic import pythonic


@hookimpl
def plugserve_tool_parsers() -> Mapping[str, ToolParserFactory]:
    return {
        "hermes": hermes,
        "qwen": hermes,
        "llama3-json": llama3_json,
        "mistral": mistral,
        "pythonic": pythonic,
        "generic-json": generic_json,
    }
