"""Pages of a list, as OpenAI's files and batches have them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from plugserve.core.errors import RequestError
from plugserve.server.api.json_body import shown

Entry = TypeVar("Entry")


def page(
    entries: Sequence[Entry], body_of: Callable[[Entry], dict[str, Any]], args: Mapping[str, Any], *, most: int
) -> dict[str, Any]:
    """A page of entries (the newest first) by the query's limit, after and order. Raises RequestError (400)."""
    bodies = [body_of(entry) for entry in entries]
    order = args.get("order") or "desc"
    if order not in ("asc", "desc"):
        raise RequestError(f"order: must be asc or desc, got {shown(order)}", param="order")
    if order == "asc":
        bodies.reverse()
    if (after := args.get("after")) is not None:
        place = next((index for index, body in enumerate(bodies) if body["id"] == after), None)
        if place is None:
            raise RequestError(f"after: there is no {shown(after)} in the list", param="after")
        bodies = bodies[place + 1 :]
    limit = _limit(args.get("limit"), most)
    chosen = bodies[:limit]
    return {
        "object": "list",
        "data": chosen,
        "first_id": chosen[0]["id"] if chosen else None,
        "last_id": chosen[-1]["id"] if chosen else None,
        "has_more": len(bodies) > limit,
    }


def _limit(given: str | None, most: int) -> int:
    if given is None:
        return most
    if not given.isdecimal() or not 1 <= int(given) <= most:
        raise RequestError(f"limit: must be a whole number from 1 to {most}, got {shown(given)}", param="limit")
    return int(given)
