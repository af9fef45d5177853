"""The body of POST /v1/batches."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field

from plugserve.core.contracts.requests import RequestView
from plugserve.server.batches.batch_store import Batch
from plugserve.server.batches.file_store import new_id

_WINDOW_S: Final = 24 * 3600


class BatchBody(BaseModel):
    """input_file_id: an uploaded file, each of whose lines is a request for endpoint."""

    model_config = ConfigDict(strict=True, extra="ignore")

    input_file_id: Annotated[str, Field(min_length=1, max_length=64)]
    endpoint: Literal[
        "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/rerank", "/v1/score"
    ]  # fmt: skip
    completion_window: Literal["24h"]
    metadata: Annotated[dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] | None,
                        Field(max_length=16)] = None  # fmt: skip

    def batch(self, view: RequestView) -> Batch:
        """A new batch of view's sender."""
        now, identity = int(time.time()), view.identity
        return Batch(
            id=new_id("batch_"),
            endpoint=self.endpoint,
            input_file_id=self.input_file_id,
            created_at=now,
            expires_at=now + _WINDOW_S,
            output_file_id=new_id("file-"),
            error_file_id=new_id("file-"),
            metadata=self.metadata,
            sender=identity.name if identity is not None else "",
            tenant=identity.tenant if identity is not None else "",
            attributes=_kept(identity.attributes) if identity is not None else {},
        )


def _kept(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes that a file can hold: JSON's values."""
    kept: dict[str, Any] = {}
    for name, value in attributes.items():
        try:
            kept[name] = orjson.loads(orjson.dumps(value))
        except (TypeError, ValueError):
            continue
    return kept
