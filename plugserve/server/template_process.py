"""The process that renders one chat template: `python -m plugserve.server.template_process`.

A template comes with a model, so it is foreign code: it runs sandboxed, with little memory, in a process that can be
killed. Standard library and jinja2 only. Speaks length-prefixed JSON on stdin and stdout: first the template, then
one render at a time; leaves when stdin closes, even in the middle of a render; an alarm ends what holds Python up.
"""

from __future__ import annotations

import json
import os
import select
import signal
import struct
import sys
import threading
from collections.abc import Callable
from datetime import datetime
from typing import Any, BinaryIO

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MEMORY_BYTES = 1 << 30
ALARM_S = 15  # longer than any limit of the parent: only an orphan gets there
MIN_OUTPUT_BYTES = 4 << 20
OUTPUT_PER_INPUT = 4
_LENGTH = struct.Struct("<I")
_CONTINUE_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")


class _GenerationBlock(Extension):
    """{% generation %} ... {% endgeneration %} marks what an assistant said, for training; here it is only its body."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _SafeDict:
    """dict as templates may call it; the type itself would hand out its attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _SafeNamespace(Namespace):
    """namespace(...) without names that lead to Python's insides."""

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
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def make_environment() -> jinja2.Environment:
    """Jinja as chat templates expect it: what Hugging Face's apply_chat_template offers, sandboxed."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    environment.globals["dict"] = _SafeDict()
    environment.globals["namespace"] = _SafeNamespace
    return environment


class RenderError(Exception):
    """A render that has no result; the message goes to the client."""


def render(template: jinja2.Template, source: str, request: dict[str, Any], max_bytes: int) -> str:
    """One conversation as text. request holds ChatTemplate.render's arguments."""
    messages = [_with_reasoning_names(message) for message in request["messages"]]
    final = _tag_final_message(messages, source) if request["continue_final_message"] else None
    values = {
        "documents": None,
        **request["kwargs"],
        "messages": messages,
        "tools": request["tools"],
        "add_generation_prompt": request["add_generation_prompt"],
    }
    parts, size = [], 0
    for part in template.generate(values):
        size += len(part)
        if size > max_bytes:
            raise RenderError(f"the chat template's result is larger than {max_bytes} characters")
        parts.append(part)
    text = "".join(parts)
    return text if final is None else _cut_at_tag(text, final)


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


def _read_frame(stream: BinaryIO) -> bytes | None:
    """The next message; None when the parent is gone."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    body = stream.read(length)
    return body if len(body) == length else None


def _write_frame(stream: BinaryIO, answer: dict[str, Any]) -> None:
    body = json.dumps(answer).encode()
    stream.write(_LENGTH.pack(len(body)) + body)
    stream.flush()


def _limit_memory() -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError) as error:  # macOS refuses; the time limit holds everywhere
        print(f"chat template process: memory is not limited here ({error})", file=sys.stderr)


def _leave_with_parent(fd: int) -> None:
    """End the process as soon as the other end of fd is gone, whatever a template is doing meanwhile."""

    def watch() -> None:
        poller = select.poll()
        poller.register(fd, 0)  # hanging up is always reported
        poller.poll()
        os._exit(0)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def _answer(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What work returns, or {"error": why not}. An alarm ends the process if work outlives its parent's patience."""
    signal.alarm(ALARM_S)
    try:
        return work()
    except RenderError as error:
        return {"error": str(error)}
    except jinja2.exceptions.TemplateSyntaxError as error:
        return {"error": f"line {error.lineno}: {error.message}"}
    except jinja2.exceptions.TemplateError as error:
        return {"error": error.message or type(error).__name__}
    except MemoryError:
        return {"error": "the chat template took too much memory"}
    except RecursionError:
        return {"error": "the chat template nests too deeply"}
    except Exception as error:  # whatever a foreign template runs into is the answer
        return {"error": f"the chat template failed: {type(error).__name__}: {error}"}
    finally:
        signal.alarm(0)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr
    _leave_with_parent(stdin.fileno())
    _limit_memory()
    first = _read_frame(stdin)
    if first is None:
        return
    source = json.loads(first)["template"]
    compiled: list[jinja2.Template] = []

    def compile_template() -> dict[str, Any]:
        compiled.append(make_environment().from_string(source))
        return {"text": ""}

    _write_frame(stdout, _answer(compile_template))
    while compiled and (frame := _read_frame(stdin)) is not None:
        request, max_bytes = json.loads(frame), max(MIN_OUTPUT_BYTES, OUTPUT_PER_INPUT * len(frame))

        def render_request(request: dict[str, Any] = request, max_bytes: int = max_bytes) -> dict[str, Any]:
            return {"text": render(compiled[0], source, request, max_bytes)}

        _write_frame(stdout, _answer(render_request))


if __name__ == "__main__":
    main()
