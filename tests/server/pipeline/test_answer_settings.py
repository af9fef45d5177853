"""The settings that change answers of every request, through a real server with a scripted engine."""

import json
import logging

import pytest

from plugserve.server.pipeline.answer_settings import AnswerSettings, PromptLog, answer_settings
from tests.core.settings.reading import read


def settings_of(*words):
    return {"state": {"answers": answer_settings(read(*words).settings)}}


async def test_every_stream_ends_with_usage_when_it_is_forced(serve):
    async with serve(**settings_of("--enable-force-include-usage")) as server:
        for events in (await server.chat_events(), await server.complete_events()):
            assert events[-1]["choices"] == []
            assert events[-1]["usage"]["completion_tokens"] == 4
            assert all(event["usage"] is None for event in events[:-1])


async def test_forced_usage_wins_over_a_request_that_asks_for_none(serve):
    async with serve(**settings_of("--enable-force-include-usage")) as server:
        events = await server.chat_events(stream_options={"include_usage": False, "continuous_usage_stats": True})
        assert [event["usage"]["completion_tokens"] for event in events][-1] == 4
        assert all(event["usage"] for event in events)


async def test_usage_in_every_chunk_needs_usage_at_all(server):
    events = await server.chat_events(stream_options={"continuous_usage_stats": True})
    assert all("usage" not in event for event in events)


@pytest.mark.parametrize(
    ("words", "num_cached", "expected"),
    [
        ((), 0, None),
        ((), 2, 2),
        (("--enable-prompt-tokens-details",), 0, 0),
        (("--enable-prompt-tokens-details",), 2, 2),
        (("--no-enable-prompt-tokens-details",), 2, None),
    ],
)
async def test_cached_tokens_are_shown_as_the_setting_says(serve, words, num_cached, expected):
    async with serve(cached_tokens=num_cached, **settings_of(*words)) as server:
        events = await server.complete_events(stream_options={"include_usage": True})
        usages = [(await server.chat()).json()["usage"], (await server.complete()).json()["usage"], events[-1]["usage"]]
    for usage in usages:
        shown = usage.get("prompt_tokens_details")
        assert shown == (None if expected is None else {"cached_tokens": expected})


async def test_tokens_of_logprobs_are_named_by_id(serve):
    async with serve(**settings_of("--return-tokens-as-token-ids")) as server:
        ids = (await server.complete(return_token_ids=True)).json()["choices"][0]["token_ids"]
        completion = (await server.complete(logprobs=1)).json()["choices"][0]["logprobs"]
        chat = (await server.chat(logprobs=True, top_logprobs=1)).json()["choices"][0]["logprobs"]["content"]
        streamed = [
            entry["token"]
            for event in await server.chat_events(logprobs=True)
            for choice in event["choices"]
            for entry in (choice["logprobs"] or {}).get("content", [])
        ]
    names = [f"token_id:{token_id}" for token_id in ids]
    assert completion["tokens"] == names
    assert all(name in tops for name, tops in zip(names, completion["top_logprobs"], strict=True))
    assert [entry["token"] for entry in chat] == streamed == names
    assert all(top["token"].startswith("token_id:") for entry in chat for top in entry["top_logprobs"])
    assert bytes(byte for entry in chat for byte in entry["bytes"]).startswith(b"hello")


@pytest.mark.parametrize(("words", "own"), [((), True), (("--return-tokens-as-token-ids",), False)])
async def test_a_requests_own_spelling_of_tokens_wins(serve, words, own):
    async with serve(**settings_of(*words)) as server:
        answer = await server.complete(logprobs=1, return_tokens_as_token_ids=own)
    tokens = answer.json()["choices"][0]["logprobs"]["tokens"]
    assert all(token.startswith("token_id:") == own for token in tokens)
    assert "x-plugserve-ignored-fields" not in answer.headers


# ---- the log of prompts


def logged(caplog):
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith("prompt id=")]


async def test_prompts_are_logged_only_when_asked(serve, caplog):
    caplog.set_level(logging.DEBUG)
    async with serve() as server:
        await server.complete("my secret")
    assert "secret" not in caplog.text


async def test_a_logged_prompt_is_what_the_model_gets_in_one_line(serve, caplog):
    caplog.set_level(logging.INFO)
    async with serve(**settings_of("--log-prompts")) as server:
        await server.chat("two\nlines")
    (line,) = logged(caplog)
    assert "\n" not in line
    assert "two\nlines" in json.loads(line.partition(" prompt=")[2])
    assert "model=fake/model" in line


async def test_logged_prompts_are_cut(serve, caplog):
    caplog.set_level(logging.INFO)
    async with serve(**settings_of("--log-prompts", "--max-log-len", "4")) as server:
        await server.complete("hello world")
        await server.complete([[5, 6, 7, 8, 9, 10]])
        await server.complete(["hell", "low"])
    texts = [line.partition(" prompt")[2].partition("prompt")[2] for line in logged(caplog)]
    assert texts == ['="hell"', "_token_ids=[5,6,7,8]", '="hell"', '="low"']


async def test_no_text_at_all_with_a_length_of_0(caplog, serve):
    caplog.set_level(logging.INFO)
    async with serve(state={"answers": AnswerSettings(prompt_log=PromptLog(0))}) as server:
        await server.complete("hello")
    assert logged(caplog)[0].endswith('prompt=""')


def test_a_length_without_the_log_warns():
    (warning,) = read("--max-log-len", "100").warnings
    assert warning == "--max-log-len has no effect without --log-prompts: no prompt is logged"


def test_disable_log_stats_is_a_setting():
    reading = read("--disable-log-stats")
    assert reading.settings.disable_log_stats
    assert not reading.warnings
