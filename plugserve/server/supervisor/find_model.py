"""A child of the supervisor that finds one model's files, downloading them if need be, and says what memory the model
will take: `python -m plugserve.server.supervisor.find_model NAME`.

A process by itself, because a download may take long and has to end with the server. Reads the model's settings from
its standard input, writes one JSON object to its standard output: {"source": ..., "size_bytes": ...} or {"error": ...}.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from typing import Any

from plugserve.core.errors import UserError, one_line
from plugserve.core.model_files.model_source import resolve
from plugserve.core.settings.log_setup import set_up_logging
from plugserve.core.settings.settings import Settings
from plugserve.core.wire.child_process import die_with_parent
from plugserve.core.wire.handed_settings import receive_settings
from plugserve.server.supervisor.model_size import predict_bytes


def main() -> None:
    settings = receive_settings()
    die_with_parent()
    set_up_logging(settings.log_level)
    print(json.dumps(_found(sys.argv[1], settings), default=str), flush=True)


def _found(name: str, settings: Settings) -> dict[str, Any]:
    try:
        source = resolve(
            settings.model[0] if settings.model else None,
            revision=settings.revision,
            download_dir=settings.download_dir,
            tokenizer=settings.tokenizer,
            load_format=settings.load_format,
        )
        return {"source": asdict(replace(source, name=name)), "size_bytes": predict_bytes(settings, source)}
    except UserError as error:
        return {"error": str(error)}
    except Exception as error:  # a file in no known form
        return {"error": f"its files can't be read ({one_line(error)})"}


if __name__ == "__main__":
    main()
