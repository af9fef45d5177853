"""A model's tokenizer in a process of its own (tokenizer_process), as threads of a worker use it."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from plugserve.core.errors import EngineUnavailableError, ModelError
from plugserve.server.text.pipe_frames import read_frame, write_frame
from plugserve.server.text.rendered_text import RenderedText
from plugserve.server.text.token_pieces import PieceFacts, TokenPieces
from plugserve.server.text.tokenizer_process import HEAD, EncodeTask, TextFacts, TokenizerTask

_CLOSE_S: Final = 2.0


class RemoteTokenizer:
    """Made by start. Its process is started again where it has died."""

    def __init__(self, task: TokenizerTask) -> None:
        self._task = task
        self._turn = threading.Lock()
        self._numbers = itertools.count(1)
        self._waiting: dict[int, Future[list[int]]] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._is_closed = False
        self.facts = TextFacts()
        self.pieces: TokenPieces

    @classmethod
    async def start(cls, task: TokenizerTask) -> RemoteTokenizer:
        """Read the tokenizer in its process. Raises ModelError."""
        remote = cls(task)
        try:
            await asyncio.to_thread(remote._open)
        except BaseException:
            await remote.close()
            raise
        return remote

    @property
    def json_file(self) -> Path:
        """The tokenizer.json that other processes may read."""
        return Path(self._task.json_file)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of text. Waits for the process: call it off the event loop, from any thread. Raises
        EngineUnavailableError when the process ends."""
        spans = list(text.client_spans) if isinstance(text, RenderedText) else None
        future: Future[list[int]] = Future()
        with self._turn:
            process = self._running()
            number = next(self._numbers)
            task = EncodeTask(number, str.__str__(text), spans, add_special_tokens)
            frame = msgspec.msgpack.encode(task)
            self._waiting[number] = future
            assert process.stdin is not None
            try:
                write_frame(process.stdin, frame)  # type: ignore[arg-type]
            except OSError:
                self._fail_waiting()
        return future.result()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._is_closed:
            raise EngineUnavailableError("The model has just been unloaded; try again in a moment.")
        if self._process is None or self._process.poll() is not None:
            self._open()
        assert self._process is not None
        return self._process

    def _open(self) -> None:
        command = [sys.executable, "-P", "-m", "plugserve.server.text.tokenizer_process"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._process = process
        stdin: Any = process.stdin
        stdout: Any = process.stdout
        write_frame(stdin, msgspec.msgpack.encode(self._task))
        first = read_frame(stdout)
        if first is None:
            raise ModelError(f"the process that reads the tokenizer ended with exit code {process.wait()}")
        self.facts = msgspec.msgpack.decode(first, type=TextFacts)
        if self.facts.error:
            raise ModelError(self.facts.error)
        arrays = [read_frame(stdout) or b"" for _ in range(3)]
        self.pieces = TokenPieces(msgspec.msgpack.decode(self.facts.pieces, type=PieceFacts), *arrays)
        threading.Thread(target=self._read, args=(stdout,), name="tokenizer", daemon=True).start()

    def _read(self, stdout: Any) -> None:
        """Hand out answers until the process ends."""
        while (frame := read_frame(stdout)) is not None:
            number, has_failed = HEAD.unpack_from(frame)
            future = self._waiting.pop(number, None)
            if future is None:
                continue
            if has_failed:
                future.set_exception(RuntimeError(f"the text can't be encoded: {frame[HEAD.size :].decode()}"))
            else:
                future.set_result(np.frombuffer(frame, dtype="<i4", offset=HEAD.size).tolist())
        self._fail_waiting()

    def _fail_waiting(self) -> None:
        while self._waiting:
            _, future = self._waiting.popitem()
            future.set_exception(EngineUnavailableError("The tokenizer's process ended; send the request again."))

    async def close(self) -> None:
        self._is_closed = True
        if self._process is not None:
            await asyncio.to_thread(self._end, self._process)
        self.json_file.unlink(missing_ok=True)

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        try:
            process.stdin.close()
            process.wait(_CLOSE_S)
        except (OSError, subprocess.TimeoutExpired):
            process.kill()
            process.wait()
