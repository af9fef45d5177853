"""Makes the tables of docs/metrics.md from what /metrics shows.

python -m plugserve.server.operations.metrics_docs --write docs/metrics.md
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from plugserve.core.contracts.engine_facts import EngineInfo, EngineStats
from plugserve.core.metrics.exposition import Shown
from plugserve.core.wire.heartbeats import Vitals
from plugserve.core.wire.messages import ModelCounts
from plugserve.server.operations.engine_metrics import EngineSnapshot
from plugserve.server.operations.metrics import Metrics
from plugserve.server.operations.objectives import Objectives
from plugserve.server.operations.request_metrics import RequestMeasures

BEGIN: Final = "<!-- metrics: made by plugserve.server.operations.metrics_docs -->"
END: Final = "<!-- end of metrics -->"
_GROUPS: Final = ("Requests", "Engines and models", "Server workers and plugins")


def every_family() -> list[Shown]:
    """What a server shows in which everything that is counted has happened."""
    metrics = Metrics(objectives=Objectives({"ttft": 1.0}), version="0")
    model = metrics.of_model("m")
    request = RequestMeasures("stop", 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 0)
    model.admitted(1)
    model.generated(1)
    model.first_token(1.0)
    model.later_tokens(1.0)
    model.finished(request)
    metrics.http_requests.labels("/v1/completions", "200").inc()
    metrics.connection_refused("full")
    stats = EngineStats(
        num_accepted_per_position=[1],
        num_adapter_slots=1,
        plugin_seconds={"fcfs schedule": 1.0},
        plugin_errors={"fcfs schedule": 1},
        plugin_quarantines={"fcfs schedule": 1},
    )
    info = EngineInfo(
        load_seconds=1.0,
        vocab_size=1,
        max_model_len=1,
        max_num_batched_tokens=1,
        num_blocks=1,
        block_size=16,
        kv_cache_bytes=1,
        weight_bytes=1,
        dtype="float32",
        device="cpu",
    )
    vitals = Vitals(pid=1, phase=0, age_s=0.0, late_s=1.0, replace_s=1.0, cause=0, num_hangs=0)
    engine = EngineSnapshot("m", True, 0, stats, vitals, ModelCounts(unloads={"idle": 1}), info)
    return list(metrics.families([engine], {"0": vitals}))


def tables() -> str:
    """The tables, between their marks."""
    ours: list[Shown] = []
    theirs: list[Shown] = []
    for family in every_family():
        (theirs if family.name.startswith("vllm:") else ours).append(family)
    grouped: dict[str, list[Shown]] = {group: [] for group in _GROUPS}
    for family in ours:
        grouped[_group(family)].append(family)
    parts = [f"### {group}\n\n{_table(families)}" for group, families in grouped.items()]
    return "\n\n".join([BEGIN, *parts, f"### vLLM's names\n\n{_table(theirs)}", END])


def _group(family: Shown) -> str:
    labels = {name for name, _ in family.samples[0].labels}
    if labels & {"worker", "plugin", "path", "version"} or "http" in family.name:
        return "Server workers and plugins"
    name = family.name.removeprefix("plugserve_")
    is_request = name.startswith(("request", "goodput", "time_to", "inter_token", "e2e")) or name in _OF_REQUESTS
    return "Requests" if is_request else "Engines and models"


_OF_REQUESTS: Final = ("prompt_tokens", "generation_tokens")


def _table(families: Iterable[Shown]) -> str:
    lines = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for family in families:
        total = "_total" if family.kind == "counter" else ""
        labels = ", ".join(f"`{name}`" for name, _ in family.samples[0].labels)
        lines.append(f"| `{family.name}{total}` | {family.kind} | {labels} | {family.help} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, required=True, metavar="FILE")
    path: Path = parser.parse_args().write
    before, _, rest = path.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    path.write_text(f"{before}{tables()}{after}")


if __name__ == "__main__":
    main()
