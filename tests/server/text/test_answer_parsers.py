"""Parsers of plugins that raise, hang or return junk: the answer's text still comes, and the server goes on."""

import gc
import re
import time

import pytest

from plugserve.core.contracts.answers import AnswerDelta
from plugserve.plugins.tool_parsers.hermes import hermes
from plugserve.server.text import answer_parsers
from plugserve.server.text.deadline import Deadline, TookTooLong
from tests.server.api.test_tools import TOOLS

TEXT = "hello world! and so on"


@pytest.fixture(autouse=True)
def short_deadline(monkeypatch):
    monkeypatch.setattr(answer_parsers, "_CALL_S", 0.05)


class Faulty:
    """Tells text until the tenth character, then does what it is made for."""

    special_tokens = ()
    opening, closing, may_think, is_thinking = "<a>", "</a>", True, False

    def __init__(self, fault, shape):
        self._fault = fault
        self._shape = shape
        self._num_seen = 0
        self._held = ""

    def feed(self, text):
        self._num_seen += len(text)
        if self._num_seen >= 10:
            return self._fault()
        told, self._held = self._held, text  # withholds one piece
        return self._shape(told)

    def finish(self):
        return self._shape(self._held)


def hang():
    while True:
        pass


def swallow():
    while True:
        try:
            time.sleep(60)
        except BaseException:  # the interruption is meant to be a BaseException
            continue


def explode():
    raise ZeroDivisionError("boom")


FAULTS = {
    "raises": explode,
    "returns junk": lambda: 5,
    "hangs": hang,
    "hangs in a regular expression": lambda: re.match(r"(a*)*b", "a" * 60),
    "swallows": lambda: time.sleep(60),
    "leaves": lambda: (_ for _ in ()).throw(SystemExit(3)),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", ["tool_parser", "reasoning_parser"])
@pytest.mark.parametrize("tokens_per_step", [1, 100])
async def test_text_of_an_answer_survives_its_parser(serve, fault, kind, tokens_per_step):
    shape = AnswerDelta if kind == "tool_parser" else lambda text: ("", text)
    reports = []
    model = {
        kind: lambda argument: Faulty(FAULTS[fault], shape),
        "report": lambda plugin, hook, error: reports.append((plugin, hook)),
    }
    fields = {"tools": TOOLS} if kind == "tool_parser" else {}
    async with serve(TEXT, model=model, tokens_per_step=tokens_per_step) as server:
        choice = (await server.chat(**fields)).json()["choices"][0]
        assert choice["message"]["content"] == TEXT
        assert choice["finish_reason"] == "stop"
        events = await server.chat_events(**fields)
        assert "".join(event["choices"][0]["delta"].get("content") or "" for event in events) == TEXT
        assert (await server.complete()).status_code == 200
    plugin, hook = ("tools", "plugserve_tool_parsers") if fields else ("thoughts", "plugserve_reasoning_parsers")
    assert reports == [(plugin, hook)] * 2  # once an answer


@pytest.mark.parametrize("kind", ["tool_parser", "reasoning_parser"])
async def test_parser_that_cannot_be_made_leaves_the_text(serve, kind):
    reports = []
    model = {kind: lambda argument: explode(), "report": lambda *told: reports.append(told)}
    async with serve(TEXT, model=model) as server:
        choice = (await server.chat(tools=TOOLS if kind == "tool_parser" else None)).json()["choices"][0]
        assert choice["message"]["content"] == TEXT
    assert reports


async def test_parser_is_called_with_the_requests_tools(serve):
    seen = []

    def make(tools):
        seen.append(tools)
        return hermes(tools)

    async with serve(model={"tool_parser": make}) as server:
        await server.chat(tools=TOOLS)
    assert seen == [TOOLS]


async def test_special_tokens_that_a_parser_needs_are_part_of_its_text(serve, tokenizer):
    ids = [tokenizer.token_to_id("<|user|>"), *tokenizer.encode("hi", add_special_tokens=False).ids, 1]
    seen = []

    class Parser:
        special_tokens = ("<|user|>",)

        def feed(self, text):
            seen.append(text)
            return AnswerDelta(text.replace("<|user|>", "[mark]"))

        def finish(self):
            return AnswerDelta()

    model = {"tool_parser": lambda tools: Parser(), "special_tokens": ("<|user|>",)}
    async with serve(lambda call: ids, model=model) as server:
        assert (await server.chat()).json()["choices"][0]["message"]["content"] == "hi"
        assert (await server.chat(tools=TOOLS)).json()["choices"][0]["message"]["content"] == "[mark]hi"


def test_deadline_ends_code_that_swallows_interruptions():
    tries = []

    def stubborn():
        while len(tries) < 3:
            try:
                hang()
            except BaseException:
                tries.append(1)
        hang()

    with pytest.raises(TookTooLong):
        Deadline(0.02, 1).run(stubborn)
    assert len(tries) == 3


def test_deadline_counts_all_calls_together():
    deadline = Deadline(call_s=10, total_s=0.05)
    deadline.run(lambda: time.sleep(0.16))
    with pytest.raises(TookTooLong):
        deadline.run(lambda: time.sleep(60))
    assert Deadline(1, 1).run(lambda: 5) == 5


def test_a_busy_machine_is_not_the_codes_fault():
    deadline = Deadline(call_s=0.2, total_s=10)
    deadline.run(lambda: time.sleep(0.4))  # as if other processes had run meanwhile
    with pytest.raises(TookTooLong):
        deadline.run(lambda: time.sleep(60))


def test_garbage_is_not_collected_in_foreign_codes_time():
    assert gc.isenabled()
    assert Deadline(1, 1).run(gc.isenabled) is False
    assert gc.isenabled()
    with pytest.raises(ValueError, match="wrong"):
        Deadline(1, 1).run(lambda: int("wrong"))
    assert gc.isenabled()
