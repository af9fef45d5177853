"""The server that a chat starts for itself, and stops at its end."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import IO, Final

from plugserve.core.errors import ConfigError

_READY: Final = re.compile(r"ready on (https?://\S+)")
_ERROR: Final = re.compile(r"^plugserve: error: (.*)$|^\S+ \S+ (?:ERROR|CRITICAL) \S+: (.*)$", re.MULTILINE)
_POLL_S: Final = 0.1
_STOP_S: Final = 15.0


class OwnServer:
    """`plugserve serve` with words, on a free port of the loopback interface, with a key of its own."""

    def __init__(self, words: Sequence[str], environ: Mapping[str, str], api_key: str | None) -> None:
        self.api_key = api_key or secrets.token_urlsafe(24)
        self.url = ""
        self._words = [*words, "--host", "127.0.0.1", "--port", "0", "--disable-log-requests"]
        self._words += ["--shutdown-timeout", "0"]
        self._environ = {**environ, "PLUGSERVE_API_KEY": self.api_key}
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - stop closes it

    def __enter__(self) -> OwnServer:
        """Start, and wait until it is ready. Raises ConfigError with its own error."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "plugserve", "serve", *self._words],
            env=self._environ,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,  # Ctrl-C ends an answer, not the server
        )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End it, and wait for its end."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._log.close()

    def _wait_until_ready(self) -> None:
        while True:
            is_running = self._process.poll() is None  # before its log is read, which may then be complete
            text = self._text()
            found = _READY.search(text)
            if found is not None:
                self.url = found[1]
                return
            if not is_running:
                errors = [one or other for one, other in _ERROR.findall(text)]
                raise ConfigError(errors[-1] if errors else f"the server ended with {self._process.returncode}")
            time.sleep(_POLL_S)

    def _text(self) -> str:
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode(errors="replace")
