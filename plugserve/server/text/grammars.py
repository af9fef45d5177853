"""Compiles what an answer must match (a schema, an expression, choices) to a grammar that is safe for the engine.

Compiled once in a child process that may be killed (grammar_process.py in a SandboxPool), with limits on time and size.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import orjson

from plugserve.core.errors import RequestError
from plugserve.server.sandbox.fair_queue import ANONYMOUS, Sender
from plugserve.server.sandbox.sandbox import TookTooLongError
from plugserve.server.sandbox.sandbox_pool import SandboxPool
from plugserve.server.text.answer_parsers import Thinking

COMPILE_TIMEOUT_S: Final = 5.0
MAX_SOURCE_BYTES: Final = 64 * 1024
_MAX_KEPT: Final = 128
_REMEMBERED_S: Final = 300.0  # retry later: the machine may have been busy


@dataclass(frozen=True, slots=True)
class GrammarSource:
    """The source of a grammar that an answer must match, and the body's field (dotted) that sets it. thinking: the
    marks of thinking that comes before."""

    kind: Literal["json", "regex", "choice", "grammar", "lark"]
    source: Any
    field: str
    max_bytes: int = MAX_SOURCE_BYTES
    thinking: Thinking | None = None

    @property
    def param(self) -> str:
        """The top-level field."""
        return self.field.partition(".")[0]


_Key = tuple[str, bytes, Thinking | None]
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class _TooSlow:
    """A source that took too long, and until when it is refused for that."""

    reason: str
    until_s: float


class GrammarCompiler:
    """Compiles for one model's tokenizer (the text of its tokenizer.json, or the file). Good grammars are remembered,
    and for some minutes those that took too long."""

    def __init__(self, tokenizer: str | Path, *, timeout_s: float = COMPILE_TIMEOUT_S) -> None:
        set_up = {"tokenizer_file": str(tokenizer)} if isinstance(tokenizer, Path) else {"tokenizer": tokenizer}
        self._sandbox = SandboxPool(
            "plugserve.server.sandbox.grammar_process", set_up, name="grammar", timeout_s=timeout_s
        )
        self._kept: OrderedDict[_Key, str] = OrderedDict()
        self._too_slow: OrderedDict[_Key, _TooSlow] = OrderedDict()

    async def compile(self, wanted: GrammarSource, sender: Sender = ANONYMOUS) -> str:
        """llguidance's text form. Raises RequestError (400) that names the field and gives one line of reason,
        QueueFullError when too many grammars wait."""
        key = (wanted.kind, hashlib.blake2b(_dumped(wanted), digest_size=32).digest(), wanted.thinking)
        thinking = None if wanted.thinking is None else asdict(wanted.thinking)
        question = {"kind": wanted.kind, "source": wanted.source, "thinking": thinking}
        try:
            answer = self._known(key) or await self._sandbox.ask(question, sender, lambda: self._known(key))
        except TookTooLongError as error:
            _keep(self._too_slow, key, _TooSlow(str(error), time.monotonic() + _REMEMBERED_S))
            raise _refused(wanted, str(error), status=error.status) from None
        except RequestError as error:
            raise _refused(wanted, str(error), status=error.status) from None
        if "error" in answer:
            raise _refused(wanted, answer["error"])
        grammar: str = answer["grammar"]
        _keep(self._kept, key, grammar)
        return grammar

    def _known(self, key: _Key) -> dict[str, Any] | None:
        """The cached result for a source, if there is one."""
        if key in self._kept:
            return {"grammar": self._kept[key]}
        too_slow = self._too_slow.get(key)
        if too_slow is not None and time.monotonic() < too_slow.until_s:
            return {"error": too_slow.reason}
        return None

    async def close(self) -> None:
        await self._sandbox.close()


def _keep(kept: OrderedDict[_Key, _Value], key: _Key, value: _Value) -> None:
    """Cache value; evicts the least recently used entry."""
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > _MAX_KEPT:
        kept.popitem(last=False)


def _dumped(wanted: GrammarSource) -> bytes:
    try:
        text = orjson.dumps(wanted.source)
    except orjson.JSONEncodeError:
        raise _refused(wanted, "it nests too deeply") from None
    if len(text) > wanted.max_bytes:
        raise _refused(wanted, f"it has {len(text)} bytes, at most {wanted.max_bytes} are allowed")
    return text


def _refused(wanted: GrammarSource, reason: str, *, status: int = 400) -> RequestError:
    return RequestError(
        f"{wanted.field}: can't be used to bind the answer: {reason}",
        status=status,
        code="invalid_grammar",
        param=wanted.param,
    )
