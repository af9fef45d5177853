"""POST /v1/chat/completions as clients see it."""

import openai
import pytest


def text_of(events, index=0):
    choices = [choice for event in events for choice in event["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


async def test_answer_has_openais_shape(server):
    response = await server.chat("hello")
    assert response.status_code == 200
    body = response.json()
    assert body["id"].startswith("chatcmpl-")
    assert body["object"] == "chat.completion"
    assert body["model"] == "fake/model"
    assert body["system_fingerprint"].startswith("plugserve-")
    choice = body["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "hello world!", "refusal": None}
    assert choice["finish_reason"] == "stop"
    assert choice["logprobs"] is None
    prompt = server.engine.calls[0].prompt
    assert body["usage"] == {"prompt_tokens": len(prompt), "completion_tokens": 4, "total_tokens": len(prompt) + 4}


async def test_prompt_is_the_rendered_template_without_added_special_tokens(server, tokenizer):
    await server.chat("hello")
    assert tokenizer.decode(server.engine.calls[0].prompt, skip_special_tokens=False) == "<|user|>user:hello>"


async def test_max_tokens_defaults_to_the_remaining_context(server):
    await server.chat("hello")
    call = server.engine.calls[0]
    assert call.params.max_tokens == 128 - len(call.prompt)


async def test_max_completion_tokens_wins_over_max_tokens(server):
    response = await server.chat(max_tokens=3, max_completion_tokens=2)
    assert response.json()["usage"]["completion_tokens"] == 2
    assert response.json()["choices"][0]["finish_reason"] == "length"


async def test_stream_opens_with_the_role_and_finishes_once(server):
    events = await server.chat_events()
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert len({event["id"] for event in events}) == 1
    reasons = [event["choices"][0]["finish_reason"] for event in events]
    assert reasons == [None] * (len(events) - 1) + ["stop"]
    assert text_of(events) == "hello world!"
    assert "usage" not in events[0]


@pytest.mark.parametrize("fields", [{}, {"max_tokens": 3}, {"stop": "wor"}, {"ignore_eos": True, "max_tokens": 4}])
async def test_last_chunk_carries_text_and_finish_reason(server, fields):
    last = (await server.chat_events(**fields))[-1]["choices"][0]
    assert last["delta"]["content"]
    assert last["finish_reason"] is not None


async def test_one_chunk_a_token_when_the_limit_ends_it(server):
    contents = [event["choices"][0]["delta"]["content"] for event in await server.chat_events(max_tokens=3)]
    assert contents == ["", "hello", " world", "!"]


async def test_first_token_is_sent_before_the_second_exists(serve, tokenizer):
    async with serve(stops_after=1) as server:
        body = {"messages": [{"role": "user", "content": "x"}], "stream": True}
        async with server.client.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = response.aiter_lines()
            seen = ""
            while "hello" not in seen:
                seen += await anext(lines)


@pytest.mark.parametrize("text", ["hello world!", "日本語 naïve 👍 ok", "a\n\nb"])
@pytest.mark.parametrize("fields", [{}, {"stop": ["world", "b"]}, {"max_tokens": 5}, {"n": 2}])
async def test_stream_joins_to_the_plain_answer(serve, text, fields):
    async with serve(text) as server:
        plain = (await server.chat(**fields)).json()
        events = await server.chat_events(**fields)
    for choice in plain["choices"]:
        assert text_of(events, choice["index"]) == choice["message"]["content"]


async def test_answer_equals_one_decode_without_an_incomplete_tail(serve, tokenizer):
    async with serve("ab👍", eos=None) as server:
        body = (await server.chat(max_tokens=5)).json()
    assert body["choices"][0]["message"]["content"] == "ab"
    assert body["usage"]["completion_tokens"] == 5


async def test_an_answer_without_text_still_finishes(serve):
    async with serve("") as server:
        assert (await server.chat()).json()["choices"][0]["message"]["content"] == ""
        events = await server.chat_events()
    assert [event["choices"][0]["finish_reason"] for event in events] == [None, "stop"]


async def test_include_usage_adds_one_chunk_without_choices(server):
    events = await server.chat_events(stream_options={"include_usage": True})
    assert all(event["usage"] is None for event in events[:-1])
    assert events[-1]["choices"] == []
    assert events[-1]["usage"] == (await server.chat()).json()["usage"]


async def test_continuous_usage_grows_to_the_final_one(server):
    events = await server.chat_events(stream_options={"include_usage": True, "continuous_usage_stats": True})
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[-2] == counts[-1] == 4
    assert all(
        event["usage"]["total_tokens"] == event["usage"]["prompt_tokens"] + event["usage"]["completion_tokens"]
        for event in events
    )


async def test_continuous_usage_without_include_usage_gives_none(server):
    events = await server.chat_events(stream_options={"include_usage": False, "continuous_usage_stats": True})
    assert all(event.get("usage") is None for event in events)
    assert events[-1]["choices"]


@pytest.mark.parametrize("options", [{}, {"include_usage": None}, {"include_usage": True}])
async def test_stream_options_without_stream_are_refused(server, options):
    for fields in ({}, {"stream": False}):
        response = await server.chat(stream_options=options, **fields)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "stream_options"


async def test_stop_string_counts_tokens_up_to_the_match_and_aborts_the_rest(serve):
    async with serve("hello world! and more", eos=None) as server:
        body = (await server.chat(stop="wor")).json()
        assert body["choices"][0]["message"]["content"] == "hello "
        assert body["choices"][0]["stop_reason"] == "wor"
        assert body["usage"]["completion_tokens"] == 2
        assert server.engine.aborted == [1]


async def test_include_stop_str_in_output(server):
    body = (await server.chat(stop=["world"], include_stop_str_in_output=True)).json()
    assert body["choices"][0]["message"]["content"] == "hello world"


async def test_stop_token_id_ends_without_showing_its_text(server, tokenizer):
    world = tokenizer.token_to_id("Ġworld")
    choice = (await server.chat(stop_token_ids=[world])).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"], choice["stop_reason"]) == ("hello", "stop", world)


async def test_special_tokens_are_shown_when_not_skipped(serve):
    async with serve("a<|user|>b") as server:
        assert (await server.chat()).json()["choices"][0]["message"]["content"] == "ab"
        body = (await server.chat(skip_special_tokens=False)).json()
    assert body["choices"][0]["message"]["content"] == "a<|user|>b"


async def test_min_tokens_holds_back_stop_strings(server):
    body = (await server.chat(stop="hello", min_tokens=2)).json()
    assert body["choices"][0]["message"]["content"] == "hello world!"
    assert server.engine.calls[0].params.min_tokens == 2


async def test_n_choices_draw_with_following_seeds(server):
    body = (await server.chat(n=3, seed=7)).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert [call.params.seed for call in server.engine.calls] == [7, 8, 9]
    assert body["usage"]["completion_tokens"] == 12
    assert body["usage"]["prompt_tokens"] == len(server.engine.calls[0].prompt)


async def test_missing_seed_is_random(server):
    await server.chat()
    await server.chat()
    first, second = (call.params.seed for call in server.engine.calls)
    assert first != second


async def test_top_logprobs_are_the_likeliest_tokens(server):
    choice = (await server.chat(logprobs=True, top_logprobs=2)).json()["choices"][0]
    entries = choice["logprobs"]["content"]
    assert len(entries) == 4
    assert entries[0]["token"] == "hello"
    assert bytes(entries[0]["bytes"]) == b"hello"
    assert entries[0]["logprob"] == -1.5
    assert [top["logprob"] for top in entries[0]["top_logprobs"]] == [-0.25, -1.5]


async def test_zero_top_logprobs_give_entries_with_no_tops(server):
    for fields in ({}, {"top_logprobs": 0}):
        choice = (await server.chat(logprobs=True, **fields)).json()["choices"][0]
        assert [entry["top_logprobs"] for entry in choice["logprobs"]["content"]] == [[]] * 4


async def test_minus_infinity_is_clamped(server):
    choice = (await server.chat(logprobs=True, top_logprobs=5)).json()["choices"][0]
    assert choice["logprobs"]["content"][0]["top_logprobs"][-1]["logprob"] == -9999.0


async def test_streamed_logprobs_equal_the_plain_ones(server):
    fields = {"logprobs": True, "top_logprobs": 2}
    plain = (await server.chat(**fields)).json()["choices"][0]["logprobs"]["content"]
    events = await server.chat_events(**fields)
    parts = [event["choices"][0]["logprobs"] for event in events[1:]]
    assert [entry for part in parts for entry in part["content"]] == plain


async def test_too_many_logprobs_are_refused_and_the_server_works_on(server):
    for fields in ({}, {"stream": True}):
        response = await server.chat(logprobs=True, top_logprobs=21, **fields)
        assert response.status_code == 400
        assert "20" in response.json()["error"]["message"]
        assert response.json()["error"]["param"] == "top_logprobs"
    assert (await server.chat()).status_code == 200


async def test_prompt_logprobs_begin_with_null(server):
    body = (await server.chat(prompt_logprobs=1)).json()
    first, second, *_ = body["prompt_logprobs"]
    assert first is None
    chosen = str(server.engine.calls[0].prompt[1])
    assert second[chosen]["rank"] == 2
    assert second["40"]["rank"] == 1
    assert len(body["prompt_logprobs"]) == body["usage"]["prompt_tokens"]


async def test_return_token_ids(server):
    body = (await server.chat(return_token_ids=True)).json()
    call = server.engine.calls[0]
    told = body["choices"][0]["token_ids"]
    assert body["prompt_token_ids"] == call.prompt
    events = await server.chat_events(return_token_ids=True)
    streamed = [id for event in events[1:] for id in event["choices"][0]["token_ids"]]
    assert streamed == told
    assert [event.get("prompt_token_ids") for event in events[1:]] == [call.prompt] + [None] * (len(events) - 2)


async def test_cached_tokens_are_reported_only_when_there_are_any(serve):
    async with serve(cached_tokens=16) as server:
        assert (await server.chat()).json()["usage"]["prompt_tokens_details"] == {"cached_tokens": 16}


async def test_text_parts_equal_a_string(server):
    for content in ("hello", [{"type": "text", "text": "hello"}]):
        assert (await server.chat(content)).status_code == 200
    first, second = (call.prompt for call in server.engine.calls)
    assert first == second


async def test_other_roles_and_extra_fields_are_accepted(server):
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": "x", "name": "ann", "novel": 1},
        {"role": "assistant", "content": None},
        {"role": "narrator", "content": "y"},
    ]
    response = await server.client.post("/v1/chat/completions", json={"messages": messages})
    assert response.status_code == 200
    assert [message["role"] for message in server.template.renders[0][0]] == [message["role"] for message in messages]


async def test_template_options_reach_the_template(server):
    response = await server.chat(
        add_generation_prompt=False, continue_final_message=True, chat_template_kwargs={"mood": "calm"}
    )
    assert response.status_code == 200
    assert server.template.renders[0][1:] == (False, True, {"mood": "calm"})


@pytest.mark.parametrize(
    ("message", "word"),
    [
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "image_url"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "input_audio"),
        ({"role": "user", "content": 5}, "content"),
        ({"role": "user"}, "content"),
        ({"content": "x"}, "role"),
    ],
)
async def test_bad_messages_are_named(server, message, word):
    response = await server.client.post("/v1/chat/completions", json={"messages": [message]})
    assert response.status_code == 400
    assert word in response.json()["error"]["message"]
    assert response.json()["error"]["param"] == "messages"


async def test_official_client_chats_and_streams(server):
    client = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="x", max_retries=0)
    messages = [{"role": "user", "content": "hello"}]
    async with client:
        answer = await client.chat.completions.create(model="fake/model", messages=messages)
        stream = await client.chat.completions.create(model="model", messages=messages, stream=True)
        streamed = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        assert answer.choices[0].message.content == streamed == "hello world!"
        with pytest.raises(openai.NotFoundError) as refused:
            await client.chat.completions.create(model="other", messages=messages)
    assert refused.value.code == "model_not_found"


async def test_request_options_reach_the_engine(server):
    await server.chat(priority=-3, user="ann", cache_salt="s", temperature=0, top_k=-1, logit_bias={"40": 5})
    call = server.engine.calls[0]
    assert (call.priority, call.user, call.cache_salt) == (-3, "ann", "s")
    assert (call.params.temperature, call.params.top_k, call.params.logit_bias) == (0.0, 0, {40: 5.0})


async def test_request_id_names_the_response(server):
    response = await server.chat(request_id="mine-1")
    assert response.json()["id"] == "chatcmpl-mine-1"


async def test_model_defaults_apply_unless_the_request_says_otherwise(serve):
    defaults = {"temperature": 0.6, "top_p": 0.9, "max_new_tokens": 2}
    async with serve(model={"defaults": defaults}) as server:
        await server.chat()
        await server.chat(temperature=0, top_p=None)
        first, second = (call.params for call in server.engine.calls)
    assert (first.temperature, first.top_p) == (0.6, 0.9)
    assert first.max_tokens > 2
    assert (second.temperature, second.top_p) == (0.0, 0.9)
