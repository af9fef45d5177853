"""The messages of a chat, and the file that they are saved in."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plugserve.core.errors import UserError

Message = dict[str, str]

_ROLES = ("system", "user", "assistant")


@dataclass(slots=True)
class Conversation:
    """system comes before messages, which are the user's and the model's in turn. fields go into each request."""

    model: str
    system: str | None = None
    messages: list[Message] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)

    def asked(self, text: str) -> list[Message]:
        """The messages of a request with one more from the user."""
        first = [{"role": "system", "content": self.system}] if self.system else []
        return [*first, *self.messages, {"role": "user", "content": text}]

    def add(self, text: str, answer: str) -> None:
        """Keep a message and its answer."""
        self.messages += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]

    def take_last(self) -> str | None:
        """Remove the last message of the user with its answer, and return it; None when there is none."""
        if len(self.messages) < 2:
            return None
        text = self.messages[-2]["content"]
        del self.messages[-2:]
        return text

    def save(self, path: str) -> Path:
        """Write everything as JSON, readable for the user alone. Raises UserError."""
        file = Path(os.path.expanduser(path))
        content = {
            "model": self.model, "system": self.system, "settings": self.fields, "messages": self.messages,
        }  # fmt: skip
        try:
            with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as opened:
                opened.write(json.dumps(content, ensure_ascii=False, indent=2) + "\n")
        except OSError as error:
            raise UserError(f"{path} can't be written: {error.strerror}") from None
        return file

    def load(self, path: str) -> None:
        """Replace system prompt, settings and messages by those of a file; a list of messages alone will do. The model
        stays. Raises UserError."""
        try:
            content = json.loads(Path(os.path.expanduser(path)).read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{path} can't be read: {error.strerror}") from None
        except ValueError:
            raise UserError(f"{path} is no JSON") from None
        if isinstance(content, list):
            content = {"messages": content}
        messages = content.get("messages") if isinstance(content, dict) else None
        if not isinstance(messages, list) or not all(map(_is_message, messages)):
            raise UserError(f"{path} holds no chat: a list of messages with role and content")
        first = [message["content"] for message in messages if message["role"] == "system"]
        rest = [{"role": one["role"], "content": one["content"]} for one in messages if one["role"] != "system"]
        if [message["role"] for message in rest] != ["user", "assistant"] * (len(rest) // 2):
            raise UserError(f"{path}: messages of user and assistant must take turns and end with an answer")
        fields = content.get("settings")
        self.system = content.get("system") or ("\n".join(first) or None)
        self.fields = dict(fields) if isinstance(fields, dict) else {}
        self.messages = rest


def _is_message(entry: Any) -> bool:
    return isinstance(entry, dict) and entry.get("role") in _ROLES and isinstance(entry.get("content"), str)
