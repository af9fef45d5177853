"""POST /v1/completions as clients see it."""

import dataclasses

import openai
import pytest


def choices_of(events, index=0):
    return [choice for event in events for choice in event["choices"] if choice["index"] == index]


async def test_answer_has_openais_shape(server):
    body = (await server.complete("hello", max_tokens=10)).json()
    assert body["id"].startswith("cmpl-")
    assert body["object"] == "text_completion"
    assert body["choices"] == [
        {"index": 0, "text": "hello world!", "logprobs": None, "finish_reason": "stop", "stop_reason": None}
    ]
    assert body["usage"] == {"prompt_tokens": 2, "completion_tokens": 4, "total_tokens": 6}  # BOS counts


async def test_max_tokens_defaults_to_16(server):
    await server.complete("hello")
    assert server.engine.calls[0].params.max_tokens == 16


async def test_default_max_tokens_shrinks_to_what_the_context_leaves(serve):
    async with serve(max_model_len=8) as server:
        assert (await server.complete([5, 6, 7, 8, 9])).status_code == 200
        assert server.engine.calls[0].params.max_tokens == 3


@pytest.mark.parametrize(
    ("prompt", "num_prompts"),
    [("hello", 1), (["hello", "world"], 2), ([5, 6, 7], 1), ([[5, 6], [7], [8, 9]], 3), (["one"], 1)],
)
async def test_every_form_of_prompt(server, prompt, num_prompts):
    body = (await server.complete(prompt, n=2, max_tokens=3)).json()
    assert [choice["index"] for choice in body["choices"]] == list(range(2 * num_prompts))
    prompts = [call.prompt for call in server.engine.calls]
    assert prompts[0::2] == prompts[1::2]  # prompt by prompt
    assert body["usage"]["prompt_tokens"] == sum(map(len, prompts[::2]))


async def test_streamed_choices_carry_their_index(server):
    events = await server.complete_events([[5, 6], [7]], n=2, max_tokens=10)
    assert all(len(event["choices"]) == 1 for event in events)
    for index in range(4):
        choices = choices_of(events, index)
        assert "".join(choice["text"] for choice in choices) == "hello world!"
        assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["stop"]
        assert choices[-1]["finish_reason"] == "stop"
        assert choices[-1]["text"]


async def test_zero_logprobs_is_not_none(server):
    choice = (await server.complete(logprobs=0)).json()["choices"][0]
    assert len(choice["logprobs"]["tokens"]) == 4
    assert [len(tops) for tops in choice["logprobs"]["top_logprobs"]] == [1] * 4
    assert (await server.complete()).json()["choices"][0]["logprobs"] is None


async def test_logprobs_have_the_likeliest_and_the_chosen(server):
    logprobs = (await server.complete(logprobs=1)).json()["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["hello", " world", "!", "<|eos|>"]
    assert logprobs["token_logprobs"] == [-1.5] * 4
    assert logprobs["text_offset"] == [0, 5, 11, 12]
    assert sorted(logprobs["top_logprobs"][0].values()) == [-1.5, -0.25]


async def test_too_many_logprobs_are_refused(server):
    response = await server.complete(logprobs=21)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "logprobs")


async def test_echo_repeats_the_prompt(server):
    choice = (await server.complete("hello", echo=True)).json()["choices"][0]
    assert choice["text"] == "hellohello world!"
    by_ids = (await server.complete(server.engine.calls[0].prompt, echo=True)).json()["choices"][0]
    assert by_ids["text"] == "hellohello world!"


async def test_echo_with_logprobs_starts_with_null(server):
    choice = (await server.complete("hello world", echo=True, logprobs=1)).json()["choices"][0]
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == ["<|bos|>", "hello", " world", "hello", " world", "!", "<|eos|>"]
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    assert None not in logprobs["token_logprobs"][1:]
    assert logprobs["text_offset"] == [0, 0, 5, 11, 16, 22, 23]
    assert {len(column) for column in logprobs.values()} == {7}


@pytest.mark.parametrize("fields", [{}, {"echo": True}, {"stop": "world"}, {"stop": "zz", "max_tokens": 3}])
async def test_streamed_logprobs_equal_the_plain_ones(server, fields):
    plain = (await server.complete(logprobs=1, **fields)).json()["choices"][0]
    choices = choices_of(await server.complete_events(logprobs=1, **fields))
    assert "".join(choice["text"] for choice in choices) == plain["text"]
    for column in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [entry for choice in choices for entry in choice["logprobs"][column]] == plain["logprobs"][column]


async def test_text_offsets_do_not_lag_behind_held_back_text(serve):
    async with serve("hello world!", eos=None) as server:
        plain = (await server.complete(logprobs=0, stop="world!!", max_tokens=3)).json()["choices"][0]
        choices = choices_of(await server.complete_events(logprobs=0, stop="world!!", max_tokens=3))
    assert plain["text"] == "hello world!"
    assert plain["logprobs"]["text_offset"] == [0, 5, 11]
    assert [offset for choice in choices for offset in choice["logprobs"]["text_offset"]] == [0, 5, 11]


async def test_echo_with_max_tokens_zero_scores_the_prompt(server):
    body = (await server.complete("hello world", echo=True, logprobs=1, max_tokens=0)).json()
    choice = body["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("hello world", "length")
    assert len(choice["logprobs"]["tokens"]) == 3
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 0, "total_tokens": 3}
    events = await server.complete_events("hello world", echo=True, max_tokens=0)
    assert [choice["text"] for choice in choices_of(events)] == ["hello world"]


async def test_prompt_logprobs_stand_in_each_choice(server):
    body = (await server.complete([[5, 6], [7, 8, 9]], prompt_logprobs=0)).json()
    assert [len(choice["prompt_logprobs"]) for choice in body["choices"]] == [2, 3]
    entry = body["choices"][0]["prompt_logprobs"][1]
    assert list(entry) == ["6"]
    assert set(entry["6"]) == {"logprob", "rank", "decoded_token"}


async def test_return_token_ids_stand_in_each_choice(server):
    choice = (await server.complete([5, 6], return_token_ids=True, echo=True)).json()["choices"][0]
    assert choice["prompt_token_ids"] == [5, 6]
    assert len(choice["token_ids"]) == 4


async def test_include_usage_adds_one_chunk(server):
    events = await server.complete_events(stream_options={"include_usage": True})
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == 4


@pytest.mark.parametrize("prompt", [[], [[]], None, 5, ["a", 5], [[1], "a"], [1.5], [True], {"a": 1}])
async def test_bad_prompts_are_refused(server, prompt):
    response = await server.complete(prompt)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


async def test_empty_prompt_is_refused_unless_the_tokenizer_begins_it(server, tokenizer):
    assert (await server.complete("")).status_code == 200
    assert server.engine.calls[0].prompt == [tokenizer.token_to_id("<|bos|>")]
    model = next(iter(server.state.models))
    model.text = dataclasses.replace(model.text, encode=lambda text, *, add_special_tokens: [])
    response = await server.complete("")
    assert (response.status_code, response.json()["error"]["param"]) == (400, "prompt")


async def test_token_ids_outside_the_vocabulary_are_refused(server):
    for prompt in ([300], [-1]):
        response = await server.complete(prompt)
        assert response.status_code == 400
        assert "299" in response.json()["error"]["message"]


async def test_prompt_and_max_tokens_beyond_the_context_name_both_numbers(server):
    response = await server.complete([5] * 100, max_tokens=29)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "128" in error["message"]
    assert "129" in error["message"]
    assert (await server.complete([5] * 100, max_tokens=28)).status_code == 200
    assert (await server.complete([5] * 128)).status_code == 400


async def test_official_client_completes(server):
    client = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="x", max_retries=0)
    async with client:
        answer = await client.completions.create(model="fake/model", prompt="hello")
        stream = await client.completions.create(model="fake/model", prompt="hello", stream=True)
        assert answer.choices[0].text == "".join([chunk.choices[0].text async for chunk in stream]) == "hello world!"
