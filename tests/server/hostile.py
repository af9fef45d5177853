"""Bodies that no honest client sends, made from a seed: types, sizes, nesting, unicode, numbers, truncation."""

import json
import random

PATHS = ("/v1/chat/completions", "/v1/completions")
OTHER_PATHS = (
    *("/v1/responses", "/v1/messages", "/v1/embeddings", "/tokenize", "/detokenize"),
    "/v1/messages/count_tokens",
)
FIELDS = (
    *("messages", "prompt", "model", "stream", "stream_options", "n", "temperature", "top_p", "top_k", "min_p", "seed"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "stop", "stop_token_ids", "echo"),
    *("ignore_eos", "min_tokens", "max_tokens", "max_completion_tokens", "logprobs", "top_logprobs", "prompt_logprobs"),
    *("skip_special_tokens", "return_token_ids", "priority", "cache_salt", "user", "request_id", "bad_words", "tools"),
    *("allowed_token_ids", "truncate_prompt_tokens", "metadata", "store", "chat_template", "chat_template_kwargs"),
    *(
        "response_format",
        "structured_outputs",
        "guided_regex",
        "guided_grammar",
        "guided_json",
        "tool_choice",
        "suffix",
    ),
    *("add_generation_prompt", "continue_final_message", "include_stop_str_in_output", "prompt_embeds", "__class__"),
)
TEXTS = (
    *("", "a", "\x00", "\ud800", "\U0001f600" * 50, "\u202e\u200b\ufeff", "é́́" * 90, "<|im_start|>system"),
    *(
        "<|im_end|>" * 40,
        "{{ 7*7 }}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "(a+)+$",
        "((((a*)*)*)*)*b",
        "a{1,9999}",
    ),
    *("../../etc/passwd", "x" * 1500, "\r\nSet-Cookie: a=b", "NaN", "-1", "1e999", "null", "' OR 1=1 --", "\n" * 300),
    'root ::= root root | "a"',
)
NUMBERS = (
    0,
    1,
    -1,
    2,
    1.5,
    -0.0,
    1e308,
    -1e308,
    1e-320,
    2**31,
    2**53 + 1,
    2**63,
    -(2**63) - 1,
    2**64,
    10**40,
    True,
    False,
)
LITERALS = (
    b"NaN",
    b"Infinity",
    b"-Infinity",
    b"1e999",
    b"9" * 5000,
    b"0x10",
    b"'a'",
    b"nul",
    b"[" * 3000,
    b'{"a":' * 900,
)
SCHEMAS = (
    {"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}},
    {"type": "json_schema", "json_schema": {"schema": {"type": "string", "pattern": "((((a*)*)*)*)*b"}}},
    {"type": "json_schema", "json_schema": {"name": "x", "schema": {"allOf": [{"$ref": "#/$defs/x"}]}}},
    {"type": "json_schema"},
    {"type": "grammar", "grammar": 'start: start start | "a"'},
)


BOMBS = (
    {"regex": "((((a*)*)*)*)*b"},
    {"regex": "(x+x+)+y"},
    {"regex": "a{1,9999}{1,9999}"},
    {"regex": "(a?){300}a{300}"},
    {"regex": "[" * 500},
    {"regex": "(.*a){30}"},
    {"choice": ["a" * 900] * 900},
    {"choice": [str(number) for number in range(1000)]},
    {"grammar": 'root ::= root root | "a"'},
    {"grammar": 'start: (("a"?)*)*'},
    {"json": {"$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"}] * 9}, "b": {"anyOf": [{"$ref": "#/$defs/a"}] * 9}}}},
    {"json": {"type": "array", "minItems": 10**9, "items": {"type": "string"}}},
    {"json": {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(900)}}},
    {"json": {"type": "string", "pattern": "^(([a-z])+.)+[A-Z]([a-z])+$"}},
)


class HostileBodies:
    """Iterate for (path, content type, body). Equal seeds give equal bodies. Few of them are well-formed requests, and
    those ask for a handful of tokens at most. is_wide: all routes that take a body, and bombs for grammars."""

    def __init__(self, seed: int, *, is_wide: bool = False) -> None:
        self._random = random.Random(seed)
        self._is_wide = is_wide

    def __iter__(self):
        return self

    def __next__(self) -> tuple[str, str, bytes]:
        path = self._random.choice(PATHS)
        if self._is_wide and self._random.random() < 0.3:
            path = self._random.choice(OTHER_PATHS)
        kind = self._random.random()
        if kind < 0.04:
            content_type = self._random.choice(["text/plain", "", "application/xml", "multipart/form-data", "json"])
        else:
            content_type = self._random.choice(
                ["application/json", "application/json; charset=utf-16", "APPLICATION/JSON"]
            )
        return path, content_type, self._body(path)

    def _body(self, path: str) -> bytes:
        draw = self._random.random()
        if draw < 0.04:
            return self._random.randbytes(self._random.randrange(300))
        if draw < 0.08:
            return json.dumps(self._value(3)).encode()
        body = self._fields(path)
        text = json.dumps(body, ensure_ascii=self._random.random() < 0.9)
        raw = text.encode("utf-8", "surrogatepass")
        if draw < 0.14:
            return raw[: self._random.randrange(len(raw) + 1)]
        if draw < 0.20:
            name = self._random.choice(FIELDS).encode()
            return raw[:-1] + b',"' + name + b'":' + self._random.choice(LITERALS) + b"}"
        if draw < 0.23:
            at = self._random.randrange(len(raw))
            return raw[:at] + self._random.randbytes(3) + raw[at + 1 :]
        return raw

    def _fields(self, path: str) -> dict:
        body = {"max_tokens": self._random.choice([1, 2, 4])}
        if self._random.random() < 0.8:
            if path in ("/v1/responses", "/v1/embeddings"):
                body["input"] = self._pick(self._text(), [self._text()], [1, 2, 3])
            elif path == PATHS[0] or "/messages" in path:
                body["messages"] = [{"role": self._pick("user", "system", "tool", ""), "content": self._text()}]
            else:
                body["prompt"] = self._pick(self._text(), [1, 2, 3], [[5], [6, 7]], ["a", self._text()])
        if self._is_wide and self._random.random() < 0.1:
            body["structured_outputs"] = self._pick(*BOMBS)
        for _ in range(self._random.choice([0, 1, 1, 2, 3])):
            name = self._random.choice(FIELDS)
            body[name] = self._pick(*SCHEMAS) if name == "response_format" else self._value(self._random.randrange(4))
        if isinstance(body.get("max_tokens"), int) and not isinstance(body["max_tokens"], bool):
            body["max_tokens"] = min(body["max_tokens"], 4)  # long answers are no attack, they only take time
        else:
            body["max_completion_tokens"] = 4
        body.pop("max_completion_tokens" if path == PATHS[1] else "", None)
        if path == "/v1/responses":
            body |= {"max_output_tokens": 2, "store": False}
        if not isinstance(body.get("n"), int) or body["n"] > 3:
            body["n"] = self._pick(0, 1, 1, 2, "2", 10**9)
        return body

    def _pick(self, *values):
        return self._random.choice(values)

    def _text(self) -> str:
        return self._random.choice(TEXTS)

    def _value(self, depth: int):
        draw = self._random.random()
        if depth and draw < 0.25:
            return [self._value(depth - 1) for _ in range(self._random.randrange(5))]
        if depth and draw < 0.45:
            return {self._pick(*FIELDS, *TEXTS[:6]): self._value(depth - 1) for _ in range(self._random.randrange(4))}
        if draw < 0.5:
            return self._deep(self._random.randrange(1, 200))
        if draw < 0.55:
            return [self._pick(0, "a", None)] * self._random.randrange(1, 2000)
        return self._pick(self._text(), self._pick(*NUMBERS), self._pick(*NUMBERS), None, "true", self._text())

    def _deep(self, depth: int):
        value = self._pick(1, "x", None)
        for _ in range(depth):
            value = [value] if depth % 2 else {"a": value}
        return value
