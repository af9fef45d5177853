"""`plugserve simulate`: compare schedulers on a trace."""

from __future__ import annotations

from collections.abc import Mapping


def run(words: list[str], environ: Mapping[str, str]) -> int:
    from plugserve.simulate.arguments import USAGE as simulate_usage
    from plugserve.simulate.command import simulate

    if "--help" in words or "-h" in words:
        print(simulate_usage, end="")
        return 0
    return simulate(words, environ)
