"""Ids of what upstreams store (responses, files, batches), and which upstream has each: a bounded memory.

Ids are learnt from the answers in which upstreams give them out. They are kept by sender, so that one client can't
reach what another one stored where the router's own key hides senders from upstreams.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

MAX_IDS: Final = 65_536

_STORING_PATHS: Final = frozenset({"/v1/responses", "/v1/files", "/v1/batches"})
_IN_PATH: Final = re.compile(r"/v1/(responses|files|batches)/([A-Za-z0-9_-]{4,200})(?:/.*)?")
_ID: Final = re.compile(r"[A-Za-z0-9_-]{4,200}")
_NO_IDS: Final = frozenset({"compact"})  # a path of its own beside those of stored responses
_IN_BODY: Final = {"previous_response_id": "responses", "input_file_id": "files"}
_IN_ANSWER: Final = re.compile(
    rb'"(?:id|output_file_id|error_file_id)"\s*:\s*"((?:resp|file|batch)[A-Za-z0-9_-]{4,190})"'
)
_SEARCHED_BYTES: Final = 65536


@dataclass(frozen=True, slots=True)
class StoredId:
    """kind is the part of a path that such ids stand behind."""

    kind: str
    id: str

    @property
    def path(self) -> str:
        """The path at which an upstream says whether it has it."""
        return f"/v1/{self.kind}/{self.id}"


def asked_id(path: str, body: Mapping[str, Any] | None) -> StoredId | None:
    """The stored thing that a request is about: named by its path, or by its body."""
    found = _IN_PATH.fullmatch(path.rstrip("/"))
    if found is not None and found[2] not in _NO_IDS:
        return StoredId(found[1], found[2])
    for name, kind in _IN_BODY.items():
        id = body.get(name) if body is not None else None
        if isinstance(id, str) and _ID.fullmatch(id):
            return StoredId(kind, id)
    return None


class StoredIds:
    """Remembers the upstreams of the newest ids."""

    def __init__(self, max_ids: int = MAX_IDS) -> None:
        self._max_ids = max_ids
        self._upstreams: dict[tuple[str, str], str] = {}

    def __len__(self) -> int:
        return len(self._upstreams)

    def find(self, owner: str, id: str) -> str | None:
        """The name of the upstream that gave id to owner."""
        name = self._upstreams.pop((owner, id), None)
        if name is not None:
            self._upstreams[owner, id] = name  # the newest again
        return name

    def note(self, owner: str, id: str, upstream: str) -> None:
        self._upstreams.pop((owner, id), None)
        self._upstreams[owner, id] = upstream
        if len(self._upstreams) > self._max_ids:
            del self._upstreams[next(iter(self._upstreams))]


class IdReader:
    """Finds the ids of what an upstream has stored in the first bytes of its answer."""

    def __init__(self, method: str, path: str, status: int) -> None:
        is_storing = method == "POST" and path.rstrip("/") in _STORING_PATHS
        is_naming = path.startswith("/v1/batches/")  # a batch names the files that it has written
        self.is_reading = (is_storing or is_naming) and 200 <= status < 300
        self._seen = b""

    def read(self, data: bytes) -> list[str]:
        """The ids in what was read so far. One answer in a stream is enough: it repeats its id."""
        self._seen += data[: _SEARCHED_BYTES - len(self._seen)]
        found = _IN_ANSWER.findall(self._seen)
        if found or len(self._seen) >= _SEARCHED_BYTES:
            self.is_reading = False
            self._seen = b""
        return [id.decode() for id in found]
