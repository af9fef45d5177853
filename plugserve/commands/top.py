"""`plugserve top`: what a server does now, in a terminal."""

from __future__ import annotations

from collections.abc import Mapping

from plugserve.top.arguments import USAGE as HELP

__all__ = ["HELP", "run"]


def run(words: list[str], environ: Mapping[str, str]) -> int:
    from plugserve.top.top import top

    return top(words, environ)
