"""A response's output items: thinking, a message, function calls.

A plain response and a stream are made by the same steps; note is called with each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from plugserve.core.contracts.answers import AnswerDelta, ToolCallDelta

Note = Callable[[str, Mapping[str, Any]], None]
"""(an event's type, its fields)."""


class ResponseOutput:
    """One response's items. One is open at a time; what belongs to another one closes it. Calls come after words."""

    def __init__(self, response_id: str, note: Note) -> None:
        self.items: list[dict[str, Any]] = []
        self._key = response_id.partition("_")[2]
        self._note = note
        self._open: str | int | None = None  # "reasoning", "message", or a call's index
        self._texts: list[str] = []

    def add(self, parsed: AnswerDelta) -> None:
        """Take what one piece of the answer means."""
        if parsed.reasoning:
            self._add_text("reasoning", "reasoning_text", parsed.reasoning)
        if parsed.content:
            self._add_text("message", "output_text", parsed.content)
        for call in parsed.calls:
            self._add_call(call)

    def end(self, status: str) -> None:
        """Close the last item; a response without any has an empty message."""
        if not self.items:
            self._open_text("message", "output_text")
        self._close(status)

    # ---- text

    def _add_text(self, kind: str, part: str, text: str) -> None:
        if self._open != kind:
            self._close("completed")
            self._open_text(kind, part)
        self._texts.append(text)
        self._note_part(f"response.{part}.delta", delta=text, **_logprobs(part))

    def _open_text(self, kind: str, part: str) -> None:
        self._open = kind
        id = f"{'rs' if kind == 'reasoning' else 'msg'}_{self._key}"
        if any(item["id"] == id for item in self.items):
            id += f"_{len(self.items)}"
        item: dict[str, Any] = {"id": id, "type": kind, "status": "in_progress", "content": []}
        if kind == "reasoning":
            item |= {"summary": [], "encrypted_content": None}
        else:
            item["role"] = "assistant"
        self._open_item(item)
        self._note_part("response.content_part.added", part=_part(part, ""))

    # ---- calls

    def _add_call(self, call: ToolCallDelta) -> None:
        if self._open != call.index:
            self._close("completed")
            self._open = call.index
            assert call.id is not None
            item = {"id": call.id.replace("call_", "fc_", 1), "type": "function_call", "status": "in_progress"}
            self._open_item({**item, "call_id": call.id, "name": call.name, "arguments": ""})
        self._texts.append(call.arguments)
        if call.arguments:
            self._note_item("response.function_call_arguments.delta", delta=call.arguments)

    # ---- all

    def _open_item(self, item: dict[str, Any]) -> None:
        self.items.append(item)
        self._texts = []
        self._note("response.output_item.added", {"output_index": self._index, "item": dict(item)})

    def _close(self, status: str) -> None:
        if self._open is None:
            return
        item, text = self.items[-1], "".join(self._texts)
        item["status"] = status
        if item["type"] == "function_call":
            item["arguments"] = text
            self._note_item("response.function_call_arguments.done", arguments=text, name=item["name"])
        else:
            kind = "reasoning_text" if item["type"] == "reasoning" else "output_text"
            item["content"] = [_part(kind, text)]
            self._note_part(f"response.{kind}.done", text=text, **_logprobs(kind))
            self._note_part("response.content_part.done", part=_part(kind, text))
        self._note("response.output_item.done", {"output_index": self._index, "item": dict(item)})
        self._open = None

    @property
    def _index(self) -> int:
        return len(self.items) - 1

    def _note_item(self, kind: str, **fields: Any) -> None:
        self._note(kind, {"item_id": self.items[-1]["id"], "output_index": self._index, **fields})

    def _note_part(self, kind: str, **fields: Any) -> None:
        self._note_item(kind, content_index=0, **fields)


def _part(kind: str, text: str) -> dict[str, Any]:
    part: dict[str, Any] = {"type": kind, "text": text}
    return part | {"annotations": [], **_logprobs(kind)} if kind == "output_text" else part


def _logprobs(kind: str) -> dict[str, Any]:
    """Clients expect logprobs in text events; this API has none."""
    return {"logprobs": []} if kind == "output_text" else {}
