"""`plugserve simulate`: compare schedulers on a trace."""

from __future__ import annotations

from collections.abc import Mapping

from plugserve.simulate.arguments import USAGE as HELP

__all__ = ["HELP", "run"]


def run(words: list[str], environ: Mapping[str, str]) -> int:
    from plugserve.simulate.command import simulate

    return simulate(words, environ)
