"""A small example of each operation's request, for the OpenAPI document and to send from /docs.

MODEL stands for a model of the server; the page puts a real name there. A test checks each body against its schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

MODEL: Final = "MODEL"
_QUESTION: Final = [{"role": "user", "content": "Name the capital of France."}]
_CHAT: Final = {"model": MODEL, "messages": _QUESTION, "max_tokens": 40, "temperature": 0, "stream": True}
_RERANK: Final = {
    "model": MODEL,
    "query": "Which animal barks?",
    "documents": ["A cat purrs.", "A dog barks.", "A fish is silent."],
    "top_n": 2,
}
_SCORE: Final = {"model": MODEL, "text_1": "Which animal barks?", "text_2": ["A cat purrs.", "A dog barks."]}
_MESSAGES: Final = {"model": MODEL, "messages": _QUESTION, "system": "Answer in one word."}
_TOKENIZE: Final = {"model": MODEL, "prompt": "Hello, world!", "return_token_strs": True}

BODIES: Final[Mapping[str, dict[str, Any]]] = {
    "/v1/chat/completions": _CHAT,
    "/invocations": _CHAT,
    "/v1/completions": {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 30, "temperature": 0.8, "seed": 1},
    "/v1/responses": {"model": MODEL, "input": "Name three colours.", "max_output_tokens": 40, "store": True},
    "/v1/embeddings": {"model": MODEL, "input": ["A cat purrs.", "A dog barks."]},
    "/v1/rerank": _RERANK,
    "/rerank": _RERANK,
    "/v2/rerank": _RERANK,
    "/v1/score": _SCORE,
    "/score": _SCORE,
    "/v1/messages": _MESSAGES | {"max_tokens": 40},
    "/v1/messages/count_tokens": _MESSAGES,
    "/v1/batches": {"input_file_id": "file_id", "endpoint": "/v1/chat/completions", "completion_window": "24h"},
    "/tokenize": _TOKENIZE,
    "/v1/tokenize": _TOKENIZE,
    "/detokenize": {"model": MODEL, "tokens": [1, 2, 3]},
    "/v1/detokenize": {"model": MODEL, "tokens": [1, 2, 3]},
    "/v1/load_lora_adapter": {"lora_name": "my-adapter", "lora_path": "my-adapter"},
    "/v1/unload_lora_adapter": {"lora_name": "my-adapter"},
    "/v1/models/load": {"model": MODEL, "keep_alive": "10m"},
    "/models/load": {"model": MODEL, "keep_alive": "10m"},
    "/v1/models/unload": {"model": MODEL},
    "/models/unload": {"model": MODEL},
}
"""Bodies as JSON, by path."""

UPLOADS: Final[Mapping[str, str]] = {
    "/v1/files": '{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": '
    '{"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 20}}\n'
}
"""Contents of uploaded files, by path."""
