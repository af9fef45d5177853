"""A plan as text and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from plugserve.plan.forecast import Forecast, Workload


@dataclass(frozen=True, slots=True)
class Plan:
    """The forecasts of all splits, the chosen one (None where nothing fits), and what they were made from."""

    model: str
    machine: str
    work: Workload
    goal: str
    forecasts: Sequence[Forecast]
    chosen: Forecast | None
    origins: Sequence[str]

    @property
    def flags(self) -> str:
        """The settings of the chosen split."""
        assert self.chosen is not None
        split = self.chosen.split
        sizes = {"tensor": split.tp, "pipeline": split.pp, "data": split.dp}
        return " ".join(f"--{name}-parallel-size {size}" for name, size in sizes.items() if size > 1)

    def as_text(self) -> str:
        work = self.work
        lines = [
            f"{self.model} on {self.machine}: {work.rows} requests at once of {work.prompt} + {work.answer} tokens",
            "",
            *_table(self.forecasts, self.chosen),
            "",
        ]
        if self.chosen is None:
            lines.append("no split fits: more GPUs, a shorter context or smaller weights (--weight-bytes 1) are needed")
        else:
            lines.append(f"chosen for {self.goal}: {self.chosen.split}    plugserve {self.model} {self.flags}".rstrip())
        return "\n".join([*lines, *(f"not measured: {origin}" for origin in self.origins)])

    def as_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "machine": self.machine,
            "workload": asdict(self.work),
            "goal": self.goal,
            "splits": [asdict(one) for one in self.forecasts],
            "chosen": None if self.chosen is None else asdict(self.chosen.split) | {"flags": self.flags},
            "not_measured": list(self.origins),
        }


_HEADS = (
    "split", "weights/GPU", "KV tokens", "rows", "first token", "1 row", "step", "prompts tok/s", "output tok/s",
    "total tok/s",
)  # fmt: skip


def _table(forecasts: Sequence[Forecast], chosen: Forecast | None) -> list[str]:
    rows = [_HEADS, *(_cells(one, one is chosen) for one in forecasts)]
    full = [row for row in rows if len(row) == len(_HEADS)]
    widths = [max(len(row[i]) for row in (rows if i < 2 else full)) for i in range(len(_HEADS))]
    return ["  ".join(_padded(row, widths)).rstrip() for row in rows]


def _padded(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    """A row with all cells has numbers on the right; one of a split that can't be used ends with the reason."""
    numbers = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=False)]
    if len(row) < len(widths):
        numbers[-1] = row[-1]
    return [row[0].ljust(widths[0]), *numbers]


def _cells(one: Forecast, is_chosen: bool) -> tuple[str, ...]:
    name = f"{'*' if is_chosen else ' '} {one.split}"
    if one.problem:
        return (name, f"{one.weight_gib:.1f} GiB", f"- {one.problem}")
    return (
        name,
        f"{one.weight_gib:.1f} GiB",
        f"{one.kv_tokens:,}",
        f"{one.rows_at_once:,}",
        f"{one.first_token_ms:,.0f} ms",
        f"{one.one_row_ms:.2f} ms",
        f"{one.step_ms:.2f} ms",
        f"{one.prompt_rate:,.0f}",
        f"{one.output_rate:,.0f}",
        f"{one.total_rate:,.0f}",
    )
