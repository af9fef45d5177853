"""Clients' files on disk, by tenant. Every method blocks: call it in a thread.

    ROOT/TENANT/files/ID.data      the content
    ROOT/TENANT/files/ID.json      its facts; written last, so that a file without them doesn't exist

TENANT is a digest, so that no other tenant can name the place of a file. A file never changes once it exists; several
processes may use the same folder.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from plugserve.core.errors import RequestError

_ID: Final = re.compile(r"(file|batch)[-_][0-9a-f]{32}")
_LEAST_FREE_BYTES: Final = 64 << 20
_NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT)
Record = TypeVar("Record", bound=msgspec.Struct)


class StoredFile(msgspec.Struct, kw_only=True):
    """A file's facts; times are seconds since 1970."""

    id: str
    num_bytes: int
    created_at: int
    filename: str
    purpose: str
    expires_at: int | None = None

    def body(self) -> dict[str, Any]:
        """As OpenAI's file object."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.num_bytes,
            "created_at": self.created_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            "expires_at": self.expires_at,
        }


@dataclass(frozen=True, slots=True)
class StorageLimits:
    """Of one tenant: files and batches, each, and bytes of all its files."""

    max_count: int = 1000
    max_bytes: int = 2**30


class FileStore:
    """Files below root, which is made at the first use."""

    def __init__(self, root: Path, limits: StorageLimits) -> None:
        self.root = root
        self.limits = limits

    def folder(self, owner: str, kind: str) -> Path:
        """The folder of a tenant's files or batches."""
        path = self.root / tenant_of(owner) / kind
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        return path

    def path(self, owner: str, id: str) -> Path:
        """The place of a file's content, whether it exists or not."""
        return self.folder(owner, "files") / f"{id}.data"

    def add(self, owner: str, content: bytes | memoryview, file: StoredFile) -> StoredFile:
        """Store content. Raises RequestError (413 above a limit, 507 without space)."""
        path = self.path(owner, file.id)
        with self.locked(owner):
            self.check_room(owner, len(content))
            try:
                with open(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600), "wb") as target:
                    target.write(content)
                self.register(owner, file)
            except OSError as error:
                path.unlink(missing_ok=True)
                if error.errno in _NO_SPACE:
                    raise no_space() from None
                raise
        return file

    def register(self, owner: str, file: StoredFile) -> None:
        """Let a file exist whose content is in its place."""
        write_record(self.folder(owner, "files") / f"{file.id}.json", file)

    def find(self, owner: str, id: str) -> StoredFile | None:
        """None for a file that doesn't exist, belongs to another tenant, or has expired."""
        if not _ID.fullmatch(id):
            return None
        file = read_record(self.folder(owner, "files") / f"{id}.json", StoredFile)
        if file is not None and file.expires_at is not None and file.expires_at <= time.time():
            self.delete(owner, id)
            return None
        return file

    def files(self, owner: str) -> list[StoredFile]:
        """All files of a tenant, the newest first."""
        ids = [path.stem for path in self.folder(owner, "files").glob("*.json")]
        found = [file for id in ids if (file := self.find(owner, id)) is not None]
        return sorted(found, key=lambda file: (file.created_at, file.id), reverse=True)

    def delete(self, owner: str, id: str) -> bool:
        """False for a file that doesn't exist."""
        if not _ID.fullmatch(id):
            return False
        folder = self.folder(owner, "files")
        try:
            (folder / f"{id}.json").unlink()
        except FileNotFoundError:
            return False
        (folder / f"{id}.data").unlink(missing_ok=True)
        return True

    # ---- limits

    @contextlib.contextmanager
    def locked(self, owner: str) -> Iterator[None]:
        """One process at a time adds to a tenant's files."""
        descriptor = os.open(self.folder(owner, "files").parent / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def check_room(self, owner: str, num_bytes: int) -> None:
        """Raises RequestError if a further file of num_bytes is above a limit."""
        count = sum(1 for _ in self.folder(owner, "files").glob("*.json"))
        if count >= self.limits.max_count:
            raise _too_much(f"{count} files are stored, as many as this server keeps (--max-files)")
        if (used := self.num_bytes(owner)) + num_bytes > self.limits.max_bytes:
            raise _too_much(
                f"{used} bytes of files are stored, and {num_bytes} more would exceed the {self.limits.max_bytes} that "
                "this server keeps (--max-files-size)"
            )
        space = os.statvfs(self.root)
        if space.f_bavail * space.f_frsize < num_bytes + _LEAST_FREE_BYTES:
            raise no_space()

    def num_bytes(self, owner: str) -> int:
        """Bytes of a tenant's files, those included that are being written."""
        with os.scandir(self.folder(owner, "files")) as entries:
            return sum(entry.stat().st_size for entry in entries)


def tenant_of(owner: str) -> str:
    return hashlib.sha256(owner.encode()).hexdigest()[:40]


def new_id(kind: str) -> str:
    """An id that can't be guessed."""
    return kind + secrets.token_hex(16)


def is_id(text: str) -> bool:
    """text may be the id of a file or batch; anything else could name another place."""
    return _ID.fullmatch(text) is not None


def write_record(path: Path, record: msgspec.Struct) -> None:
    """Write whole or not at all."""
    new = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
    try:
        with open(os.open(new, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600), "wb") as target:
            target.write(msgspec.json.encode(record))
        os.replace(new, path)
    except OSError:
        new.unlink(missing_ok=True)
        raise


def read_record(path: Path, kind: type[Record]) -> Record | None:
    """None where there is none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None


def _too_much(what: str) -> RequestError:
    return RequestError(f"{what}; delete some first.", status=413, code="storage_limit_reached")


def no_space() -> RequestError:
    return RequestError("The server's disk has no room for this file.", status=507, code="no_space")
