"""The folder that a running server's processes share: settings, resolved models, socket addresses.

Made by the supervisor, readable by its user alone, and removed by it at the end.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from plugserve.core.errors import ConfigError
from plugserve.core.model_files.model_source import ModelSource
from plugserve.core.settings.settings import Settings
from plugserve.core.wire.heartbeats import HeartbeatBoard

_LEAST_FREE_BYTES = 8 << 20  # metric files grow, and a mapped one that can't ends its process
_LONGEST_SOCKET_PATH = 90  # the system's limit is 103 (macOS) or 107 bytes, less our file names


class RuntimeFolder:
    """path holds settings.json, models.json, the ZMQ sockets and metrics/ (the workers' metric files)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, settings: Settings, sources: Iterable[ModelSource]) -> RuntimeFolder:
        """A new folder of mode 0700. In /tmp where the system's own temporary folder has too long a name."""
        try:
            path = Path(tempfile.mkdtemp(prefix="plugserve-"))
            if len(str(path)) > _LONGEST_SOCKET_PATH - len("/engine-00-000.ipc"):
                path.rmdir()
                path = Path(tempfile.mkdtemp(prefix="plugserve-", dir="/tmp"))
        except OSError as error:
            raise ConfigError(f"no folder for temporary files can be made ({error}); set TMPDIR to one") from None
        folder = cls(path)
        try:
            folder._fill(settings, sources)
        except OSError as error:
            folder.remove()
            raise ConfigError(
                f"the runtime folder {path} can't be written: {error.strerror}; free space there, or set TMPDIR to "
                "another folder"
            ) from None
        return folder

    def _fill(self, settings: Settings, sources: Iterable[ModelSource]) -> None:
        space = os.statvfs(self.path)
        if space.f_bavail * space.f_frsize < _LEAST_FREE_BYTES:
            raise OSError(errno.ENOSPC, f"less than {_LEAST_FREE_BYTES >> 20} MiB are free")
        self.metrics.mkdir()
        (self.path / "trace.key").write_bytes(secrets.token_bytes(16))
        (self.path / "settings.json").write_text(settings.model_dump_json())
        models = [asdict(source) for source in sources]
        (self.path / "models.json").write_text(json.dumps(models, default=str))
        HeartbeatBoard.create(self.heartbeats, len(models), settings.api_workers)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    @property
    def metrics(self) -> Path:
        return self.path / "metrics"

    @property
    def heartbeats(self) -> Path:
        """The shared memory of core.wire.heartbeats."""
        return self.path / "heartbeats"

    def stack_file(self, name: str) -> Path:
        """Where a process (engine-0, worker-1) writes the stacks of its threads when asked."""
        return self.path / f"stack-{name}"

    @property
    def control_address(self) -> str:
        """Where the supervisor listens to its children."""
        return f"ipc://{self.path}/control.ipc"

    def engine_address(self, model_index: int, generation: int) -> str:
        """Where the generation-th start of a model's engine listens to workers."""
        return f"ipc://{self.path}/engine-{model_index}-{generation}.ipc"

    def read_trace_key(self) -> bytes:
        """Makes names in a recorded trace comparable within this run, and with nothing else."""
        return (self.path / "trace.key").read_bytes()

    def read_settings(self) -> Settings:
        return Settings.model_validate_json((self.path / "settings.json").read_text())

    def read_models(self) -> list[ModelSource]:
        """The models as the supervisor found them, so that no other process looks for them again."""
        return [_model(entry) for entry in json.loads((self.path / "models.json").read_text())]


def _model(entry: dict[str, Any]) -> ModelSource:
    tokenizer_path = entry["tokenizer_path"]
    return ModelSource(
        name=entry["name"],
        aliases=tuple(entry["aliases"]),
        kind=entry["kind"],
        path=Path(entry["path"]),
        tokenizer_path=Path(tokenizer_path) if tokenizer_path else None,
    )
