"""The process that compiles grammars for one model: `python -m plugserve.server.sandbox.grammar_process`.

A schema or expression comes from a client, so it is compiled in a process that can be killed (sandbox.py) before the
engine gets it. Imports llguidance only. Reads the tokenizer first, then one source at a time; answers with llguidance's
text form.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

from plugserve.server.sandbox.sandbox_process import Work, serve

WHITESPACE: Final = r"[ ]?|\n[ ]{0,24}"
"""The white space allowed between the tokens of JSON: one space, or a line break and indentation; without this limit
small models generate white space until max_tokens."""


_SAFE: Final = 2**53 - 1  # the largest integer that every reader of JSON keeps (RFC 8259, section 6)
_BOUNDS: Final = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_SCHEMA_LISTS: Final = ("anyOf", "oneOf", "allOf", "prefixItems")
_SCHEMA_MAPS: Final = ("properties", "patternProperties", "$defs", "definitions")
_SCHEMAS: Final = ("items", "additionalProperties")


class RejectedGrammarError(Exception):
    """The source can't be compiled; the message is sent to the client."""


def with_safe_integers(schema: Any) -> Any:
    """schema with bounds for integers that have none: without bounds small models generate digits until max_tokens.
    Every match of the result matches schema. Returns a copy if anything changes."""
    if not isinstance(schema, dict):
        return schema
    changed = {name: with_safe_integers(schema[name]) for name in _SCHEMAS if name in schema}
    for name in _SCHEMA_LISTS:
        if isinstance(schema.get(name), list):
            changed[name] = [with_safe_integers(entry) for entry in schema[name]]
    for name in _SCHEMA_MAPS:
        if isinstance(schema.get(name), dict):
            changed[name] = {key: with_safe_integers(entry) for key, entry in schema[name].items()}
    kinds = schema.get("type")
    is_integer = kinds == "integer" or (isinstance(kinds, list) and "integer" in kinds and "number" not in kinds)
    if is_integer and not any(name in schema for name in (*_BOUNDS, "enum", "const")):
        changed |= {"minimum": -_SAFE, "maximum": _SAFE}
    return {**schema, **changed}


def grammar_text(kind: str, source: Any) -> str:
    """llguidance's text form. source: a JSON schema, a regular expression, a list of choices, Lark or GBNF text."""
    from llguidance import LLMatcher
    from llguidance.gbnf_to_lark import any_to_lark

    match kind:
        case "json":
            schema = with_safe_integers(source)
            return LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_pattern": WHITESPACE})
        case "regex":
            return LLMatcher.grammar_from_regex(source)
        case "choice":
            choices = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in source)
            return LLMatcher.grammar_from_lark(f"start: {choices}")
        case "lark":
            return LLMatcher.grammar_from_lark(source)
        case "grammar":
            return LLMatcher.grammar_from_lark(any_to_lark(source))
    raise AssertionError(kind)


def after_thinking(grammar: str, opening: str, closing: str, is_open: bool, special_tokens: Collection[str]) -> str:
    """grammar, as llguidance's text form, for an answer that starts with thinking: necessarily if is_open, optionally
    otherwise. A mark that is a special token matches that token, any other mark its text."""
    inside = f"/(.|\\n)*/ {closing}" if closing in special_tokens else "text"
    text = "" if closing in special_tokens else f"text[suffix={json.dumps(closing)}]: /(.|\\n)*/\n"
    thinking = f"{inside} /[ \\n]{{0,4}}/"
    if not is_open:
        thinking = f"({opening if opening in special_tokens else json.dumps(opening)} {thinking})?"
    outer = {"name": "thinking", "lark_grammar": f"start: {thinking} @answer\n{text}"}
    if not grammar.lstrip().startswith("{"):
        return json.dumps({"grammars": [outer, {"name": "answer", "lark_grammar": grammar}]})
    bound = json.loads(grammar)
    first, *others = bound["grammars"]
    return json.dumps({**bound, "grammars": [outer, {**first, "name": "answer"}, *others]})


def _set_up(message: dict[str, Any]) -> Work:
    from llguidance import LLMatcher, LLTokenizer

    text = message["tokenizer"] if "tokenizer" in message else Path(message["tokenizer_file"]).read_text("utf-8")
    tokenizer = LLTokenizer(text)
    added = json.loads(text).get("added_tokens") or []
    special_tokens = {token["content"] for token in added if token["special"]}

    def work(question: dict[str, Any], num_bytes: int) -> dict[str, Any]:
        grammar = grammar_text(question["kind"], question["source"])
        if question["thinking"] is not None:
            grammar = after_thinking(grammar, **question["thinking"], special_tokens=special_tokens)
        matcher = LLMatcher(tokenizer, grammar, log_level=0)
        if not matcher.is_error():
            matcher.compute_bitmask()  # a hostile expression takes its time in the first mask
        if matcher.is_error():
            raise RejectedGrammarError(matcher.get_error())
        return {"grammar": grammar}

    return work


def _reason(error: Exception) -> str:
    match error:
        case MemoryError():
            return "it takes too much memory"
        case RecursionError():
            return "it nests too deeply"
        case _:
            return " ".join(str(error).split())[:300] or type(error).__name__


def main() -> None:
    serve(_set_up, _reason, name="grammar")


if __name__ == "__main__":
    main()
