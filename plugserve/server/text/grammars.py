"""What a client wants an answer to match becomes a grammar that the engine can't stumble over.

Compiled once in a child process that may be killed (grammar_process.py in a Sandbox), with limits on time and size.
Knows nothing of bodies: schemas/structured.py reads the fields.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import orjson

from plugserve.core.errors import RequestError
from plugserve.server.sandbox.sandbox import Sandbox
from plugserve.server.text.answer_parsers import Thinking

COMPILE_TIMEOUT_S: Final = 5.0
MAX_SOURCE_BYTES: Final = 64 * 1024
_MAX_KEPT: Final = 128


@dataclass(frozen=True, slots=True)
class GrammarSource:
    """What an answer must match, and the body's field that says so (dotted). thinking may or must come before it."""

    kind: Literal["json", "regex", "choice", "grammar", "lark"]
    source: Any
    field: str
    max_bytes: int = MAX_SOURCE_BYTES
    thinking: Thinking | None = None

    @property
    def param(self) -> str:
        """The top-level field."""
        return self.field.partition(".")[0]


class GrammarCompiler:
    """Compiles for one model's tokenizer (the text of its tokenizer.json). Good grammars are remembered."""

    def __init__(self, tokenizer: str, *, timeout_s: float = COMPILE_TIMEOUT_S) -> None:
        self._sandbox = Sandbox(
            "plugserve.server.sandbox.grammar_process", {"tokenizer": tokenizer}, name="grammar", timeout_s=timeout_s
        )
        self._kept: OrderedDict[tuple[str, bytes, Thinking | None], str] = OrderedDict()

    async def compile(self, wanted: GrammarSource) -> str:
        """llguidance's text form. Raises RequestError (400) that names the field and gives one line of reason."""
        key = (wanted.kind, _dumped(wanted), wanted.thinking)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        try:
            thinking = None if wanted.thinking is None else asdict(wanted.thinking)
            answer = await self._sandbox.ask({"kind": wanted.kind, "source": wanted.source, "thinking": thinking})
        except RequestError as error:
            raise _refused(wanted, str(error), status=error.status) from None
        if "error" in answer:
            raise _refused(wanted, answer["error"])
        grammar: str = answer["grammar"]
        self._kept[key] = grammar
        if len(self._kept) > _MAX_KEPT:
            self._kept.popitem(last=False)
        return grammar

    async def close(self) -> None:
        await self._sandbox.close()


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
