"""Thinking between <think> and </think>, as DeepSeek-R1, Qwen3 and many others write it.

Some templates write the opening tag into the prompt, some write a closed pair of tags to turn thinking off, some leave
both to the model. White space beside the tags is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from plugserve.core.contracts.answers import ReasoningParser
from plugserve.core.contracts.factories import ReasoningParserFactory
from plugserve.core.plugin_system.hookspecs import hookimpl

_OPENING: Final = "<think>"
_CLOSING: Final = "</think>"


class ThinkTags:
    """One answer; see contracts.answers.ReasoningParser. answer_prefix is the start of the answer that the prompt
    contains. thinks_first: the answer begins with thinking unless the prompt has closed it. Only the first thinking is
    separated: later tags are content."""

    def __init__(self, answer_prefix: str = "", *, thinks_first: bool = False) -> None:
        self.opening = _OPENING
        self.closing = _CLOSING
        opened, closed = answer_prefix.rfind(_OPENING), answer_prefix.rfind(_CLOSING)
        self.is_thinking = opened > closed or (thinks_first and closed < 0)
        self.may_think = not self.is_thinking and closed < 0
        self._may_repeat = self.is_thinking  # some models repeat the opening tag of the prompt
        self._held = ""
        self._skips_space = True
        self._has_content = False

    def feed(self, text: str) -> tuple[str, str]:
        text, self._held = self._held + text, ""
        before = thinking = ""
        if self.may_think:
            before, text = self._until(_OPENING, text)
            self._has_content |= bool(before)
        if self._may_repeat:
            text = self._without_repetition(text)
        if self.is_thinking and not self._held:
            thinking, text = self._until(_CLOSING, text)
            thinking = self._without_space(thinking)
            self._skips_space |= not self.is_thinking
        if self.is_thinking or self.may_think:
            return thinking, before
        is_first = self._skips_space
        content = self._without_space(text)
        apart = "\n" if content and is_first and self._has_content else ""
        return thinking, before + apart + content

    def finish(self) -> tuple[str, str]:
        held, self._held = self._held, ""
        if self.is_thinking:
            return self._without_space(held.rstrip()), ""
        return "", held

    def _without_repetition(self, text: str) -> str:
        rest = text.lstrip()
        if not rest or (rest != _OPENING and _OPENING.startswith(rest)):
            self._held = text
            return ""
        self._may_repeat = False
        return rest.removeprefix(_OPENING)

    def _without_space(self, text: str) -> str:
        """text without the white space that follows a tag."""
        if not self._skips_space:
            return text
        text = text.lstrip()
        self._skips_space = not text
        return text

    def _until(self, tag: str, text: str) -> tuple[str, str]:
        """(text before tag, text after it). Without the tag, returns the text that can't belong to it or to the white
        space before it, and holds back the rest."""
        found = text.find(tag)
        if found >= 0:
            self.is_thinking, self.may_think = tag == _OPENING, False
            return text[:found].rstrip(), text[found + len(tag) :]
        num_held = next(
            (size for size in range(min(len(tag) - 1, len(text)), 0, -1) if tag.startswith(text[-size:])), 0
        )
        emitted = text[: len(text) - num_held].rstrip()
        self._held = text[len(emitted) :]
        return emitted, ""


def _always_thinking(answer_prefix: str = "") -> ReasoningParser:
    return ThinkTags(answer_prefix, thinks_first=True)


@hookimpl
def plugserve_reasoning_parsers() -> Mapping[str, ReasoningParserFactory]:
    return {"think-tags": ThinkTags, "qwen3": ThinkTags, "deepseek-r1": _always_thinking}
