"""The parameters of a request that a program makes (plugserve.SamplingParams)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from plugserve.core.contracts.sampling import SamplingParams as SequenceParams
from plugserve.core.errors import RequestError

_NOT_ASKED_FOR: Final = {"grammar": "use structured_outputs", "pooling": "use LLM.embed"}
_OTHER_NAMES: Final = ("num_logprobs", "num_prompt_logprobs")


class StructuredOutputsParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an answer must match: exactly one of a JSON schema (json; its text, or a pydantic model's class), a regular
    expression, choices, a grammar (Lark or GBNF), any JSON object."""

    json: str | Mapping[str, Any] | type | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None

    def body(self) -> dict[str, Any]:
        """As the field structured_outputs of a request's body. A pydantic model's class stands for its schema."""
        given = {name: getattr(self, name) for name in self.__struct_fields__ if getattr(self, name) is not None}
        schema = getattr(given.get("json"), "model_json_schema", None)
        if schema is not None:
            given["json"] = schema()
        if "choice" in given:
            given["choice"] = list(given["choice"])
        return given


class _EverySampling(msgspec.StructMeta):
    """A class of which the parameters that hooks get count as instances, too."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, SequenceParams)


class SamplingParams(SequenceParams, metaclass=_EverySampling, frozen=True, kw_only=True, omit_defaults=True):
    """Parameters of LLM.generate and LLM.chat, with vLLM's names and defaults.

    The fields of plugserve_sampling_params' params are among them; here seed None draws one, max_tokens None takes all
    that the context leaves, and bad_words are texts. logprobs and prompt_logprobs are num_logprobs and
    num_prompt_logprobs by their names in requests. Values are checked when the request is made, as those of a request
    over HTTP. The params of a hook are instances of this class to isinstance, without what only programs set.
    """

    n: int = 1
    max_tokens: int | None = 16  # type: ignore[assignment]
    seed: int | None = None  # type: ignore[assignment]
    stop: str | Sequence[str] | None = None
    include_stop_str_in_output: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    bad_words: Sequence[str] = ()  # type: ignore[assignment]
    skip_special_tokens: bool = True
    truncate_prompt_tokens: int | None = None
    structured_outputs: StructuredOutputsParams | Mapping[str, Any] | None = None

    def body(self) -> dict[str, Any]:
        """As fields of a request's body; logprobs as those of completions. Raises RequestError for a field that only
        plugins set."""
        for name in _NOT_ASKED_FOR:
            if getattr(self, name):
                raise RequestError(f"{name}: set by the server alone; {_NOT_ASKED_FOR[name]}", param=name)
        fields = {name: getattr(self, name) for name in _FIELDS}
        fields |= {name: list(fields[name]) or None for name in _LISTS}
        bias = self.logit_bias or {}
        fields["logit_bias"] = {str(token): value for token, value in bias.items()} or None
        fields["stop"] = self.stop if isinstance(self.stop, str | None) else list(self.stop)
        fields["logprobs"] = self.num_logprobs if self.logprobs is None else self.logprobs
        fields["prompt_logprobs"] = self.num_prompt_logprobs if self.prompt_logprobs is None else self.prompt_logprobs
        asked = self.structured_outputs
        fields["structured_outputs"] = asked.body() if isinstance(asked, StructuredOutputsParams) else asked
        return {name: value for name, value in fields.items() if value is not None}


_FIELDS: Final = (
    *(name for name in SequenceParams.__struct_fields__ if name not in {*_NOT_ASKED_FOR, *_OTHER_NAMES}),
    "n",
    "include_stop_str_in_output",
    "skip_special_tokens",
    "truncate_prompt_tokens",
)
_LISTS: Final = ("stop_token_ids", "bad_words", "allowed_token_ids")
