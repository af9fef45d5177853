"""`plugserve chat`: chat in a terminal."""

from __future__ import annotations

from collections.abc import Mapping

from plugserve.chat.arguments import USAGE as HELP

__all__ = ["HELP", "run"]


def run(words: list[str], environ: Mapping[str, str]) -> int:
    from plugserve.chat.chat import chat

    return chat(words, environ)
