"""The process that renders one chat template: `python -m plugserve.server.sandbox.template_process`.

A template comes with a model and is untrusted code: it runs in Jinja's sandbox, with limited memory, in a process that
can be killed (sandbox.py). Standard library and jinja2 only. The first message is the template, each later one a
render.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.utils import Namespace

from plugserve.server.sandbox.client_text import (
    ClientText,
    client_spans,
    concatenated,
    holds_client_text,
    of_client,
    traced,
)
from plugserve.server.sandbox.content_format import ContentForm, Format
from plugserve.server.sandbox.marking_environment import MarkingEnvironment
from plugserve.server.sandbox.sandbox_process import ALARM_S, Work, serve

MIN_OUTPUT_BYTES = 4 << 20
OUTPUT_PER_INPUT = 4
_CONTINUE_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
_ROLES = ("system", "user", "assistant", "tool", "developer", "function")
_MARKUP = re.compile(r"autoescape|[|'\"]\s*(?:e|escape|forceescape|safe|striptags|urlize|xmlattr)\b")
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")


class _GenerationBlock(Extension):
    """{% generation %} ... {% endgeneration %} marks what an assistant said, for training; here it is only its body."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _SafeDict:
    """dict(...) for templates, as a function: the type itself would expose its attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _SafeNamespace(Namespace):
    """namespace(...) without names that begin with an underscore, which would expose Python's internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        values = dict(*rest, **kwargs)
        for name in values:
            _refuse_private(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace may not have a name with a leading underscore: {name!r}")


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return ClientText(text) if holds_client_text(value) else text


def make_environment() -> jinja2.Environment:
    """Jinja as chat templates expect it: what Hugging Face's apply_chat_template offers, sandboxed."""
    environment = MarkingEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    environment.globals["dict"] = _SafeDict()
    environment.globals["namespace"] = _SafeNamespace
    return environment


class RenderError(Exception):
    """The render failed; the message is sent to the client."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """A template: compiled, its source, and the form of contents that it takes."""

    template: jinja2.Template
    source: str
    form: ContentForm

    @classmethod
    def of(cls, source: str, format: Format) -> Compiled:
        """Raises jinja2's TemplateSyntaxError."""
        environment = make_environment()
        return cls(environment.from_string(source), source, ContentForm(environment, source, format))


def render(compiled: Compiled, special_tokens: Mapping[str, str], request: dict[str, Any], max_bytes: int) -> str:
    """One conversation as text, marked (client_text.py). request holds ChatTemplate.render's arguments."""
    template, source = compiled.template, compiled.source
    given = map(compiled.form.shaped, request["messages"])
    messages = [_with_reasoning_names(_with_known_role(_of_client(message), source)) for message in given]
    final = _tag_final_message(messages, source) if request["continue_final_message"] else None
    values = {
        "documents": None,
        **special_tokens,
        **{name: of_client(value) for name, value in request["kwargs"].items()},
        "messages": messages,
        "tools": of_client(request["tools"]),
        "add_generation_prompt": request["add_generation_prompt"],
    }
    text = _generated(template, values, max_bytes)
    if _MARKUP.search(source) is not None:
        text = _marked_beside_markup(template, source, values, max_bytes, text)
    return text if final is None else _cut_at_tag(text, final)


def _generated(template: jinja2.Template, values: dict[str, Any], max_bytes: int) -> str:
    parts, size = [], 0
    for part in template.generate(values):
        size += len(part)
        if size > max_bytes:
            raise RenderError(f"the chat template's result is larger than {max_bytes} characters")
        parts.append(part)
    return concatenated(parts)


def _marked_beside_markup(
    template: jinja2.Template, source: str, values: dict[str, Any], max_bytes: int, text: str
) -> str:
    """The result of a template that escapes HTML, which Jinja does with strings of its own kind. text is what comes out
    without them; where they make a difference, the render as a whole is traced."""
    exact = traced(_generated, (template, _with_plain_names(values), max_bytes), {})
    assert isinstance(exact, str)
    return exact if "autoescape" in source or exact != text else text


def _with_plain_names(value: Any) -> Any:
    """value with unmarked names, by which a template finds what it holds."""
    if isinstance(value, list):
        return [_with_plain_names(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    plain = ((str.__str__(name) if name.isidentifier() else name, entry) for name, entry in value.items())
    return {name: _with_plain_names(entry) for name, entry in plain}


def _of_client(message: Any) -> Any:
    """A message whose strings are the client's, but for a role that every template knows: a choice, not a text."""
    marked = of_client(message)
    is_known = isinstance(marked, dict) and marked.get("role") in _ROLES
    return {**marked, "role": str.__str__(marked["role"])} if is_known else marked


def _with_known_role(message: Any, source: str) -> Any:
    """A developer is the system to templates that don't know one: some leave out messages of roles that they lack."""
    is_unknown = isinstance(message, dict) and message.get("role") == "developer" and "developer" not in source
    return {**message, "role": "system"} if is_unknown else message


def _with_reasoning_names(message: Any) -> Any:
    """Reasoning comes under several names; templates read one or the other."""
    if not isinstance(message, dict):
        return message
    reasoning = next((message[key] for key in _REASONING_FIELDS if message.get(key) is not None), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _tag_final_message(messages: list[Any], source: str) -> str:
    """Mark where the final message's text ends; returns that text."""
    if not messages or messages[-1].get("content") is None:
        raise RenderError("continue_final_message needs a final message with content")
    if "content" not in source:
        raise RenderError("continue_final_message does not work with this model's chat template")
    last = dict(messages[-1])
    content = last["content"]
    if isinstance(content, str):
        last["content"] = content + _CONTINUE_TAG
    else:
        content, last["content"] = _tag_last_text(content)
    messages[-1] = last
    return content


def _tag_last_text(parts: list[Any]) -> tuple[str, list[Any]]:
    for index in range(len(parts) - 1, -1, -1):
        part = parts[index]
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            tagged = {**part, "text": part["text"] + _CONTINUE_TAG}
            return part["text"], [*parts[:index], tagged, *parts[index + 1 :]]
    raise RenderError("continue_final_message needs text in the final message")


def _cut_at_tag(text: str, final: str) -> str:
    tag = _CONTINUE_TAG.strip()
    if final.strip() not in text or tag not in text:
        raise RenderError("continue_final_message: the chat template does not keep the final message's text")
    cut = text.rindex(tag)
    keeps_space = text[cut : cut + len(_CONTINUE_TAG)] == _CONTINUE_TAG
    return text[:cut] if keeps_space else text[:cut].rstrip()


# ---------------------------------------------------------------- the process


def _set_up(message: dict[str, Any]) -> Work:
    """template None: each question brings its own."""
    source = message["template"]
    special_tokens = message.get("special_tokens", {})
    format: Format = message.get("content_format", "auto")
    kept = None if source is None else Compiled.of(source, format)

    def work(request: dict[str, Any], num_bytes: int) -> dict[str, Any]:
        compiled = _template_of_request(request["template"], format) if kept is None else kept
        max_bytes = max(MIN_OUTPUT_BYTES, OUTPUT_PER_INPUT * num_bytes)
        text = render(compiled, special_tokens, request, max_bytes)
        return {"text": text, "client_spans": client_spans(text)}

    return work


def _template_of_request(source: str, format: Format) -> Compiled:
    try:
        return Compiled.of(source, format)
    except jinja2.exceptions.TemplateSyntaxError as error:
        reason = f"line {error.lineno}: {error.message}"
    except RecursionError:
        reason = "it nests too deeply"
    raise RenderError(f"the request's chat_template is not valid Jinja: {reason}")


def _reason(error: Exception) -> str:
    match error:
        case RenderError():
            return str(error)
        case jinja2.exceptions.TemplateSyntaxError():
            return f"line {error.lineno}: {error.message}"
        case jinja2.exceptions.TemplateError():
            return error.message or type(error).__name__
        case MemoryError():
            return "the chat template took too much memory"
        case RecursionError():
            return "the chat template nests too deeply"
        case _:
            return f"the chat template failed: {type(error).__name__}: {error}"


def main() -> None:
    serve(_set_up, _reason, name="chat template", alarm_s=ALARM_S)


if __name__ == "__main__":
    main()
