"""An engine, run by the supervisor as `python -m plugserve.core.engine RUNTIME_DIR MODEL_INDEX REPLICA GENERATION`."""

from __future__ import annotations

import sys
from pathlib import Path

from plugserve.core.engine.engine_process import EngineProcess
from plugserve.core.wire.child_process import die_with_parent
from plugserve.core.wire.handed_settings import receive_settings
from plugserve.core.wire.runtime_folder import RuntimeFolder


def main() -> int:
    settings = receive_settings()
    die_with_parent()
    folder, model_index, replica, generation = sys.argv[1:5]
    process = EngineProcess(RuntimeFolder(Path(folder)), settings, int(model_index), int(replica), int(generation))
    code = process.run()
    process.close()
    return code


if __name__ == "__main__":
    sys.exit(main())
