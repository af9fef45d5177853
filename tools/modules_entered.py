"""Lists the server's modules that one streamed chat request enters with every optional feature off.

Run it from the repository's root: python tools/modules_entered.py
"""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from plugserve.server.operations.metrics import Metrics  # noqa: E402
from plugserve.server.worker.served_models import ServedModels  # noqa: E402
from plugserve.server.worker.server_state import ServerState  # noqa: E402
from tests.server.conftest import running  # noqa: E402
from tests.server.fakes import FakeEngine, NoHooks, byte_level_tokenizer, says, served  # noqa: E402

PACKAGE = ROOT / "plugserve"


class EnteredModules:
    """The package's modules whose functions were called, in all threads, between start and stop."""

    def __init__(self) -> None:
        self._files: set[str] = set()

    def start(self) -> None:
        threading.setprofile_all_threads(self._note) if sys.version_info >= (3, 12) else threading.setprofile(
            self._note
        )
        sys.setprofile(self._note)

    def stop(self) -> None:
        threading.setprofile(None)
        sys.setprofile(None)

    def _note(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            self._files.add(frame.f_code.co_filename)

    @property
    def names(self) -> list[str]:
        """Paths below the package, without __init__ files."""
        paths = [Path(name) for name in self._files if name.startswith(str(PACKAGE))]
        return sorted(str(path.relative_to(PACKAGE)) for path in paths if path.name != "__init__.py")


async def modules_of_streamed_chat() -> list[str]:
    """The modules entered from the request's arrival to the end of its answer."""
    tokenizer = byte_level_tokenizer()
    model = served(FakeEngine(says(tokenizer, "hello world!")), tokenizer)
    state = ServerState(models=ServedModels([model]), hooks=NoHooks(), version="0", metrics=Metrics())
    entered = EnteredModules()
    async with running(state) as server:
        await server.chat_events()  # what is done once, at a first request, is no part of a request's way
        entered.start()
        await server.chat_events()
        await state.drain(1.0)
        entered.stop()
    return entered.names


def main() -> None:
    names = asyncio.run(modules_of_streamed_chat())
    in_server = [name for name in names if name.startswith("server/")]
    print("\n".join(names))
    print(f"{len(in_server)} modules of the server, {len(names) - len(in_server)} others")


if __name__ == "__main__":
    main()
