"""The chat in a terminal: messages, answers as they come, and commands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing

from plugserve.chat.api_client import ApiClient, ChatError
from plugserve.chat.arguments import put_field
from plugserve.chat.conversation import Conversation
from plugserve.chat.terminal import Terminal
from plugserve.core.errors import UserError

_KEYS = '''\
Ctrl-C stops an answer, Ctrl-D ends the chat. A backslash at a line's end continues it; """ begins and ends several
lines. //text sends /text.'''


class Chat:
    """One chat. run() goes on until the user ends it."""

    def __init__(self, client: ApiClient, conversation: Conversation, terminal: Terminal) -> None:
        self._client = client
        self._talk = conversation
        self._terminal = terminal
        self._unanswered: str | None = None  # for /retry, after an error
        self._is_over = False
        self._commands: Mapping[str, Callable[[str], None]] = {
            "help": self._help,
            "system": self._system,
            "set": self._set,
            "model": self._model,
            "retry": self._retry,
            "clear": self._clear,
            "save": self._save,
            "load": self._load,
            "quit": self._quit,
            "exit": self._quit,
            "bye": self._quit,
        }

    def run(self) -> None:
        self._terminal.note(f"{self._talk.model} at {self._client.url}. /help lists commands.")
        while not self._is_over:
            try:
                text = self._terminal.read().strip()
            except EOFError:
                self._terminal.write("\n")
                return
            except KeyboardInterrupt:
                self._terminal.write("\n")
                self._terminal.note("Ctrl-D or /quit ends the chat.")
                continue
            if text:
                self._take(text)

    def _take(self, text: str) -> None:
        """Send a message, or run a command."""
        try:
            if text.startswith("/") and not text.startswith("//"):
                self._command(text[1:])
            else:
                self._ask(text.removeprefix("/") if text.startswith("//") else text)
        except (ChatError, UserError) as error:
            self._terminal.note(f"error: {error}")

    # ---- answers

    def _ask(self, text: str) -> None:
        """Write the answer to text as it comes, and keep both. Raises ChatError; then neither is kept."""
        self._unanswered = text
        answer, finish_reason, is_stopped, is_reasoning = "", None, False, False
        try:
            with closing(self._client.answer(self._talk.model, self._talk.asked(text), self._talk.fields)) as pieces:
                for piece in pieces:
                    if piece.reasoning:
                        is_reasoning = True
                        self._terminal.write_dim(piece.reasoning)
                    if piece.text and is_reasoning:
                        is_reasoning = False
                        self._terminal.write("\n\n")
                    answer += piece.text  # before it is seen: Ctrl-C may come while it is written
                    self._terminal.write(piece.text)
                    finish_reason = piece.finish_reason or finish_reason
        except KeyboardInterrupt:
            is_stopped = True
        except ChatError:
            if answer or is_reasoning:
                self._terminal.write("\n")
            raise
        self._terminal.write("\n")
        if is_stopped:
            self._terminal.note("(stopped)")
        elif finish_reason == "length":
            self._terminal.note("(cut off: the limit of tokens is reached; /set max_tokens 500 changes it)")
        if answer or not is_stopped:
            self._talk.add(text, answer)
            self._unanswered = None

    # ---- commands

    def _command(self, text: str) -> None:
        name, _, rest = text.partition(" ")
        command = self._commands.get(name.lower())
        if command is None:
            raise UserError(f"there is no command /{name}; /help lists them, //{name} sends it as text")
        command(rest.strip())

    def _help(self, rest: str) -> None:
        """/help: this list"""
        described = dict.fromkeys(command.__doc__ or "" for command in self._commands.values())
        rows = [line.partition(": ") for line in described]
        for usage, _, what in rows:
            self._terminal.note(f"  {usage:22} {what}")
        self._terminal.note(_KEYS)

    def _system(self, rest: str) -> None:
        """/system [TEXT]: set the system prompt; without TEXT show it; /system - removes it"""
        if rest:
            self._talk.system = None if rest == "-" else rest
        self._terminal.note(f"system prompt: {self._talk.system or 'none'}")

    def _set(self, rest: str) -> None:
        """/set [NAME VALUE]: set a field of requests, such as temperature 0.7; /set NAME removes it"""
        name, _, value = rest.replace("=", " ", 1).partition(" ")
        if name and value.strip():
            put_field(self._talk.fields, f"{name}={value.strip()}", "/set")
        elif name and self._talk.fields.pop(name.replace("-", "_"), None) is None:
            raise UserError(f"{name} is not set; /set {name} VALUE sets it")
        shown = ", ".join(f"{name}={value!r}" for name, value in self._talk.fields.items())
        self._terminal.note(f"settings: {shown or 'none'}")

    def _model(self, rest: str) -> None:
        """/model [NAME]: use another of the server's models; without NAME list them"""
        models = self._client.models()
        if not rest:
            for name in models:
                self._terminal.note(f"  {name}{'  (in use)' if name == self._talk.model else ''}")
            return
        named = [name for name in models if name == rest] or [name for name in models if name.endswith(f"/{rest}")]
        if not named:
            raise UserError(f"the server has no model {rest!r}; it has {', '.join(models)}")
        self._talk.model = named[0]
        self._terminal.note(f"model: {self._talk.model}")

    def _retry(self, rest: str) -> None:
        """/retry: answer the last message anew"""
        text = self._unanswered or self._talk.take_last()
        if text is None:
            raise UserError("there is no message yet")
        self._ask(text)

    def _clear(self, rest: str) -> None:
        """/clear: forget all messages; system prompt and settings stay"""
        self._talk.messages.clear()
        self._unanswered = None
        self._terminal.note("messages: none")

    def _save(self, rest: str) -> None:
        """/save FILE: write the chat to a file"""
        if not rest:
            raise UserError("/save needs a file: /save FILE")
        self._terminal.note(f"saved: {self._talk.save(rest)}")

    def _load(self, rest: str) -> None:
        """/load FILE: go on with the chat of a file"""
        if not rest:
            raise UserError("/load needs a file: /load FILE")
        self._talk.load(rest)
        self._unanswered = None
        self._terminal.note(f"messages: {len(self._talk.messages)}; system prompt: {self._talk.system or 'none'}")

    def _quit(self, rest: str) -> None:
        """/quit: end the chat (also /exit, /bye, Ctrl-D)"""
        self._is_over = True
