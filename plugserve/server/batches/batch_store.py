"""The records of batches on disk, by tenant. Every method blocks: call it in a thread.

ROOT/TENANT/batches/ID.json     the record: written by its creator, then only by the process that runs the batch
ROOT/TENANT/batches/ID.cancel   its client wants it cancelled
ROOT/active/TENANT~ID           it isn't finished; holds the owner's name
ROOT/runner.lock                locked by the process that runs batches
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

from plugserve.core.contracts.requests import Identity
from plugserve.core.errors import RequestError
from plugserve.server.batches.file_store import FileStore, is_id, read_record, tenant_of, write_record

Status = Literal["validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"]
_ENDED: Final = ("failed", "completed", "expired", "cancelled")


class BatchError(msgspec.Struct):
    """Why a whole batch failed."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class Batch(msgspec.Struct, kw_only=True):
    """A batch as OpenAI's object has it; times are seconds since 1970. sender, tenant and attributes are those of the
    Identity for which it runs. output_file_id and error_file_id exist as files once it has ended and they hold a
    line."""

    id: str
    endpoint: str
    input_file_id: str
    created_at: int
    expires_at: int
    output_file_id: str
    error_file_id: str
    completion_window: str = "24h"
    status: Status = "validating"
    num_total: int = 0
    num_completed: int = 0
    num_failed: int = 0
    has_output: bool = False
    has_errors: bool = False
    errors: list[BatchError] = []
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    metadata: dict[str, str] | None = None
    sender: str = ""
    tenant: str = ""
    attributes: dict[str, Any] = {}

    @property
    def identity(self) -> Identity | None:
        return Identity(self.sender, self.tenant, self.attributes) if self.sender else None

    @property
    def owner(self) -> str:
        return self.tenant or self.sender

    @property
    def is_ended(self) -> bool:
        return self.status in _ENDED

    def enter(self, status: Status) -> None:
        """Change the status, and note when."""
        self.status = status
        if status != "validating":
            setattr(self, f"{status}_at", int(time.time()))

    def body(self) -> dict[str, Any]:
        """As OpenAI's batch object."""
        times = {name: getattr(self, name) for name in self.__struct_fields__ if name.endswith("_at")}
        errors = [msgspec.to_builtins(error) for error in self.errors]
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "errors": {"object": "list", "data": errors} if errors else None,
            "input_file_id": self.input_file_id,
            "completion_window": self.completion_window,
            "status": self.status,
            "output_file_id": self.output_file_id if self.is_ended and self.has_output else None,
            "error_file_id": self.error_file_id if self.is_ended and self.has_errors else None,
            **times,
            "request_counts": {"total": self.num_total, "completed": self.num_completed, "failed": self.num_failed},
            "metadata": self.metadata,
        }


@dataclass(frozen=True, slots=True)
class ActiveBatch:
    """A batch that isn't finished."""

    owner: str
    id: str


class BatchStore:
    def __init__(self, files: FileStore) -> None:
        self._files = files
        self._active = files.root / "active"

    def add(self, batch: Batch) -> None:
        """Raises RequestError (413) for a batch above the limit."""
        with self._files.locked(batch.owner):
            folder = self._files.folder(batch.owner, "batches")
            if sum(1 for _ in folder.glob("*.json")) >= self._files.limits.max_count:
                self._forget_oldest(batch.owner)
            self.save(batch)
            self._active.mkdir(exist_ok=True, mode=0o700)
            marker = self._active / f"{tenant_of(batch.owner)}~{batch.id}"
            with open(os.open(marker, os.O_CREAT | os.O_WRONLY, 0o600), "w") as file:
                file.write(batch.owner)

    def _forget_oldest(self, owner: str) -> None:
        """Make room for one. Raises RequestError where every batch still runs."""
        oldest = next((batch for batch in reversed(self.batches(owner)) if batch.is_ended), None)
        if oldest is None:
            raise RequestError(
                f"{self._files.limits.max_count} batches are running, as many as this server keeps (--max-files).",
                status=413,
                code="storage_limit_reached",
            )
        (self._files.folder(owner, "batches") / f"{oldest.id}.json").unlink(missing_ok=True)

    def save(self, batch: Batch) -> None:
        write_record(self._files.folder(batch.owner, "batches") / f"{batch.id}.json", batch)

    def find(self, owner: str, id: str) -> Batch | None:
        """None for a batch that doesn't exist or belongs to another tenant. One that is to be cancelled is cancelling
        at once, whatever its runner has noted."""
        if not is_id(id):
            return None
        folder = self._files.folder(owner, "batches")
        batch = read_record(folder / f"{id}.json", Batch)
        if batch is not None and not batch.is_ended and (folder / f"{id}.cancel").exists():
            batch.status = "cancelling"
            batch.cancelling_at = int((folder / f"{id}.cancel").stat().st_mtime)
        return batch

    def batches(self, owner: str) -> list[Batch]:
        """All batches of a tenant, the newest first."""
        ids = [path.stem for path in self._files.folder(owner, "batches").glob("*.json")]
        found = [batch for id in ids if (batch := self.find(owner, id)) is not None]
        return sorted(found, key=lambda batch: (batch.created_at, batch.id), reverse=True)

    def cancel(self, batch: Batch) -> None:
        (self._files.folder(batch.owner, "batches") / f"{batch.id}.cancel").touch(mode=0o600)

    def is_to_cancel(self, batch: Batch) -> bool:
        return (self._files.folder(batch.owner, "batches") / f"{batch.id}.cancel").exists()

    def active(self) -> list[ActiveBatch]:
        """The batches of all tenants that aren't finished, the oldest first."""
        if not self._active.is_dir():
            return []
        found: list[tuple[int, ActiveBatch]] = []
        for path in self._active.iterdir():
            with contextlib.suppress(FileNotFoundError):  # it has just ended
                found.append((path.stat().st_mtime_ns, ActiveBatch(path.read_text(), path.name.partition("~")[2])))
        return [active for _, active in sorted(found, key=lambda pair: pair[0])]

    def end(self, batch: Batch) -> None:
        """Save the record of a batch that has ended; no process will run it again."""
        self.save(batch)
        self.forget_active(ActiveBatch(batch.owner, batch.id))
        (self._files.folder(batch.owner, "batches") / f"{batch.id}.cancel").unlink(missing_ok=True)

    def forget_active(self, active: ActiveBatch) -> None:
        (self._active / f"{tenant_of(active.owner)}~{active.id}").unlink(missing_ok=True)

    def try_to_lead(self) -> int | None:
        """A descriptor; until it is closed, no other process runs batches. None while another one does."""
        descriptor = os.open(self._files.root / "runner.lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return None
        return descriptor
