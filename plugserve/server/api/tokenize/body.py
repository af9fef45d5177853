"""The bodies of POST /tokenize and /detokenize. A conversation's own fields are ChatBody's (api/chat/body.py)."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, FailFast

from plugserve.core.errors import RequestError

CHAT_FIELDS: Final = frozenset(
    {"messages", "add_generation_prompt", "continue_final_message", "chat_template_kwargs", "tools", "tool_choice"}
)


class TokenizeBody(BaseModel):
    """Either a prompt or messages. add_special_tokens None: True for a prompt, False for messages, whose template
    writes them."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())

    model: str | None = None
    prompt: str | None = None
    messages: Any = None  # checked as ChatBody's
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())

    model: str | None = None
    tokens: Annotated[list[int], FailFast()]
    skip_special_tokens: bool | None = None


def check_tokenize(body: TokenizeBody) -> None:
    """Rules between fields. Raises RequestError (400)."""
    if body.prompt is None and body.messages is None:
        raise RequestError("prompt: this field is required (or messages).", code="missing", param="prompt")
    if body.prompt is not None and body.messages is not None:
        raise RequestError("prompt: can't be combined with messages; send one of them.", param="prompt")
