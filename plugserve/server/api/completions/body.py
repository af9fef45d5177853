"""The body of POST /v1/completions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from plugserve.core.errors import RequestError
from plugserve.server.api.answer_rules import wanted_grammar
from plugserve.server.api.generation_body import GenerationBody
from plugserve.server.pipeline.generation_request import FieldNames, GenerationRequest, Texts
from plugserve.server.pipeline.limits import COMPLETIONS_NEW_TOKENS
from plugserve.server.pipeline.sampling_fields import Count

MAX_PROMPTS: Final = 2048


class CompletionBody(GenerationBody):
    prompt: Any = None
    max_tokens: Count | None = None
    logprobs: Count | None = None
    echo: bool | None = None

    def request(self) -> GenerationRequest:
        """Raises RequestError (400) for prompts of no known kind, or fields that don't go together."""
        if self.max_tokens == 0 and not self.echo:
            raise RequestError("max_tokens: must be at least 1 unless echo is true, got 0", param="max_tokens")
        grammar = None
        if self.is_structured:
            grammar = wanted_grammar(self.response_format, self.structured_outputs)
        return replace(
            self.base_request(Texts(split_prompts(self.prompt)), FieldNames("prompt")),
            max_new_tokens=self.max_tokens,
            default_new_tokens=COMPLETIONS_NEW_TOKENS,
            num_logprobs=self.logprobs,
            echo=bool(self.echo),
            grammar=grammar,
        )


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
