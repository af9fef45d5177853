"""The process that holds a model's tokenizer for a worker that is serving: `python -m
plugserve.server.text.tokenizer_process`.

To read a tokenizer holds the interpreter lock for up to seconds, in which a worker could stream no token; so a worker
that serves requests has it read here. Reads a TokenizerTask from standard input and answers with the facts of the text
side; then encodes text after text. Exits when standard input closes.
"""

from __future__ import annotations

import signal
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec
import numpy as np

from plugserve.core.errors import UserError
from plugserve.core.model_files.model_source import load_text_model
from plugserve.core.wire.runtime_folder import as_source
from plugserve.server.text.pipe_frames import read_frame, write_frame
from plugserve.server.text.prompt_encoder import PromptEncoder
from plugserve.server.text.rendered_text import RenderedText
from plugserve.server.text.text_threads import TextThreads
from plugserve.server.text.token_pieces import pieces_of

HEAD: Final = struct.Struct("<QB")
"""Of an answer: the question's number, and 1 for an error."""

Encode = Callable[..., list[int]]


class TokenizerTask(msgspec.Struct):
    """source is the model's (ModelSource as JSON). guards_text: clients' text is kept free of control tokens, in models
    with a template or, with guards_always, in all. The tokenizer is written to json_file, for other processes."""

    source: dict[str, Any]
    chat_template: str | None
    guards_text: bool
    guards_always: bool
    json_file: str


class TextFacts(msgspec.Struct):
    """The first answer; error is one line where the files can't be read. Three frames with pieces follow."""

    error: str = ""
    chat_template: str | None = None
    special_tokens: dict[str, str] = {}
    pieces: bytes = b""


class EncodeTask(msgspec.Struct, array_like=True):
    number: int
    text: str
    client_spans: list[int] | None
    add_special_tokens: bool


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr
    first = read_frame(stdin)
    if first is None:
        return
    try:
        encode = _load(msgspec.msgpack.decode(first, type=TokenizerTask), stdout)
    except UserError as error:
        write_frame(stdout, msgspec.msgpack.encode(TextFacts(error=str(error))))
        return
    _serve(stdin, stdout, encode)


def _load(task: TokenizerTask, stdout: BinaryIO) -> Encode:
    text = load_text_model(as_source(task.source), task.chat_template)
    tokenizer_json = text.tokenizer.to_str()
    Path(task.json_file).write_text(tokenizer_json, encoding="utf-8")
    encode: Encode = text.encode
    if task.guards_text and (task.guards_always or text.chat_template is not None):
        encode = PromptEncoder(text.tokenizer, tokenizer_json, text.chat_template or "", text.encode).encode
    facts, *arrays = pieces_of(text.tokenizer)
    described = TextFacts("", text.chat_template, text.special_tokens, msgspec.msgpack.encode(facts))
    write_frame(stdout, msgspec.msgpack.encode(described))
    for array in arrays:
        write_frame(stdout, array)
    return encode


def _serve(stdin: BinaryIO, stdout: BinaryIO, encode: Encode) -> None:
    """Encode until the worker is gone. Long texts wait for each other, and hold up no short one."""
    threads, turn = TextThreads(), threading.Lock()

    def answer(task: EncodeTask) -> None:
        text = task.text if task.client_spans is None else RenderedText(task.text, task.client_spans)
        try:
            ids = encode(text, add_special_tokens=task.add_special_tokens)
            payload, has_failed = np.asarray(ids, dtype="<i4").tobytes(), 0
        except Exception as error:  # tokenizers raises bare Exception
            payload, has_failed = f"{type(error).__name__}: {error}".encode(), 1
        with turn:
            write_frame(stdout, HEAD.pack(task.number, has_failed), payload)

    while (frame := read_frame(stdin)) is not None:
        task = msgspec.msgpack.decode(frame, type=EncodeTask)
        threads.of_length(len(task.text)).submit(answer, task)
    threads.shutdown(wait=False, cancel_futures=True)


if __name__ == "__main__":
    main()
