"""The plugin: its tool parser, by name. parser.py holds the parser."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from plugserve import ToolParser, hookimpl
from plugserve_xml_tools.parser import XmlToolParser


def make_parser(tools: Sequence[Mapping[str, Any]]) -> ToolParser:
    """Called in a server worker, once for each answer; tools are the request's, in OpenAI's format."""
    return XmlToolParser(tools)


@hookimpl
def plugserve_tool_parsers() -> Mapping[str, Callable[[Sequence[Mapping[str, Any]]], ToolParser]]:
    return {"xml-tools": make_parser}
