"""The bodies of POST /v1/load_lora_adapter and /v1/unload_lora_adapter. Unrecognised fields are ignored."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class LoadLoraBody(BaseModel):
    """load_inplace: an adapter of that name may be loaded already, and is replaced for new requests. base_model_name is
    needed where several models are served."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())

    lora_name: Annotated[str, Field(min_length=1, max_length=256)]
    lora_path: Annotated[str, Field(min_length=1, max_length=4096)]
    load_inplace: bool | None = None
    base_model_name: str | None = None


class UnloadLoraBody(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())

    lora_name: Annotated[str, Field(min_length=1, max_length=256)]
