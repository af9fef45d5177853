"""The fields that bodies of generating APIs share, and their conversion to a GenerationRequest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Final, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from plugserve.core.errors import RequestError
from plugserve.server.api.json_body import Refusals, is_given, refuse_unserved, validated
from plugserve.server.api.keep_alive import KeepAlive
from plugserve.server.pipeline.generation_request import Conversation, FieldNames, GenerationRequest, Texts
from plugserve.server.pipeline.sampling_fields import Count, SamplingFields

MAX_MESSAGES: Final = 2**13
_MAX_STOPS: Final = 64
_MAX_STOP_CHARACTERS: Final = 1024
_MAX_FIELDS: Final = 1000

Priority = Annotated[int, Field(ge=-(2**31), le=2**31 - 1)]
RequestId = Annotated[str, Field(pattern=r"^[\x21-\x7e]{1,128}$")]


def _no_zero(count: int) -> int:
    if count == 0:
        raise ValueError("must be at least 1, or -1 for what the context holds, got 0")
    return count


Truncation = Annotated[int, Field(ge=-1), AfterValidator(_no_zero)]
"""How many tokens of a longer prompt are kept; -1 for what the context holds."""


class GenerationFields(SamplingFields):
    """The fields of every API that samples tokens. None means "not given" for every field: clients send null."""

    model: str | None = None
    stream: bool | None = None
    skip_special_tokens: bool | None = None
    priority: Priority | None = None
    cache_salt: Annotated[str, Field(min_length=1)] | None = None
    request_id: RequestId | None = None
    keep_alive: KeepAlive = None

    def base_request(self, prompts: Conversation | Texts, names: FieldNames) -> GenerationRequest:
        """A request with the fields that are declared here."""
        return GenerationRequest(
            prompts=prompts,
            names=names,
            model=self.model,
            request_id=self.request_id,
            sampling=self,
            stream=bool(self.stream),
            skip_special_tokens=self.skip_special_tokens is not False,
            priority=self.priority or 0,
            cache_salt=self.cache_salt or "",
            keep_alive_s=self.keep_alive,
        )


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True)

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class GenerationBody(GenerationFields):
    """The common fields of chat and completions."""

    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stop: Any = None
    include_stop_str_in_output: bool | None = None
    prompt_logprobs: Count | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    response_format: Any = None
    structured_outputs: Any = None
    user: str | None = None
    truncate_prompt_tokens: Truncation | None = None
    spaces_between_special_tokens: bool | None = None  # fast tokenizers add none anyway
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None

    @property
    def is_structured(self) -> bool:
        """The answer has to match something."""
        return self.response_format is not None or self.structured_outputs is not None

    @field_validator("stop")
    @classmethod
    def _check_stop(cls, stop: Any) -> list[str]:
        return stop_strings(stop)

    def base_request(self, prompts: Conversation | Texts, names: FieldNames) -> GenerationRequest:
        includes_usage = self.stream_options is not None and bool(self.stream_options.include_usage)
        in_every_chunk = self.stream_options is not None and bool(self.stream_options.continuous_usage_stats)
        return replace(
            super().base_request(prompts, names),
            num_choices=self.n or 1,
            stop=self.stop or (),
            includes_stop=bool(self.include_stop_str_in_output),
            num_prompt_logprobs=self.prompt_logprobs,
            returns_token_ids=bool(self.return_token_ids),
            names_token_ids=self.return_tokens_as_token_ids,
            truncate_prompt_tokens=self.truncate_prompt_tokens,
            usage_in_stream=includes_usage,
            usage_in_every_chunk=in_every_chunk,
            user=self.user or "",
            metadata=self.metadata or {},
        )


def stop_strings(stop: Any) -> list[str]:
    """A body's stop: one string or a list. Raises ValueError."""
    stops = [stop] if isinstance(stop, str) else stop
    if stops is None:
        return []
    if isinstance(stops, list) and len(stops) > _MAX_STOPS:
        raise ValueError(f"at most {_MAX_STOPS} stop strings are allowed, got {len(stops)}")
    if not isinstance(stops, list) or not all(isinstance(entry, str) for entry in stops):
        raise ValueError("must be a string or a list of strings")
    if "" in stops:
        raise ValueError("must not hold an empty string")
    longest = max(map(len, stops), default=0)
    if longest > _MAX_STOP_CHARACTERS:
        raise ValueError(f"a stop string may have {_MAX_STOP_CHARACTERS} characters at most, got {longest}")
    return stops


def _is_beyond_text(value: Any) -> bool:
    return is_given(value) and value != ["text"]


def _is_above_one(value: Any) -> bool:
    return value is not None and value != 1


NOT_SERVED: Final[Refusals] = {
    "functions": is_given,
    "function_call": lambda value: value not in (None, "none", "auto"),
    "suffix": is_given,
    "best_of": _is_above_one,
    "length_penalty": _is_above_one,
    "audio": is_given,
    "modalities": _is_beyond_text,
    "prediction": is_given,
    "web_search_options": is_given,
    "use_beam_search": is_given,
    "prompt_embeds": is_given,
    "structural_tag": is_given,
    "logits_processors": is_given,
    "kv_transfer_params": is_given,
    "thinking_token_budget": is_given,
    "watermark": is_given,
    "watermarking": is_given,
    "watermarking_config": is_given,
    "store": is_given,
}
"""Fields of chat and completions that would change an answer and that plugserve doesn't implement."""

Body = TypeVar("Body", bound=GenerationBody)


def parse_body(schema: type[Body], body: Mapping[str, Any]) -> tuple[Body, list[str]]:
    """Check a client's JSON object against schema; returns it with the names of unrecognised fields. Raises
    RequestError (400)."""
    if len(body) > _MAX_FIELDS:
        raise RequestError(f"The body has {len(body)} fields; at most {_MAX_FIELDS} are allowed.")
    refuse_unserved(body, NOT_SERVED)
    unknown = body.keys() - schema.model_fields.keys() - NOT_SERVED.keys()
    guided = {name: is_given for name in unknown if name.startswith("guided_")}
    refuse_unserved(body, guided)
    parsed = validated(schema, body)
    _check_stream_options(parsed)
    return parsed, sorted(unknown - guided.keys())


def _check_stream_options(body: GenerationBody) -> None:
    if body.stream_options is not None and not body.stream:
        raise RequestError("stream_options: only allowed when stream is true.", param="stream_options")
    if body.stream and body.prompt_logprobs is not None:
        raise RequestError("prompt_logprobs: not available when stream is true.", param="prompt_logprobs")
