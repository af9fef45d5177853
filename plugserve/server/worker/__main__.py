"""A server worker, run by the supervisor as `python -m plugserve.server.worker RUNTIME_DIR WORKER_INDEX LISTEN_FD`.

Does what must happen before large modules are imported: exit with the parent, set up logging, and set the folder of
prometheus_client's shared metric files.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from plugserve.core.errors import UserError
from plugserve.core.settings.log_file import log_file_of
from plugserve.core.settings.log_setup import set_up_logging
from plugserve.core.wire.child_process import die_with_parent
from plugserve.core.wire.handed_settings import receive_settings
from plugserve.core.wire.runtime_folder import RuntimeFolder

log = logging.getLogger(__name__)


def main() -> int:
    """Exit code: 0 after a stop, 2 for the user's fault, 1 for the server's."""
    settings = receive_settings()
    die_with_parent()
    folder = RuntimeFolder(Path(sys.argv[1]))
    set_up_logging(settings.log_level, settings.log_format, log_file_of(settings))
    folder.metrics.mkdir(exist_ok=True)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder.metrics)
    from plugserve.server.worker.worker_process import run_worker

    try:
        run_worker(folder, settings, worker_index=int(sys.argv[2]), listen_descriptor=int(sys.argv[3]))
    except UserError:  # the supervisor has the message, and prints it once
        return 2
    except Exception:
        log.exception("server worker failed")
        return 1
    return 0


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    os._exit(code)  # don't wait for a tokenizer that is still loading in a thread
