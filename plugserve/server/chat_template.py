"""Conversations as prompts, through the model's own Jinja template. Knows nothing of HTTP or tokens.

Rendering happens in a child process (template_process.py) that starts on the first render, is killed when a render
takes too long, and starts again for the next one. Renders queue up; one that waits is never lost to another's kill.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import struct
import sys
from asyncio.subprocess import PIPE, Process
from typing import Any

import jinja2

from plugserve.core.errors import ModelError, RequestError
from plugserve.server.template_process import make_environment

logger = logging.getLogger(__name__)

RENDER_TIMEOUT_S = 2.0
START_TIMEOUT_S = 10.0
_MAX_FOREIGN = 2  # clients' own templates that render at once
_LENGTH = struct.Struct("<I")
_RESERVED = ("messages", "tools", "add_generation_prompt", "continue_final_message", "chat_template", "tokenize")


class ChatTemplate:
    """One model's chat template. Belongs to the event loop that it is first used on.

    template None is a model without one: every render is refused. special_tokens (bos_token, ...) are the
    template's variables. Raises ModelError for a template that isn't Jinja.
    """

    def __init__(
        self,
        template: str | None,
        special_tokens: dict[str, str],
        *,
        timeout_s: float = RENDER_TIMEOUT_S,
        name: str = "the model's chat template",
    ) -> None:
        if template is not None:
            _check_syntax(template, name)
        self._name = name
        self._foreign = asyncio.Semaphore(_MAX_FOREIGN)
        self._template = template
        self._special_tokens = special_tokens
        self._timeout_s = timeout_s
        self._process: Process | None = None
        self._compile_error: str | None = None
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[str]] = set()
        self._is_closed = False

    async def start(self) -> None:
        """Start the child and compile the template now rather than at the first render. Raises ModelError."""
        if self._template is None:
            return
        try:
            async with self._lock:
                await self._running_process()
        except RequestError as error:
            raise ModelError(str(error)) from None

    async def render(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[Any] | None = None,
        kwargs: dict[str, Any] | None = None,
    ) -> str:
        """The prompt for messages. kwargs are extra variables of the template (chat_template_kwargs).

        Raises RequestError when the template refuses, fails, takes too long or grows too large.
        """
        if self._template is None:
            raise RequestError(
                "this model has no chat template: start the server with --chat-template, or use /v1/completions",
                code="chat_template_missing",
            )
        if add_generation_prompt and continue_final_message:
            raise RequestError(
                "add_generation_prompt and continue_final_message can't both be true", param="continue_final_message"
            )
        kwargs = kwargs or {}
        reserved = next((name for name in kwargs if name in _RESERVED), None)
        if reserved is not None:
            raise RequestError(f"chat_template_kwargs may not set {reserved!r}", param="chat_template_kwargs")
        request = {
            "messages": messages,
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            "kwargs": {**self._special_tokens, **kwargs},
        }
        # A client that goes away cancels us, but not the exchange: half an answer left in the pipe would be taken
        # for the next one's.
        task = asyncio.create_task(self._exchange(json.dumps(request).encode()))
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return await asyncio.shield(task)

    async def render_with(self, template: str, messages: list[dict[str, Any]], **arguments: Any) -> str:
        """render with a client's own template, in a process that ends with it; a few at a time."""
        async with self._foreign:
            try:
                foreign = ChatTemplate(
                    template, self._special_tokens, timeout_s=self._timeout_s, name="the request's chat_template"
                )
            except ModelError as error:
                raise RequestError(str(error), code="chat_template_error", param="chat_template") from None
            try:
                return await foreign.render(messages, **arguments)
            finally:
                await foreign.close()

    async def close(self) -> None:
        """End the child. Renders that are under way fail; later ones are refused."""
        self._is_closed = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._kill()

    def _forget(self, task: asyncio.Task[str]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # taken note of, in case nobody waits for it any more

    async def _exchange(self, request: bytes) -> str:
        """Send one request to the child and take its answer. One at a time."""
        async with self._lock:
            for _ in range(2):
                process = await self._running_process()
                try:
                    async with asyncio.timeout(self._timeout_s):
                        answer = await _ask(process, request)
                    return _text_of(answer)
                except TimeoutError:
                    await self._kill()
                    logger.warning("chat template killed: reason=timeout limit_s=%g", self._timeout_s)
                    raise RequestError(f"the chat template took longer than {self._timeout_s:g} s") from None
                except (ConnectionError, asyncio.IncompleteReadError):
                    await self._kill()
                    logger.warning("chat template process died: exit_code=%s", process.returncode)
            raise RequestError("the chat template ended the process that renders it")

    async def _running_process(self) -> Process:
        """The child, started if need be, with the template compiled. Call under the lock."""
        if self._is_closed:
            raise RequestError("the server is shutting down", status=499)
        if self._compile_error is not None:
            raise RequestError(self._compile_error)
        if self._process is not None and self._process.returncode is None:
            return self._process
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "plugserve.server.template_process"), stdin=PIPE, stdout=PIPE
        )
        self._process = process
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                answer = await _ask(process, json.dumps({"template": self._template}).encode())
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError):
            await self._kill()
            raise RequestError("the process that renders the chat template did not start") from None
        if "error" in answer:
            await self._kill()
            self._compile_error = f"{self._name} can't be compiled: {answer['error']}"
            raise RequestError(self._compile_error)
        return process

    async def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        if process.stdin is not None:
            process.stdin.close()
        await process.wait()


def _check_syntax(template: str, name: str) -> None:
    """Parse only: nothing of the template runs or is folded here."""
    try:
        make_environment().parse(template)
    except jinja2.exceptions.TemplateSyntaxError as error:
        raise ModelError(
            f"{name} is not valid Jinja: line {error.lineno}: {error.message}; replace it with --chat-template"
        ) from None
    except RecursionError:
        raise ModelError(f"{name} nests too deeply; replace it") from None


async def _ask(process: Process, request: bytes) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(_LENGTH.pack(len(request)) + request)
    await process.stdin.drain()
    (length,) = _LENGTH.unpack(await process.stdout.readexactly(_LENGTH.size))
    answer: dict[str, Any] = json.loads(await process.stdout.readexactly(length))
    return answer


def _text_of(answer: dict[str, Any]) -> str:
    if "error" in answer:
        raise RequestError(f"{answer['error']}", code="chat_template_error")
    text: str = answer["text"]
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise RequestError("the messages hold half a surrogate pair, which is not text", param="messages") from None
    return text
