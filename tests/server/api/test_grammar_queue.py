"""Grammars of many clients: slow ones of one client don't delay others, and the request's timeout runs meanwhile."""

import asyncio
import signal
import time

import pytest

from plugserve.core.errors import RequestError
from plugserve.server.operations.access import Access
from plugserve.server.operations.service_limits import ServiceLimits
from plugserve.server.sandbox.fair_queue import Sender
from plugserve.server.text.grammars import GrammarCompiler, GrammarSource

TRIVIAL = {"type": "boolean"}


def slow_schema(number=0):
    """17 KB of patterns, each of which is compared with all others: about 10 s."""
    patterns = {f"^k{index}_.*a.*b.*$": {"type": "string"} for index in range(450)}
    return {"type": "object", "patternProperties": patterns, "title": str(number)}


def asking_for(schema):
    format = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return {"messages": [{"role": "user", "content": "hi"}], "response_format": format, "max_tokens": 4}


def chat(server, schema, key=None):
    headers = {} if key is None else {"x-api-key": key}
    return server.client.post("/v1/chat/completions", json=asking_for(schema), headers=headers)


async def hang_up(tasks):
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def limited(**limits):
    return {"limits": ServiceLimits(**limits)}


def compiler_of(server):
    return next(iter(server.state.models)).text.grammars


async def test_a_trivial_schema_waits_for_no_client_who_left(serve, eventually):
    async with serve(state=limited(timeout_s=6.0)) as server:
        pool = compiler_of(server)._sandbox
        left = [asyncio.create_task(chat(server, slow_schema(number))) for number in range(7)]
        await eventually(lambda: len(pool._waiting) == 6)
        await hang_up(left)
        await eventually(lambda: len(pool._waiting) == 0)
        assert (await chat(server, TRIVIAL)).status_code == 200


async def test_one_keys_slow_schemas_leave_a_process_to_the_other_key(serve, eventually):
    async with serve(state={"access": Access(keys=["mallory", "alice"])}) as server:
        pool = compiler_of(server)._sandbox
        slow = [asyncio.create_task(chat(server, slow_schema(number), "mallory")) for number in range(7)]
        await eventually(lambda: len(pool._waiting) == 6)
        assert (await chat(server, TRIVIAL, "alice")).status_code == 200
        assert not any(task.done() for task in slow)
        await hang_up(slow)


async def test_the_time_of_a_request_runs_while_its_grammar_waits(serve):
    async with serve(state=limited(timeout_s=0.5)) as server:
        answer = await chat(server, slow_schema())
        assert answer.status_code == 504
        assert answer.json()["error"]["code"] == "request_timeout"
        assert not server.engine.calls


async def test_too_many_waiting_grammars_of_a_client_are_refused(serve, eventually):
    async with serve() as server:
        pool = compiler_of(server)._sandbox
        pool._max_waiting_per_account = 2
        slow = [asyncio.create_task(chat(server, slow_schema(number))) for number in range(3)]
        await eventually(lambda: len(pool._waiting) == 2)
        refused = await chat(server, TRIVIAL)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "queue_full"
        assert "retry-after" in refused.headers
        await hang_up(slow)


async def test_a_schema_that_took_too_long_is_refused_at_once_the_next_time(tokenizer):
    compiler = GrammarCompiler(tokenizer.to_str(), timeout_s=0.5)
    source = GrammarSource("json", slow_schema(), "response_format.json_schema.schema")
    try:
        with pytest.raises(RequestError, match="took longer than") as first:
            await compiler.compile(source)
        asked = []
        compiler._sandbox.ask = lambda *arguments: asked.append(arguments)
        with pytest.raises(RequestError, match="took longer than") as again:
            await compiler.compile(source, Sender("somebody else"))
        assert str(again.value) == str(first.value)
        assert not asked
    finally:
        await compiler.close()


async def test_a_schema_is_tried_again_some_minutes_later(tokenizer, monkeypatch):
    compiler = GrammarCompiler(tokenizer.to_str(), timeout_s=0.5)
    source = GrammarSource("regex", "a+", "structured_outputs.regex")
    try:
        await compiler.compile(source)
        (key,) = compiler._kept
        compiler._kept.clear()
        compiler._too_slow[key] = type("TooSlow", (), {"reason": "slow", "until_s": time.monotonic() - 1})()
        assert "a+" in await compiler.compile(source)
    finally:
        await compiler.close()


async def test_a_machine_that_stood_still_is_not_held_against_the_schema(tokenizer):
    compiler = GrammarCompiler(tokenizer.to_str(), timeout_s=0.3)
    source = GrammarSource("regex", "b+", "structured_outputs.regex")
    try:
        await compiler.compile(GrammarSource("regex", "a+", "structured_outputs.regex"))
        compiler._sandbox.process.send_signal(signal.SIGSTOP)
        with pytest.raises(RequestError, match="took longer than"):
            await compiler.compile(source)
        assert "b+" in await compiler.compile(source)
    finally:
        await compiler.close()


async def test_the_words_of_a_request_are_tokenised_off_the_event_loop(serve):
    import threading

    threads = set()
    async with serve() as server:
        text = next(iter(server.state.models)).text
        encode = text.encode

        def noting(*arguments, **options):
            threads.add(threading.current_thread())
            return encode(*arguments, **options)

        object.__setattr__(text, "encode", noting)
        assert (await server.complete("hello", bad_words=["x y"] * 8, echo=True)).status_code == 200
    assert threading.main_thread() not in threads
