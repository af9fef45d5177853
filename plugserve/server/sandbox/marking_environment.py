"""Jinja that keeps track of the client's characters (client_text.py): the sandbox in which chat templates run.

All operations of a template that make a string are overridden here: output, "~", "%", filters, calls of methods and
macros.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, Final

from jinja2 import nodes, pass_eval_context
from jinja2.compiler import CodeGenerator, Frame
from jinja2.filters import FILTERS, make_attrgetter
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from plugserve.server.sandbox.client_text import (
    ClientText,
    concatenated,
    holds_client_text,
    marks_of,
    traced,
)

_MAKES_TEXT: Final = (
    *("capitalize", "center", "e", "escape", "forceescape", "format", "indent", "lower", "pprint", "replace", "safe"),
    *("string", "striptags", "title", "trim", "truncate", "upper", "urlencode", "urlize", "wordwrap", "xmlattr"),
)
"""Filters whose result is a new string. Other filters return their input."""

_SCALARS: Final = (str, int, float, type(None), Undefined)


class _MarkingCode(CodeGenerator):
    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        """a ~ b: Jinja's own function joins plain strings."""
        if frame.eval_ctx.volatile or frame.eval_ctx.autoescape:
            super().visit_Concat(node, frame)
            return
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class MarkingEnvironment(ImmutableSandboxedEnvironment):
    """Give it ClientText, and what it renders holds their marks: concatenate what Template.generate yields."""

    code_generator_class = _MarkingCode
    concat = staticmethod(concatenated)
    intercepted_binops = frozenset(["%"])

    def __init__(self, **options: Any) -> None:
        super().__init__(finalize=_printed, **options)
        for name in _MAKES_TEXT:
            self.filters[name] = _marking(FILTERS[name])
        self.filters["join"] = _join

    def joined(self, parts: Iterable[Any]) -> str:
        return concatenated(map(_as_text, parts))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, str):
            return traced(str.__mod__, (left, right), {})
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps str.format
        owner = getattr(method, "__self__", None)
        if not isinstance(owner, str | bytes):
            result = super().call(__context, __obj, *args, **kwargs)
            is_marked = owner is not None or isinstance(__obj, Macro | LoopContext | type)
            return result if is_marked else _whole(result, args, kwargs)
        if isinstance(owner, bytes):
            result = super().call(__context, __obj, *args, **kwargs)
            return ClientText(result) if isinstance(result, str) else result
        if __obj is not method:

            def work(text: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
                call = __self.wrap_str_format(getattr(text, method.__name__))
                assert call is not None
                return call(*args, **kwargs)

            return traced(work, (owner, args, kwargs), {})
        if not isinstance(owner, ClientText) and holds_client_text((args, kwargs)):
            __obj = getattr(ClientText(owner, marks_of(owner)), method.__name__)
        return super().call(__context, __obj, *args, **kwargs)


def _marking(work: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose result is marked as what it was made from."""

    @functools.wraps(work)
    def marked(*args: Any, **kwargs: Any) -> Any:
        result = work(*args, **kwargs)
        if isinstance(result, ClientText) or not isinstance(result, str):
            return result
        if not holds_client_text((args, kwargs)):
            return result
        return traced(work, args, kwargs)

    return marked


def _whole(result: Any, args: Any, kwargs: Any) -> Any:
    """The result of an arbitrary function, marked by probing."""
    is_new = isinstance(result, str) and not isinstance(result, ClientText)
    return ClientText(result) if is_new and holds_client_text((args, kwargs)) else result


def _as_text(value: Any) -> str:
    """str(value), marked."""
    if isinstance(value, _SCALARS) or not holds_client_text(value):
        return str(value)
    return ClientText(str(value))


def _printed(value: Any) -> Any:
    """The output of {{ value }}, for values whose output differs from str(value)."""
    return value if isinstance(value, _SCALARS) else _as_text(value)


@pass_eval_context
def _join(context: nodes.EvalContext, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> Any:
    if context.autoescape:
        return FILTERS["join"](context, value, d, attribute)
    if attribute is not None:
        value = map(make_attrgetter(context.environment, attribute), value)
    separator = str(d)
    return ClientText(separator, marks_of(separator)).join(map(_as_text, value))
