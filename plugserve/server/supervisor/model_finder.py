"""Asks a child process (core/engine/find_model.py) for a model's files and its memory."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from dataclasses import dataclass

from plugserve.core.errors import EngineError, ModelError
from plugserve.core.model_files.model_source import ModelSource
from plugserve.core.settings.settings import Settings
from plugserve.core.wire.handed_settings import as_line
from plugserve.core.wire.runtime_folder import as_source


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A model's files, and the memory that it will take on its device: kv_bytes of size_bytes are the KV cache.
    device_bytes is the device's whole memory, 0 where the runner doesn't say."""

    source: ModelSource
    size_bytes: int
    kv_bytes: int = 0
    device_bytes: int = 0

    def size_with(self, kv_cache_memory: int | None) -> int:
        """Its size, with a KV cache of the size that the settings give."""
        return self.size_bytes if kv_cache_memory is None else self.size_bytes - self.kv_bytes + kv_cache_memory


async def find_model(name: str, settings: Settings) -> FoundModel:
    """settings are the model's. The child ends when the caller is cancelled. Raises ModelError or EngineError."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "plugserve.core.engine.find_model",
        name,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with contextlib.suppress(ConnectionError):
            process.stdin.write(as_line(settings))
            await process.stdin.drain()
        answer = await process.stdout.read()
    finally:
        process.stdin.close()  # it ends with its standard input, whatever it does
        await process.wait()
    if not answer.strip():
        raise EngineError(f"the search for the files of {name!r} ended with exit code {process.returncode}")
    found = json.loads(answer)
    if "error" in found:
        raise ModelError(found["error"])
    return FoundModel(**found | {"source": as_source(found["source"])})
