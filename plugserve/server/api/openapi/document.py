"""The OpenAPI document, made from the schemas that check bodies.

OPERATIONS is the one list to keep: a test compares it with the app's routes.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from plugserve.server.api.anthropic.body import CountBody, MessagesBody
from plugserve.server.api.batches.body import BatchBody
from plugserve.server.api.chat.body import ChatBody
from plugserve.server.api.completions.body import MAX_PROMPTS, CompletionBody
from plugserve.server.api.embeddings.body import EmbeddingsBody
from plugserve.server.api.models.lora_body import LoadLoraBody, UnloadLoraBody
from plugserve.server.api.models.pool_routes import LoadModelBody, UnloadModelBody
from plugserve.server.api.openapi.examples import BODIES
from plugserve.server.api.openapi.field_texts import text_of
from plugserve.server.api.rerank.body import RerankBody, ScoreBody
from plugserve.server.api.responses.body import ResponsesBody
from plugserve.server.api.tokenize.body import DetokenizeBody, TokenizeBody

REF: Final = "#/components/schemas/"
JSON: Final = "application/json"


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path. answer names a schema of _ANSWERS; statuses are further ones that are no errors."""

    method: str
    path: str
    summary: str
    body: type[BaseModel] | None = None
    answer: str = "Object"
    streams: bool = False
    media_type: str = JSON
    error: str = "Error"
    statuses: tuple[int, ...] = ()


OPERATIONS: Final = (
    Operation("post", "/v1/chat/completions", "Answer a conversation", ChatBody, "ChatCompletion", streams=True),
    Operation("post", "/v1/completions", "Continue one text or several", CompletionBody, "Completion", streams=True),
    Operation("post", "/v1/responses", "Answer an input, and keep the answer", ResponsesBody, "Response", streams=True),
    Operation("get", "/v1/responses/{response_id}", "A stored response", answer="Response"),
    Operation("delete", "/v1/responses/{response_id}", "Forget a stored response", answer="Deleted"),
    Operation("post", "/v1/embeddings", "Inputs as vectors", EmbeddingsBody, "Embeddings"),
    Operation("post", "/v1/rerank", "Documents by their relevance to a query", RerankBody, "Reranked"),
    Operation("post", "/rerank", "As /v1/rerank", RerankBody, "Reranked"),
    Operation(
        "post", "/v2/rerank", "As /v1/rerank, in Cohere's form", RerankBody, "RerankedByCohere", error="CohereError"
    ),
    Operation("post", "/v1/score", "Scores of pairs of texts", ScoreBody, "Scores"),
    Operation("post", "/score", "As /v1/score", ScoreBody, "Scores"),
    Operation(
        "post", "/v1/messages", "Answer a conversation, Anthropic's way", MessagesBody, "Message", streams=True,
        error="AnthropicError",
    ),
    Operation(
        "post", "/v1/messages/count_tokens", "How many tokens a conversation has", CountBody, "TokenCount",
        error="AnthropicError",
    ),
    Operation("post", "/invocations", "As /v1/chat/completions", ChatBody, "ChatCompletion", streams=True),
    Operation("post", "/v1/files", "Upload a file of requests, as multipart/form-data", answer="File"),
    Operation("get", "/v1/files", "The files of the sender", answer="List"),
    Operation("get", "/v1/files/{file_id}", "One file", answer="File"),
    Operation("get", "/v1/files/{file_id}/content", "A file's bytes", media_type="application/octet-stream"),
    Operation("delete", "/v1/files/{file_id}", "Delete a file", answer="Deleted"),
    Operation("post", "/v1/batches", "Run a file's requests in the background", BatchBody, "Batch"),
    Operation("get", "/v1/batches", "The batches of the sender", answer="List"),
    Operation("get", "/v1/batches/{batch_id}", "One batch", answer="Batch"),
    Operation("post", "/v1/batches/{batch_id}/cancel", "Cancel a batch", answer="Batch"),
    Operation("get", "/v1/models", "The models that are served", answer="ModelList"),
    Operation("get", "/v1/models/{model_id}", "One model; its id may hold slashes", answer="Model"),
    Operation("post", "/tokenize", "The tokens of a text or a conversation", TokenizeBody, "Tokens"),
    Operation("post", "/v1/tokenize", "The tokens of a text or a conversation", TokenizeBody, "Tokens"),
    Operation("post", "/detokenize", "The text of tokens", DetokenizeBody, "Text"),
    Operation("post", "/v1/detokenize", "The text of tokens", DetokenizeBody, "Text"),
    Operation("post", "/v1/load_lora_adapter", "Load a LoRA adapter from below --lora-dir", LoadLoraBody, "Done"),
    Operation("post", "/v1/unload_lora_adapter", "Unload a LoRA adapter", UnloadLoraBody, "Done"),
    Operation("post", "/v1/models/load", "Load a model of the table", LoadModelBody, "ModelChanged"),
    Operation("post", "/v1/models/unload", "Unload a model", UnloadModelBody, "ModelChanged"),
    Operation("post", "/models/load", "As /v1/models/load", LoadModelBody, "ModelChanged"),
    Operation("post", "/models/unload", "As /v1/models/unload", UnloadModelBody, "ModelChanged"),
    Operation("get", "/health", "Whether every model can answer", answer="Health", statuses=(503,)),
    Operation("head", "/health", "Whether every model can answer", statuses=(503,)),
    Operation("get", "/ping", "As /health", answer="Health", statuses=(503,)),
    Operation("head", "/ping", "As /health", statuses=(503,)),
    Operation("post", "/ping", "As /health", answer="Health", statuses=(503,)),
    Operation("get", "/ready", "Whether a request would be admitted now", answer="Ready", statuses=(503,)),
    Operation("head", "/ready", "Whether a request would be admitted now", statuses=(503,)),
    Operation("get", "/load", "Requests in flight in the worker that answers", answer="Load"),
    Operation("get", "/version", "The server's version", answer="Version"),
    Operation("get", "/metrics", "Prometheus metrics", media_type="text/plain"),
    Operation("get", "/live", "What the server does now: a snapshot a second", media_type="text/event-stream"),
    Operation("get", "/live/requests", "The last requests, and why they were slow"),
    Operation("get", "/v1/memory", "What each model was predicted to take of memory, and takes now"),
    Operation("get", "/v1/plugins", "What is installed and active"),
    Operation("get", "/openapi.json", "This document"),
    Operation("get", "/docs", "This document as a page", media_type="text/html"),
)  # fmt: skip


def _object(**properties: str) -> dict[str, Any]:
    """An object that has these properties; a type that ends with ? may be null."""
    described: dict[str, Any] = {}
    for name, kind in properties.items():
        kinds = [kind.removesuffix("?"), "null"] if kind.endswith("?") else kind
        described[name] = {"type": kinds}
    return {"type": "object", "properties": described, "required": list(properties)}


_CHOICES: Final = _object(
    id="string", object="string", created="integer", model="string", choices="array", usage="object"
)
_ANSWERS: Final[Mapping[str, dict[str, Any]]] = {
    "Object": {"type": "object"},
    "Event": {
        "type": "object",
        "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
        "required": ["data"],
    },
    "ChatCompletion": _CHOICES,
    "Completion": _CHOICES,
    "Response": _object(
        id="string", object="string", created_at="integer", status="string", model="string", output="array",
        usage="object?", error="object?", incomplete_details="object?",
    ),
    "Done": _object(status="string", message="string"),
    "Deleted": _object(id="string", object="string", deleted="boolean"),
    "File": _object(
        id="string", object="string", bytes="integer", created_at="integer", filename="string", purpose="string",
        status="string", expires_at="integer?",
    ),
    "Batch": _object(
        id="string", object="string", endpoint="string", input_file_id="string", completion_window="string",
        status="string", output_file_id="string?", error_file_id="string?", created_at="integer",
        request_counts="object", errors="object?", metadata="object?",
    ),
    "List": _object(object="string", data="array", has_more="boolean"),
    "Embeddings": _object(object="string", data="array", model="string", usage="object"),
    "Reranked": _object(id="string", model="string", results="array", usage="object"),
    "RerankedByCohere": _object(id="string", results="array", meta="object"),
    "Scores": _object(id="string", object="string", created="integer", model="string", data="array", usage="object"),
    "CohereError": _object(message="string"),
    "Message": _object(
        id="string", type="string", role="string", model="string", content="array", stop_reason="string?",
        stop_sequence="string?", usage="object",
    ),
    "TokenCount": _object(input_tokens="integer"),
    "ModelList": _object(object="string", data="array"),
    "Model": _object(
        id="string", object="string", created="integer", owned_by="string", kind="string?", max_model_len="integer?",
        status="object",
    ),
    "ModelChanged": _object(success="boolean", model="object"),
    "Tokens": _object(count="integer", max_model_len="integer", tokens="array", token_strs="array?"),
    "Text": _object(prompt="string"),
    "Health": _object(status="string"),
    "Ready": _object(ready="boolean"),
    "Load": _object(server_load="integer"),
    "Version": _object(version="string"),
    "Error": {
        "type": "object",
        "properties": {"error": _object(message="string", type="string", param="string?", code="string?")},
        "required": ["error"],
    },
    "AnthropicError": {
        "type": "object",
        "properties": {"type": {"const": "error"}, "error": _object(type="string", message="string")},
        "required": ["type", "error"],
    },
}  # fmt: skip

_IDS: Final = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_TEXTS: Final = {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_PROMPTS}
_PROMPT: Final = {
    "anyOf": [
        {"type": "string"},
        _TEXTS,
        _IDS,
        {"type": "array", "items": _IDS, "minItems": 1, "maxItems": MAX_PROMPTS},
    ]
}
_STOP: Final = {
    "anyOf": [
        {"type": "string", "minLength": 1, "maxLength": 1024},
        {"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": 1024}, "maxItems": 64},
        {"type": "null"},
    ]
}
_ITEMS: Final = {"type": "array", "items": {"type": "object"}, "minItems": 1}
_TEXT_OR_BLOCKS: Final = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]}
_CHECKED_BY_HAND: Final[Mapping[str, Mapping[str, dict[str, Any]]]] = {
    "ChatBody": {"stop": _STOP},
    "CompletionBody": {"stop": _STOP, "prompt": _PROMPT},
    "EmbeddingsBody": {"input": _PROMPT},
    "ResponsesBody": {"input": {"anyOf": [{"type": "string"}, _ITEMS]}},
    "InputMessage": {"content": _TEXT_OR_BLOCKS},
    "MessagesBody": {"system": {"anyOf": [*_TEXT_OR_BLOCKS["anyOf"], {"type": "null"}]}},
    "CountBody": {"system": {"anyOf": [*_TEXT_OR_BLOCKS["anyOf"], {"type": "null"}]}},
}
"""Fields whose schema pydantic does not know, because plugserve's own code checks them."""

_ALSO_REQUIRED: Final = {"CompletionBody": ["prompt"], "EmbeddingsBody": ["input"], "ResponsesBody": ["input"]}


@functools.cache
def openapi_document(version: str, root_path: str = "") -> dict[str, Any]:
    """The whole document; don't change it. root_path is the path that a proxy serves this server below."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _describe(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "plugserve", "version": version, "description": "OpenAI's and Anthropic's HTTP APIs."},
        **({"servers": [{"url": root_path}]} if root_path else {}),
        "paths": paths,
        "components": {
            "schemas": _explained(_body_schemas() | dict(_ANSWERS)),
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"bearer": []}],
    }


def _body_schemas() -> dict[str, Any]:
    models = sorted({operation.body for operation in OPERATIONS if operation.body}, key=lambda model: model.__name__)
    _, document = models_json_schema([(model, "validation") for model in models], ref_template=REF + "{model}")
    schemas: dict[str, Any] = document["$defs"]
    for name, fields in _CHECKED_BY_HAND.items():
        for field, schema in fields.items():
            schemas[name]["properties"][field] = schema
    for name, required in _ALSO_REQUIRED.items():
        schemas[name].setdefault("required", []).extend(required)
    return schemas


def _explained(schemas: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The schemas with a description of each field. Fields of schemas share values: each gets a copy."""
    explained = {}
    for name, schema in schemas.items():
        fields = schema.get("properties", {})
        described = {field: {**value, "description": text_of(name, field)} for field, value in fields.items()}
        explained[name] = schema | ({"properties": described} if described else {})
    for name in ("Error", "AnthropicError"):
        error = explained[name]["properties"]["error"]
        fields = {field: {**value, "description": text_of(name, field)} for field, value in error["properties"].items()}
        explained[name]["properties"]["error"] = error | {"properties": fields}
    return explained


def _describe(operation: Operation) -> dict[str, Any]:
    name = operation.path.strip("/").replace("/", "_").replace("{", "").replace("}", "").replace(".", "_")
    described: dict[str, Any] = {
        "operationId": f"{operation.method}_{name}",
        "summary": operation.summary,
        "responses": _responses(operation),
    }
    if "{" in operation.path:
        parameter = operation.path.partition("{")[2].rstrip("}")
        schema = {"type": "string", "minLength": 1}
        described["parameters"] = [{"name": parameter, "in": "path", "required": True, "schema": schema}]
    if operation.body is not None:
        content = {JSON: {"schema": {"$ref": REF + operation.body.__name__}, "example": BODIES[operation.path]}}
        described["requestBody"] = {"required": True, "content": content}
    return described


def _responses(operation: Operation) -> dict[str, Any]:
    if operation.media_type == JSON:
        content: dict[str, Any] = {JSON: {"schema": {"$ref": REF + operation.answer}}}
    else:
        content = {operation.media_type: {"schema": {"type": "string"}}}
    if operation.streams:
        content["text/event-stream"] = {"schema": {"$ref": REF + "Event"}}
    answer = {"description": "The answer"} | ({} if operation.method == "head" else {"content": content})
    error = {"description": "An error", "content": {JSON: {"schema": {"$ref": REF + operation.error}}}}
    if operation.method == "head":
        del error["content"]
    return {"200": answer} | {str(status): answer for status in operation.statuses} | {"default": error}
