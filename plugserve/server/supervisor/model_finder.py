"""Asks a child process (find_model) for a model's files and size."""

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
    """A model's files, and the memory that it will take."""

    source: ModelSource
    size_bytes: int


async def find_model(name: str, settings: Settings) -> FoundModel:
    """settings are the model's. The child is killed when the caller is cancelled. Raises ModelError or EngineError."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "plugserve.server.supervisor.find_model",
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
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.stdin.close()
        await process.wait()
    if not answer.strip():
        raise EngineError(f"the search for the files of {name!r} ended with exit code {process.returncode}")
    found = json.loads(answer)
    if "error" in found:
        raise ModelError(found["error"])
    return FoundModel(as_source(found["source"]), found["size_bytes"])
