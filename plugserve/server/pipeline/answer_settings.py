"""The settings that change answers of every request: usage, the spelling of tokens, and the log of prompts."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from plugserve.core.settings.settings import Settings
from plugserve.server.pipeline.generation_request import GenerationRequest
from plugserve.server.pipeline.prompts import Prompt

_log = logging.getLogger("plugserve.request")  # the request-log plugin closes it with --disable-log-requests


class NullPromptLog:
    """Logs no prompts."""

    def note(self, request_id: str, model: str, prompts: Sequence[Prompt]) -> None:
        """Log the prompts of one request."""


class PromptLog(NullPromptLog):
    """Logs one line a prompt: its first max_length characters, or tokens of one without text; None: all of it."""

    def __init__(self, max_length: int | None = None) -> None:
        self._max_length = max_length

    def note(self, request_id: str, model: str, prompts: Sequence[Prompt]) -> None:
        for prompt in prompts:
            if prompt.text is None:
                key, shown = "prompt_token_ids", json.dumps(prompt.token_ids[: self._max_length], separators=(",", ":"))
            else:
                key, shown = "prompt", json.dumps(prompt.text[: self._max_length])
            _log.info(
                "prompt id=%s model=%s prompt_tokens=%d %s=%s",
                json.dumps(request_id) if not request_id.isprintable() else request_id,
                model,
                len(prompt.token_ids),
                key,
                shown,
            )


_NO_LOG: Final = NullPromptLog()


@dataclass(frozen=True, slots=True)
class AnswerSettings:
    """forces_usage: every stream ends with its usage. shows_cached_tokens: usage has them always, never, or (None)
    where there are any. names_token_ids: tokens of logprobs are written as token_id:N, unless a request says otherwise.
    """

    forces_usage: bool = False
    shows_cached_tokens: bool | None = None
    names_token_ids: bool = False
    prompt_log: NullPromptLog = _NO_LOG

    def applied(self, request: GenerationRequest) -> GenerationRequest:
        """request with what it leaves to the server."""
        own = request.names_token_ids
        return replace(
            request,
            usage_in_stream=request.usage_in_stream or self.forces_usage,
            shows_cached_tokens=self.shows_cached_tokens,
            names_token_ids=self.names_token_ids if own is None else own,
        )


def answer_settings(settings: Settings) -> AnswerSettings:
    return AnswerSettings(
        forces_usage=settings.enable_force_include_usage,
        shows_cached_tokens=settings.enable_prompt_tokens_details,
        names_token_ids=settings.return_tokens_as_token_ids,
        prompt_log=PromptLog(settings.max_log_len) if settings.log_prompts else _NO_LOG,
    )
