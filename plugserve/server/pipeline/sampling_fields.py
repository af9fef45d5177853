"""The sampling fields of a request: each is declared once here, and every API that generates takes it.

A field's declaration holds its name, JSON type and range (which check bodies and make the OpenAPI document) and a
Parameter: how its value becomes the SamplingParams field of the same name. A new sampling field is one line in
SamplingFields, beside its meaning in core's SamplingParams and in the sampler.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, FailFast, Field, field_validator
from pydantic_core import PydanticKnownError

from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.errors import RequestError
from plugserve.server.api.json_body import shown
from plugserve.server.pipeline.limits import Limits, check_token_ids

_MAX_BIAS: Final = 100
_INT64_MIN: Final = -(2**63)
_INT64_MAX: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class TokenSpace:
    """The part of the model's vocabulary that sampling fields use."""

    vocab_size: int
    encode: Callable[..., list[int]]


@dataclass(frozen=True, slots=True)
class Parameter:
    """Marks a field of a body that becomes the sampling parameter of its name.

    convert makes the parameter of the JSON value, and may raise RequestError (400). has_model_default: a request
    without the field takes the model's own value (generation_config.json) where there is one.
    """

    convert: Callable[[Any, TokenSpace], Any]
    has_model_default: bool = False


def _number(value: Any, tokens: TokenSpace) -> float:
    return float(value)


def _unchanged(value: Any, tokens: TokenSpace) -> Any:
    return value


def _top_k(value: Any, tokens: TokenSpace) -> int:
    return max(0, int(value))


def _logit_bias(bias: Mapping[str, float], tokens: TokenSpace) -> dict[int, float] | None:
    checked: dict[int, float] = {}
    for key, value in bias.items():
        try:
            token_id = int(key)
        except ValueError:
            raise RequestError(f"logit_bias: keys must be token ids, got {shown(key)}", param="logit_bias") from None
        check_token_ids([token_id], tokens.vocab_size, "logit_bias")
        checked[token_id] = float(value)
    return checked or None


def _stop_token_ids(token_ids: list[int], tokens: TokenSpace) -> tuple[int, ...]:
    check_token_ids(token_ids, tokens.vocab_size, "stop_token_ids")
    return tuple(dict.fromkeys(token_ids))


def _allowed_token_ids(token_ids: list[int], tokens: TokenSpace) -> tuple[int, ...]:
    check_token_ids(token_ids, tokens.vocab_size, "allowed_token_ids")
    return tuple(dict.fromkeys(token_ids))


def _bad_words(words: Sequence[str], tokens: TokenSpace) -> tuple[tuple[int, ...], ...]:
    """Each word as token sequences: at the start of a line and after a space, as most vocabularies distinguish. One
    with a token that the model lacks is never generated."""
    spellings = dict.fromkeys(text for word in words for text in (word, word.lstrip(), " " + word.lstrip()))
    found = (tuple(tokens.encode(text, add_special_tokens=False)) for text in spellings if text)
    return tuple(dict.fromkeys(sequence for sequence in found if sequence and max(sequence) < tokens.vocab_size))


Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
BadWord = Annotated[str, Field(min_length=1, max_length=256)]
Bias = Annotated[float, Field(ge=-_MAX_BIAS, le=_MAX_BIAS)]
_MODELS: Final = Parameter(_number, has_model_default=True)
_NUMBER: Final = Parameter(_number)
_VALUE: Final = Parameter(_unchanged)


class SamplingFields(BaseModel):
    """The sampling fields of a body. None means "not given" for every field: clients send null."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, protected_namespaces=())

    temperature: Annotated[float | None, Field(ge=0, le=2, allow_inf_nan=False), _MODELS] = None
    top_p: Annotated[float | None, Field(gt=0, le=1), _MODELS] = None
    top_k: Annotated[int | None, Field(ge=-1, le=2**31 - 1), Parameter(_top_k, has_model_default=True)] = None
    min_p: Annotated[float | None, Field(ge=0, le=1), _MODELS] = None
    presence_penalty: Annotated[float | None, Field(ge=-2, le=2, allow_inf_nan=False), _NUMBER] = None
    frequency_penalty: Annotated[float | None, Field(ge=-2, le=2, allow_inf_nan=False), _NUMBER] = None
    repetition_penalty: Annotated[float | None, Field(gt=0, allow_inf_nan=False), _MODELS] = None
    seed: Annotated[int | None, Field(ge=_INT64_MIN, le=_INT64_MAX), _VALUE] = None
    logit_bias: Annotated[dict[str, Bias] | None, Parameter(_logit_bias)] = None
    min_tokens: Annotated[Count | None, _VALUE] = None
    stop_token_ids: Annotated[list[int] | None, FailFast(), Parameter(_stop_token_ids)] = None
    ignore_eos: Annotated[bool | None, _VALUE] = None
    bad_words: Annotated[list[BadWord] | None, FailFast(), Field(max_length=256), Parameter(_bad_words)] = None
    allowed_token_ids: Annotated[list[int] | None, FailFast(), Field(min_length=1), Parameter(_allowed_token_ids)] = (
        None
    )

    @field_validator("seed", mode="before")
    @classmethod
    def _check_seed(cls, seed: Any) -> Any:
        """The JSON reader gives integers beyond 64 bits as floats; their error names the range all the same."""
        if isinstance(seed, float) and seed >= _INT64_MAX:
            raise PydanticKnownError("less_than_equal", {"le": _INT64_MAX})
        if isinstance(seed, float) and seed <= _INT64_MIN:
            raise PydanticKnownError("greater_than_equal", {"ge": _INT64_MIN})
        return seed

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _first_wrong_bias(cls, bias: Any) -> Any:
        """Only the first wrong entry, where there is one: an error for each of thousands would hold up other requests,
        and lists alone can fail fast."""
        for key, value in bias.items() if isinstance(bias, dict) else ():
            if type(value) not in (int, float) or not -_MAX_BIAS <= value <= _MAX_BIAS:
                return {key: value}
        return bias


NO_SAMPLING: Final = SamplingFields()
"""The parameters of requests that sample no tokens."""

PARAMETERS: Final[Mapping[str, Parameter]] = {
    name: mark
    for name, field in SamplingFields.model_fields.items()
    for mark in field.metadata
    if isinstance(mark, Parameter)
}
"""The declared fields by name."""


def sampling_params(
    fields: SamplingFields,
    limits: Limits,
    tokens: TokenSpace,
    *,
    max_tokens: int,
    num_logprobs: int | None,
    num_prompt_logprobs: int | None,
    grammar: str,
) -> SamplingParams:
    """Checked parameters; a missing seed is drawn at random. Raises RequestError (400) that names the field."""
    values: dict[str, Any] = {}
    for name, parameter in PARAMETERS.items():
        value = getattr(fields, name)
        if value is None and parameter.has_model_default:
            value = limits.defaults.get(name)
        if value is not None:
            values[name] = parameter.convert(value, tokens)
    values.setdefault("seed", random.getrandbits(63))
    params = SamplingParams(
        max_tokens=max_tokens,
        num_logprobs=num_logprobs,
        num_prompt_logprobs=num_prompt_logprobs,
        grammar=grammar,
        **values,
    )
    _check_together(params)
    return params


def _check_together(params: SamplingParams) -> None:
    """Rules between parameters. Raises RequestError (400)."""
    if params.min_tokens > params.max_tokens:
        raise RequestError(
            f"min_tokens: must not be above max_tokens ({params.max_tokens}), got {params.min_tokens}",
            param="min_tokens",
        )
    single = {word[0] for word in params.bad_words if len(word) == 1}
    if params.allowed_token_ids and set(params.allowed_token_ids) <= single:
        raise RequestError("allowed_token_ids: bad_words leaves none of them.", param="allowed_token_ids")


def nth_seed(seed: int, index: int) -> int:
    """The seed of choice number index: seed + index, wrapped to a signed 64-bit number."""
    return (seed + index + 2**63) % 2**64 - 2**63
