"""The form in which a chat template gets the content of messages: as one text, or as a list of parts.

Standard library and jinja2 only, for template_process.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

import jinja2
from jinja2 import nodes

Format = Literal["auto", "string", "openai"]
_CONTENT: Final = "content"


class ContentForm:
    """How one template gets contents. "string": parts joined by line breaks. "openai": always a list of parts. "auto":
    texts as texts and parts as parts where the template goes through the parts of a message; a text becomes a list of
    one part where it does so without asking whether the content is a string."""

    def __init__(self, environment: jinja2.Environment, source: str, format: Format) -> None:
        self._keeps_parts = self._wraps_texts = format == "openai"
        if format == "auto":
            parsed = environment.parse(source)
            self._keeps_parts = _goes_through_parts(parsed)
            self._wraps_texts = self._keeps_parts and not _asks_for_strings(parsed)

    def shaped(self, message: Any) -> Any:
        """message with its content in this form; anything but a message is left to the template."""
        if not isinstance(message, Mapping):
            return message
        content = message.get(_CONTENT)
        if isinstance(content, str) and self._wraps_texts:
            return {**message, _CONTENT: [{"type": "text", "text": content}]}
        if isinstance(content, list) and not self._keeps_parts and all(map(_is_text, content)):
            return {**message, _CONTENT: "\n".join(part["text"] for part in content)}
        return message


def _is_text(part: Any) -> bool:
    return isinstance(part, Mapping) and isinstance(part.get("text"), str)


def _goes_through_parts(template: nodes.Template) -> bool:
    """The template has a loop over a message's content, over a variable that is set to it, or over a macro's argument
    of that name."""
    names = {_CONTENT} if any(_takes_content(macro) for macro in template.find_all(nodes.Macro)) else set()
    for setting in template.find_all(nodes.Assign):
        if isinstance(setting.target, nodes.Name) and _is_content(setting.node, names):
            names.add(setting.target.name)
    return any(_is_content(loop.iter, names) for loop in template.find_all(nodes.For))


def _takes_content(macro: nodes.Macro) -> bool:
    return any(argument.name == _CONTENT for argument in macro.args)


def _is_content(node: nodes.Node | None, names: set[str]) -> bool:
    """node is message['content'], message.content or one of names, perhaps filtered."""
    match node:
        case nodes.Filter():
            return _is_content(node.node, names)
        case nodes.Getattr():
            return node.attr == _CONTENT
        case nodes.Getitem():
            return isinstance(node.arg, nodes.Const) and node.arg.value == _CONTENT
        case nodes.Name():
            return node.name in names
    return False


def _asks_for_strings(template: nodes.Template) -> bool:
    return any(test.name == "string" for test in template.find_all(nodes.Test))
