"""`plugserve replay`: what an engine recorded, in words, and again on an engine."""

from __future__ import annotations

from collections.abc import Mapping

from plugserve.replay.arguments import USAGE as HELP

__all__ = ["HELP", "run"]


def run(words: list[str], environ: Mapping[str, str]) -> int:
    from plugserve.replay.replay import replay

    return replay(words, environ)
