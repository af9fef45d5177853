"""Request bodies: the fields that chat and completions share, and how a body becomes an object or a clear 400."""

from __future__ import annotations

import gc
import reprlib
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import PydanticKnownError

from plugserve.core.errors import RequestError

_INT64_MIN: Final = -(2**63)
_INT64_MAX: Final = 2**63 - 1
_MAX_SHOWN: Final = 60
_MAX_STOPS: Final = 64
_MAX_STOP_CHARACTERS: Final = 1024
_MAX_FIELDS: Final = 1000
_LARGE_BYTES: Final = 2**20

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
BadWord = Annotated[str, Field(min_length=1, max_length=256)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True)

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class GenerationBody(BaseModel):
    """What chat and completions have in common. None means "not given" for every field: clients send null."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: Annotated[int, Field(ge=_INT64_MIN, le=_INT64_MAX)] | None = None
    stop: Any = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: Count | None = None
    prompt_logprobs: Count | None = None
    skip_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    priority: Annotated[int, Field(ge=-(2**31), le=2**31 - 1)] | None = None
    response_format: Any = None
    structured_outputs: Any = None
    cache_salt: Annotated[str, Field(min_length=1)] | None = None
    user: str | None = None
    bad_words: Annotated[list[BadWord], Field(max_length=256)] | None = None
    allowed_token_ids: Annotated[list[int], Field(min_length=1)] | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    spaces_between_special_tokens: bool | None = None  # fast tokenizers add none in any case
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    request_id: Annotated[str, Field(pattern=r"^[\x21-\x7e]{1,128}$")] | None = None

    @field_validator("seed", mode="before")
    @classmethod
    def _check_seed(cls, seed: Any) -> Any:
        """The JSON reader gives integers beyond 64 bits as floats; say what is wrong with them all the same."""
        if isinstance(seed, float) and seed >= _INT64_MAX:
            raise PydanticKnownError("less_than_equal", {"le": _INT64_MAX})
        if isinstance(seed, float) and seed <= _INT64_MIN:
            raise PydanticKnownError("greater_than_equal", {"ge": _INT64_MIN})
        return seed

    @field_validator("truncate_prompt_tokens")
    @classmethod
    def _check_truncation(cls, count: int | None) -> int | None:
        if count == 0:
            raise ValueError("must be at least 1, or -1 for what the context holds, got 0")
        return count

    @field_validator("stop")
    @classmethod
    def _check_stop(cls, stop: Any) -> list[str]:
        stops = [stop] if isinstance(stop, str) else stop
        if stops is None:
            return []
        if not isinstance(stops, list) or not all(isinstance(entry, str) for entry in stops):
            raise ValueError("must be a string or a list of strings")
        if "" in stops:
            raise ValueError("must not hold an empty string")
        if len(stops) > _MAX_STOPS:
            raise ValueError(f"at most {_MAX_STOPS} stop strings are allowed, got {len(stops)}")
        longest = max(map(len, stops), default=0)
        if longest > _MAX_STOP_CHARACTERS:
            raise ValueError(f"a stop string may have {_MAX_STOP_CHARACTERS} characters at most, got {longest}")
        return stops

    @property
    def stop_strings(self) -> list[str]:
        return self.stop or []

    @property
    def usage_in_stream(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def usage_in_every_chunk(self) -> bool:
        return self.usage_in_stream and bool(self.stream_options and self.stream_options.continuous_usage_stats)


def _is_given(value: Any) -> bool:
    return value not in (None, False, "", [], {})


def _is_beyond_text(value: Any) -> bool:
    return _is_given(value) and value != ["text"]


def _is_above_one(value: Any) -> bool:
    return value is not None and value != 1


NOT_SERVED: Final[Mapping[str, Callable[[Any], bool]]] = {
    "functions": _is_given,
    "function_call": lambda value: value not in (None, "none", "auto"),
    "suffix": _is_given,
    "best_of": _is_above_one,
    "length_penalty": _is_above_one,
    "audio": _is_given,
    "modalities": _is_beyond_text,
    "prediction": _is_given,
    "web_search_options": _is_given,
    "use_beam_search": _is_given,
    "prompt_embeds": _is_given,
    "structural_tag": _is_given,
    "logits_processors": _is_given,
    "kv_transfer_params": _is_given,
    "thinking_token_budget": _is_given,
    "watermark": _is_given,
    "watermarking": _is_given,
    "watermarking_config": _is_given,
    "store": _is_given,
}
"""Fields that change an answer and that plugserve can't act on yet, with "does this value ask for it?"."""

Body = TypeVar("Body", bound=GenerationBody)
Schema = TypeVar("Schema", bound=BaseModel)


def read_json(body: bytes) -> Any:
    """A request's JSON. Raises orjson.JSONDecodeError. A large one is read without the cycle collector, which would
    walk through all values so far again and again; JSON has no cycles."""
    if len(body) < _LARGE_BYTES or not gc.isenabled():
        return orjson.loads(body)
    gc.disable()
    try:
        return orjson.loads(body)
    finally:
        gc.enable()


def parse_body(schema: type[Body], body: Mapping[str, Any], *, known: frozenset[str]) -> tuple[Body, list[str]]:
    """Check a client's JSON object against schema; returns it with the names of the fields that nobody knows.

    known: further fields that are understood although the schema does not carry them. Raises RequestError (400).
    """
    if len(body) > _MAX_FIELDS:
        raise RequestError(f"The body has {len(body)} fields; at most {_MAX_FIELDS} are allowed.")
    for name, value in body.items():
        asks_for_it = _is_given if name.startswith("guided_") else NOT_SERVED.get(name)
        if asks_for_it is not None and asks_for_it(value):
            raise RequestError(
                f"{name}: not supported by this server, got {shown(value)}; leave it out.",
                code="unsupported_value",
                param=name,
            )
    ignored = sorted(set(body) - set(schema.model_fields) - set(NOT_SERVED) - known)
    ignored = [name for name in ignored if not name.startswith("guided_")]
    parsed = validated(schema, body)
    _check_stream_options(parsed)
    return parsed, ignored


def validated(schema: type[Schema], body: Mapping[str, Any]) -> Schema:
    """body as an object of schema. Raises RequestError (400) that names the first field at fault."""
    try:
        return schema.model_validate(dict(body))
    except ValidationError as error:
        raise _request_error(error) from None


def _check_stream_options(body: GenerationBody) -> None:
    if body.stream_options is not None and not body.stream:
        raise RequestError("stream_options: only allowed when stream is true.", param="stream_options")
    if body.stream and body.prompt_logprobs is not None:
        raise RequestError("prompt_logprobs: not available when stream is true.", param="prompt_logprobs")


def _request_error(error: ValidationError) -> RequestError:
    first = error.errors(include_url=False)[0]
    path = [str(part) for part in first["loc"]]
    field = path[0] if path else None
    if first["type"] == "missing":
        return RequestError(f"{'.'.join(path)}: this field is required.", code="missing", param=field)
    message = first["msg"].removeprefix("Value error, ")
    got = "" if first["type"] == "value_error" else f", got {shown(first['input'])}"
    return RequestError(f"{'.'.join(path)}: {message}{got}", code=first["type"], param=field)


_shortener = reprlib.Repr()
_shortener.maxstring = _shortener.maxother = _shortener.maxlong = _MAX_SHOWN


def shown(value: Any) -> str:
    """A client's value as an error message repeats it: short, and made without walking through all of it."""
    text = _shortener.repr(value)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."
