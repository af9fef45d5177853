"""Finds one model's files, downloading them if need be, and predicts its memory: a child of the supervisor, run as
`python -m plugserve.core.engine.find_model NAME`.

A process by itself, because a download may take long and has to end with the server. Reads the model's settings from
its standard input, and writes one JSON object to its standard output: a FoundModel, or {"error": ...}.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from typing import Any

from plugserve.core.contracts.memory import HOST, MemoryLedger
from plugserve.core.contracts.weights import ModelSource
from plugserve.core.engine.memory_check import MemoryCheck
from plugserve.core.errors import UserError, one_line
from plugserve.core.model_files.model_source import resolve
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.log_file import log_file_of
from plugserve.core.settings.log_setup import set_up_logging
from plugserve.core.settings.settings import Settings
from plugserve.core.wire.child_process import die_with_parent
from plugserve.core.wire.handed_settings import receive_settings

_WEIGHT_FILES = ("*.safetensors", "*.gguf", "*.bin", "*.pt", "*.pth", "*.distcp")


def main() -> None:
    settings = receive_settings()
    die_with_parent()
    set_up_logging(settings.log_level, settings.log_format, log_file_of(settings))
    print(json.dumps(_answer(sys.argv[1], settings), default=str), flush=True)


def _answer(name: str, settings: Settings) -> dict[str, Any]:
    try:
        source = resolve(
            settings.model[0] if settings.model else None,
            revision=settings.revision,
            download_dir=settings.download_dir,
            tokenizer=settings.tokenizer,
            load_format=settings.load_format,
        )
        source = replace(source, name=name)
        return {"source": asdict(source), **_memory(settings, source)}
    except UserError as error:
        return {"error": str(error)}
    except Exception as error:  # a file in no known form
        return {"error": f"its files can't be read ({one_line(error)})"}


def _memory(settings: Settings, source: ModelSource) -> dict[str, int]:
    """What it takes on its device, its KV cache in that, and the device's total; without a prediction, its files'
    size."""
    host = PluginHost.load(settings.selection())
    host.configure(settings)
    ledger = MemoryCheck(settings, host, source).ledger()
    if ledger is None:
        files = [source.path] if source.path.is_file() else [p for one in _WEIGHT_FILES for p in source.path.glob(one)]
        kv_bytes = settings.kv_cache_memory or 0
        return {"size_bytes": sum(file.stat().st_size for file in files) + kv_bytes, "kv_bytes": kv_bytes}
    place = next((one for one in ledger.places if one.name != HOST), ledger.places[0])
    return {"size_bytes": place.needed_bytes, "kv_bytes": _kv_bytes(ledger), "device_bytes": place.total_bytes}


def _kv_bytes(ledger: MemoryLedger) -> int:
    return ledger.kv_bytes_per_token * ledger.num_kv_tokens


if __name__ == "__main__":
    main()
