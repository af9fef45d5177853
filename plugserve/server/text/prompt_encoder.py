"""Token ids of rendered prompts, where only the chat template writes control tokens: a client's are text.

Control tokens are the tokenizer's special tokens, and those marks among its other added tokens that the template
writes (<think>, <tool_call>, a role's mark).
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
from tokenizers import Encoding, Tokenizer

from plugserve.server.text.rendered_text import RenderedText

_MARK: Final = re.compile(r"[^\w\s].*\w.*[^\w\s]", re.DOTALL)
_SPACES: Final = (" ", "\u2581")  # what Metaspace takes for a space


@dataclass(frozen=True, slots=True)
class _ControlToken:
    """Number index of an encoding, made from the characters start to end of the prompt."""

    index: int
    start: int
    end: int
    is_client: bool


class PromptEncoder:
    """encode_plain encodes texts that no template wrote. May be used from several threads at once."""

    def __init__(
        self, tokenizer: Tokenizer, tokenizer_json: str, chat_template: str, encode_plain: Callable[..., list[int]]
    ) -> None:
        self._tokenizer = tokenizer
        self._encode_plain = encode_plain
        data = orjson.loads(tokenizer_json)
        self._control = _ControlTokens(data, chat_template)
        self._text_encoder = _TextEncoder(data, self._control)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of text: encode_plain's, unless a client wrote control tokens into it."""
        if not isinstance(text, RenderedText) or not text.client_spans:
            return self._encode_plain(text, add_special_tokens=add_special_tokens)
        prompt = str.__str__(text)
        return self._encode_part(prompt, 0, len(prompt), text.client_spans, add_special_tokens)

    def _encode_part(
        self, prompt: str, start: int, end: int, edges: Sequence[int], add_special_tokens: bool = False
    ) -> list[int]:
        """The ids of prompt[start:end]. edges are where the client's parts of prompt begin and end."""
        encoding = self._tokenizer.encode_batch([prompt[start:end]], add_special_tokens=add_special_tokens)[0]
        ids = encoding.ids
        written = self._control_tokens_of(encoding, prompt, start, edges)
        if not any(token.is_client for token in written):
            return ids
        first, last = _ends(encoding, len(ids))
        result = ids[:first]
        index, at, forbidden = first, start, list[_ControlToken]()
        for token in (*written, _ControlToken(last, end, end, False)):
            if token.is_client:
                forbidden.append(token)
                continue
            between = ids[index : token.index]
            result += self._as_text(prompt, at, token.start, forbidden, edges) if forbidden else between
            result += ids[token.index : token.index + 1] if token.index < last else []
            index, at, forbidden = token.index + 1, token.end, []
        return result + ids[last:]

    def _control_tokens_of(
        self, encoding: Encoding, prompt: str, start: int, edges: Sequence[int]
    ) -> list[_ControlToken]:
        found: list[_ControlToken] = []
        for index, *place in self._control.places(encoding, prompt, start):
            first, last = place
            text = prompt[first:last]
            stripped = first + len(text) - len(text.lstrip()), last - len(text) + len(text.rstrip())
            found.append(_ControlToken(index, first, last, _overlaps(edges, *stripped)))
        return found

    def _as_text(
        self, prompt: str, start: int, end: int, forbidden: Sequence[_ControlToken], edges: Sequence[int]
    ) -> list[int]:
        """The ids of prompt[start:end], without the forbidden control tokens in it. Where one is only partly the
        client's, its parts are encoded by themselves: the template's part may begin a control token of its own."""
        cuts = [
            edge
            for token in forbidden
            for edge in edges[bisect_right(edges, token.start) : bisect_left(edges, token.end)]
        ]
        if not cuts:
            return self._text_encoder.encode(prompt[start:end], is_first=start == 0)
        ids: list[int] = []
        for first, last in zip((start, *cuts), (*cuts, end), strict=True):
            ids += self._encode_part(prompt, first, last, edges)
        return ids


class _ControlTokens:
    """The ids that are control tokens, and their places in an encoding. data is the tokenizer as JSON."""

    def __init__(self, data: dict[str, Any], chat_template: str) -> None:
        self._contents: dict[int, str] = {
            token["id"]: token["content"]
            for token in data["added_tokens"]
            if token["special"] or (_MARK.fullmatch(token["content"]) and token["content"] in chat_template)
        }
        self._unknown = _unknown_token(data["model"])

    def __contains__(self, token_id: int) -> bool:
        return token_id in self._contents

    def places(self, encoding: Encoding, text: str, start: int = 0) -> Iterator[tuple[int, int, int]]:
        """(index, from, to) of each control token of encoding, which encodes text from start on. Not among them are
        those that the tokenizer adds at the ends, and characters that the vocabulary lacks."""
        contents = self._contents
        ids = encoding.ids
        for index in [index for index, token_id in enumerate(ids) if token_id in contents]:
            place = encoding.token_to_chars(index)
            if place is None:
                continue
            first, last = place[0] + start, place[1] + start
            content = contents[ids[index]]
            if content != self._unknown or content in text[first:last]:
                yield index, first, last


class _TextEncoder:
    """A copy of a tokenizer that encodes control tokens as ordinary text."""

    def __init__(self, data: dict[str, Any], control: _ControlTokens) -> None:
        for token in data["added_tokens"]:
            token["special"] = token["id"] in control
        self._has_first_prefix = _remove_first_prefix(data["pre_tokenizer"])
        self._control = control
        self._tokenizer = Tokenizer.from_str(orjson.dumps(data).decode())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True

    def encode(self, text: str, *, is_first: bool) -> list[int]:
        """Ids without a control token. is_first: nothing of the prompt comes before text."""
        if is_first and self._has_first_prefix and text and not text.startswith(_SPACES):
            text = " " + text
        return self._encode([text])

    def _encode(self, texts: list[str]) -> list[int]:
        """The ids of texts, one after the other. Some vocabularies hold control tokens beside their words and find
        them in any text: there the text is cut."""
        ids: list[int] = []
        for text, encoding in zip(texts, self._tokenizer.encode_batch(texts, add_special_tokens=False), strict=True):
            places = [(start, end) for _, start, end in self._control.places(encoding, text)]
            ids += self._encode(_cut_within(text, places)) if places else encoding.ids
        return ids


def _unknown_token(model: dict[str, Any]) -> str | None:
    """The id of the unknown token, for characters that the vocabulary lacks."""
    if isinstance(model.get("unk_id"), int):
        unknown: str = model["vocab"][model["unk_id"]][0]
        return unknown
    return model.get("unk_token")


def _ends(encoding: Encoding, count: int) -> tuple[int, int]:
    """(first, last) of the ids that come from the text; the tokenizer may add others before and after them."""
    first, last = 0, count
    while first < last and encoding.token_to_chars(first) is None:
        first += 1
    while last > first and encoding.token_to_chars(last - 1) is None:
        last -= 1
    return first, last


def _overlaps(edges: Sequence[int], start: int, end: int) -> bool:
    """One of the client's parts reaches into start to end."""
    first = bisect_right(edges, start)
    return first % 2 == 1 or first < bisect_left(edges, end)


def _cut_within(text: str, places: Sequence[tuple[int, int]]) -> list[str]:
    """text in pieces, none of which holds a whole place. A single character that is a control token is left out."""
    pieces: list[str] = []
    at = 0
    for start, end in places:
        middle = (start + end) // 2
        pieces.append(text[at:middle])
        at = middle if end - start > 1 else end
    return [piece for piece in (*pieces, text[at:]) if piece]


def _remove_first_prefix(part: Any) -> bool:
    """Change pre-tokenizers that put a space before a text's first word, and only there, to put none. Returns whether
    there was one."""
    if not isinstance(part, dict):
        return False
    if part.get("type") == "Sequence":
        return sum(map(_remove_first_prefix, part["pretokenizers"])) > 0
    if part.get("type") != "Metaspace" or part.get("prepend_scheme") != "first":
        return False
    part["prepend_scheme"] = "never"
    return True
