"""The body of POST /v1/completions."""

from __future__ import annotations

from typing import Any, Final

from plugserve.core.errors import RequestError
from plugserve.server.api.generation_body import Count, GenerationBody

KNOWN: Final[frozenset[str]] = frozenset()
MAX_PROMPTS: Final = 2048


class CompletionBody(GenerationBody):
    prompt: Any = None
    max_tokens: Count | None = None
    logprobs: Count | None = None
    echo: bool | None = None

    @property
    def num_new_tokens(self) -> int | None:
        return self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs


def check_completion(body: CompletionBody) -> None:
    """Rules between fields. Raises RequestError (400)."""
    if body.max_tokens == 0 and not body.echo:
        raise RequestError("max_tokens: must be at least 1 unless echo is true, got 0", param="max_tokens")


def split_prompts(prompt: Any) -> list[str] | list[list[int]]:
    """The prompts of a body: a string, a list of strings, token ids, or a list of token-id lists.

    Raises RequestError (400). Ids are not checked against a vocabulary here.
    """
    if prompt is None:
        raise RequestError("prompt: this field is required.", code="missing", param="prompt")
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt, list) and prompt:
        if _are_ids(prompt):
            return [prompt]
        if len(prompt) > MAX_PROMPTS:
            raise RequestError(
                f"prompt: at most {MAX_PROMPTS} prompts in one request, got {len(prompt)}", param="prompt"
            )
        if all(isinstance(entry, str) for entry in prompt):
            return prompt
        if all(isinstance(entry, list) and entry and _are_ids(entry) for entry in prompt):
            return prompt
        if any(entry == [] for entry in prompt):
            raise _empty()
    if prompt == []:
        raise _empty()
    raise RequestError(
        "prompt: must be a string, a list of strings, a list of token ids or a list of token-id lists.", param="prompt"
    )


def _are_ids(entries: list[Any]) -> bool:
    return set(map(type, entries)) == {int}


def _empty() -> RequestError:
    return RequestError("prompt: must not be empty.", param="prompt")
