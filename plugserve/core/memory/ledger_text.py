"""A memory ledger as a table for people, and as one line for error messages."""

from __future__ import annotations

from typing import Any

from msgspec import to_builtins

from plugserve.core.contracts.memory import HOST, MemoryLedger, MemoryPlace

_UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))

_FIRST = ("weights", "KV cache")


def shown_bytes(size_bytes: int) -> str:
    """ "1.50 GiB", "340 MiB"."""
    for unit, name in _UNITS:
        if abs(size_bytes) >= unit:
            digits = 2 if name == "GiB" else 0
            return f"{size_bytes / unit:.{digits}f} {name}"
    return f"{size_bytes} B"


def host_problem(num_processes: int, ledger: MemoryLedger) -> str:
    """Why as many processes, each of which takes what ledger says, don't fit into host memory; "" where they do."""
    place = ledger.place(HOST)
    needed = num_processes * place.needed_bytes
    if needed <= place.budget_bytes:
        return ""
    return (
        f"{num_processes} times {shown_bytes(place.needed_bytes)} are {shown_bytes(needed)}, "
        f"{shown_bytes(place.budget_bytes)} of {HOST} can be had; lower --kv-cache-memory"
    )


def table(ledger: MemoryLedger) -> str:
    """One block a place, and what the KV cache holds."""
    lines = [line for place in ledger.places for line in _place_lines(place)]
    return "\n".join([*lines, kv_line(ledger)] if ledger.kv_bytes_per_token else lines)


def _place_lines(place: MemoryPlace) -> list[str]:
    rows = [(item.name, shown_bytes(item.size_bytes), item.detail) for item in place.items]
    verdict = f"{shown_bytes(place.missing_bytes)} missing" if place.missing_bytes else "fits"
    rows.append(("together", shown_bytes(place.needed_bytes), f"of {shown_bytes(place.budget_bytes)}: {verdict}"))
    if place.loading_bytes > place.needed_bytes:
        rows.append(("while loading", shown_bytes(place.loading_bytes), "with pages of the mapped files"))
    width = max(len(name) for name, _, _ in rows)
    title = (
        f"{place.title}: {shown_bytes(place.total_bytes)}, {shown_bytes(place.other_bytes)} of it held by others, "
        f"{shown_bytes(place.budget_bytes)} for this model"
    )
    return [title, *(f"  {name.ljust(width)}  {size.rjust(9)}  {detail}".rstrip() for name, size, detail in rows)]


def kv_line(ledger: MemoryLedger) -> str:
    """The tokens that the KV cache holds, and the requests of full length among them."""
    return (
        f"KV cache: {ledger.num_kv_tokens} tokens; {ledger.num_full_requests:.2f} requests of full length "
        f"({ledger.max_model_len} tokens) fit, of up to {ledger.max_num_seqs} that run at once"
    )


def summary(ledger: MemoryLedger) -> str:
    """Weights, KV cache and the largest items of each place: "KV cache 1.00 GiB + weights 513 MiB + process 326 MiB +
    logits, sampling 144 MiB + other 19 MiB = 1.98 GiB of 17.50 GiB host memory"."""
    return "; ".join(_sum_up(place) for place in ledger.places)


def _sum_up(place: MemoryPlace) -> str:
    items = sorted(place.items, key=lambda item: (item.name not in _FIRST, -item.size_bytes))
    parts = [f"{item.name} {shown_bytes(item.size_bytes)}" for item in items[:4]]
    rest = sum(item.size_bytes for item in items[4:])
    if rest:
        parts.append(f"other {shown_bytes(rest)}")
    total, budget = shown_bytes(place.needed_bytes), shown_bytes(place.budget_bytes)
    return f"{' + '.join(parts)} = {total} of {budget} {place.name}"


def as_dict(ledger: MemoryLedger) -> dict[str, Any]:
    """The ledger for JSON, with its sums."""
    found: dict[str, Any] = to_builtins(ledger)
    for place, entry in zip(ledger.places, found["places"], strict=True):
        entry |= {
            "needed_bytes": place.needed_bytes,
            "peak_bytes": place.peak_bytes,
            "missing_bytes": place.missing_bytes,
        }
    return found | {"fits": ledger.fits, "num_full_requests": ledger.num_full_requests}


def problem(ledger: MemoryLedger) -> str:
    """Why the model doesn't fit, in one sentence; "" for one that does."""
    if not ledger.has_room_for_length:
        needed = shown_bytes((ledger.asked_model_len or 1) * ledger.kv_bytes_per_token)
        return (
            f"one request of --max-model-len {ledger.asked_model_len} takes {needed} of KV cache, which holds "
            f"{ledger.num_kv_tokens} tokens"
        )
    short = [place for place in ledger.places if place.missing_bytes]
    return "; ".join(
        f"it takes {shown_bytes(place.needed_bytes)} of {place.name}, {shown_bytes(place.budget_bytes)} can be had "
        f"({shown_bytes(place.missing_bytes)} are missing)"
        for place in short
    )
