"""Runs `plugserve chat`: finds or starts the server, then chats in the terminal or answers what comes from a pipe."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from types import FrameType
from typing import Final, NoReturn

from plugserve.chat.api_client import ApiClient, ChatError
from plugserve.chat.arguments import Arguments, read_arguments
from plugserve.chat.chat_loop import Chat
from plugserve.chat.conversation import Conversation
from plugserve.chat.own_server import OwnServer
from plugserve.chat.terminal import Terminal, history_file
from plugserve.core.errors import ConfigError, UserError

_ENDING: Final = (signal.SIGTERM, signal.SIGHUP)


def chat(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run the command. Raises UserError for what the user can correct; returns 1 for a server's failure."""
    handlers = {number: signal.signal(number, _leave) for number in _ENDING}
    try:
        return _run(read_arguments(words, environ), environ)
    except ChatError as error:
        print(f"plugserve: error: {error}", file=sys.stderr)
        return 1
    finally:
        if not isinstance(sys.exc_info()[1], SystemExit):
            for number, handler in handlers.items():
                signal.signal(number, handler)


def _run(arguments: Arguments, environ: Mapping[str, str]) -> int:
    for stream in (sys.stdin, sys.stdout):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    is_terminal = sys.stdin.isatty()
    if is_terminal:  # a shell that starts jobs in the background hands Ctrl-C down as ignored
        signal.signal(signal.SIGINT, signal.default_int_handler)
    text = "" if is_terminal else _piped()
    with nullcontext() if arguments.url is not None else _start(arguments, environ, is_terminal) as server:
        url, key = (arguments.url, arguments.api_key) if server is None else (server.url, server.api_key)
        client = ApiClient(url or "", key)
        talk = Conversation(_model(client, arguments), arguments.system, fields=arguments.fields)
        if is_terminal:
            _converse(client, talk, arguments, environ)
        else:
            _answer(client, talk, text)
    return 0


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """A signal that ends the program ends its server too; further ones don't disturb that."""
    for other in _ENDING:
        signal.signal(other, signal.SIG_IGN)
    raise SystemExit(128 + number)


def _piped() -> str:
    text = sys.stdin.read().strip()
    if not text:
        raise UserError("there is no message: standard input is empty")
    return text


def _start(arguments: Arguments, environ: Mapping[str, str], is_terminal: bool) -> OwnServer:
    words = [*arguments.words, *(["--model", arguments.model] if arguments.model is not None else [])]
    if is_terminal:
        print("Starting a server; it ends with this chat.", file=sys.stderr)
    return OwnServer(words, environ, arguments.api_key)


def _model(client: ApiClient, arguments: Arguments) -> str:
    """The model to chat with. A server's own check tells whether it has the one that is named."""
    if arguments.url is not None and arguments.model is not None:
        return arguments.model
    models = client.models()
    if not models:
        raise ConfigError(f"{client.url} serves no model now")
    return models[0]


def _converse(client: ApiClient, talk: Conversation, arguments: Arguments, environ: Mapping[str, str]) -> None:
    with closing(Terminal(history_file(environ) if arguments.keeps_history else None)) as terminal:
        Chat(client, talk, terminal).run()


def _answer(client: ApiClient, talk: Conversation, text: str) -> None:
    """Print the answer to one message, and nothing else."""
    with closing(client.answer(talk.model, talk.asked(text), talk.fields)) as pieces:
        for piece in pieces:
            sys.stdout.write(piece.text)
            sys.stdout.flush()
    sys.stdout.write("\n")
