"""The body of POST /v1/embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from plugserve.core.errors import RequestError
from plugserve.server.api.completions.body import split_prompts
from plugserve.server.api.generation_body import Priority, RequestId, Truncation
from plugserve.server.api.json_body import shown, validated
from plugserve.server.api.keep_alive import KeepAlive
from plugserve.server.pipeline.generation_request import FieldNames, GenerationRequest, Texts

_NOT_SERVED: Final = {
    "messages": "send the text as input",
}


class EmbeddingsBody(BaseModel):
    """input: a string, a list of strings, token ids, or a list of token-id lists. pooling, normalize and prompt_name
    are plugserve's own: how hidden states become a vector, whether it is scaled to length 1 (as OpenAI's are), and
    which of an encoder's prompts goes before the inputs. truncate_prompt_tokens cuts longer inputs, -1 to what fits."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())

    model: str | None = None
    input: Any = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    pooling: Literal["mean", "last", "cls", "max"] | None = None
    normalize: bool | None = None
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: Truncation | None = None
    prompt_name: str | None = None
    user: str | None = None
    priority: Priority | None = None
    request_id: RequestId | None = None
    keep_alive: KeepAlive = None

    def request(self) -> GenerationRequest:
        """Raises RequestError (400) for inputs of no known kind."""
        return GenerationRequest(
            prompts=Texts(split_inputs(self.input), self.add_special_tokens is not False),
            names=FieldNames("input"),
            model=self.model,
            request_id=self.request_id,
            pooling=self.pooling or "model",
            dimensions=self.dimensions,
            prompt_name=self.prompt_name,
            truncate_prompt_tokens=self.truncate_prompt_tokens,
            priority=self.priority or 0,
            user=self.user or "",
            keep_alive_s=self.keep_alive,
        )


def parse_embeddings(body: Mapping[str, Any]) -> tuple[EmbeddingsBody, list[str]]:
    """body checked, and the names of unrecognised fields. Raises RequestError (400)."""
    for name, reason in _NOT_SERVED.items():
        if body.get(name) is not None:
            raise RequestError(
                f"{name}: {reason}, got {shown(body[name])}; leave it out.", code="unsupported_value", param=name
            )
    parsed = validated(EmbeddingsBody, body)
    return parsed, sorted(body.keys() - EmbeddingsBody.model_fields.keys() - _NOT_SERVED.keys())


def split_inputs(input: Any) -> list[str] | list[list[int]]:
    """The texts or token ids to embed. Raises RequestError (400)."""
    try:
        return split_prompts(input)
    except RequestError as error:
        raise RequestError(str(error).replace("prompt", "input"), code=error.code, param="input") from None
