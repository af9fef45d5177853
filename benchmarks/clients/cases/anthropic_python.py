"""The anthropic package for Python: messages, streams, tools, token counts, errors."""

import anthropic

from report import ASK_CAPITAL, ASK_WEATHER, MODEL, URL, WEATHER, case, main, raised

client = anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0, timeout=300)
GREEDY = {"temperature": 0}  # no argument of its own in newer releases
SAY = [{"role": "user", "content": ASK_CAPITAL}]
TOOL = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "input_schema": WEATHER["function"]["parameters"],
}


@case
def message():
    answer = client.messages.create(model=MODEL, max_tokens=30, messages=SAY, extra_body=GREEDY)
    assert "Paris" in answer.content[0].text
    assert (answer.type, answer.role, answer.stop_reason) == ("message", "assistant", "end_turn")
    assert answer.usage.input_tokens > 0
    assert answer.usage.output_tokens > 0


@case
def system_parts_and_turns():
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Hi."}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Hello."}]},
        {"role": "user", "content": ASK_CAPITAL},
    ]
    system = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    answer = client.messages.create(model=MODEL, max_tokens=30, system=system, messages=messages, extra_body=GREEDY)
    assert answer.content[0].text


@case
def stop_sequence_is_named():
    answer = client.messages.create(
        model=MODEL, max_tokens=60, messages=SAY, stop_sequences=["Paris"], extra_body=GREEDY
    )
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "Paris")


@case
def limit_is_named():
    assert client.messages.create(model=MODEL, max_tokens=2, messages=SAY).stop_reason == "max_tokens"


@case
def assistants_words_are_continued():
    messages = [*SAY, {"role": "assistant", "content": "The capital of France is"}]
    answer = client.messages.create(model=MODEL, max_tokens=10, messages=messages, extra_body=GREEDY)
    assert "Paris" in answer.content[0].text


@case
def stream():
    with client.messages.stream(model=MODEL, max_tokens=30, messages=SAY, extra_body=GREEDY) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert "Paris" in text
    assert final.content[0].text == text
    assert final.stop_reason == "end_turn"
    assert final.usage.output_tokens > 0


@case
def raw_stream_events():
    events = list(client.messages.create(model=MODEL, max_tokens=8, messages=SAY, extra_body=GREEDY, stream=True))
    kinds = [event.type for event in events if event.type not in ("ping", "content_block_delta")]
    assert kinds == ["message_start", "content_block_start", "content_block_stop", "message_delta", "message_stop"]


@case
def tool_is_used_by_itself():
    answer = client.messages.create(
        model=MODEL,
        max_tokens=100,
        tools=[TOOL],
        messages=[{"role": "user", "content": ASK_WEATHER}],
        extra_body=GREEDY,
    )
    block = next(block for block in answer.content if block.type == "tool_use")
    assert answer.stop_reason == "tool_use"
    assert (block.name, block.input["city"]) == ("get_weather", "Paris")


@case
def tool_choice_any_and_named():
    for choice in ({"type": "any"}, {"type": "tool", "name": "get_weather"}):
        answer = client.messages.create(
            model=MODEL,
            max_tokens=200,
            tools=[TOOL],
            tool_choice=choice,
            messages=[{"role": "user", "content": ASK_WEATHER}],
            extra_body=GREEDY,
        )
        block = next(block for block in answer.content if block.type == "tool_use")
        assert block.name == "get_weather"
        assert "city" in block.input


@case
def tool_use_in_a_stream():
    with client.messages.stream(
        model=MODEL,
        max_tokens=200,
        tools=[TOOL],
        tool_choice={"type": "any"},
        messages=[{"role": "user", "content": ASK_WEATHER}],
        extra_body=GREEDY,
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_message()
    assert "input_json" in kinds
    block = next(block for block in final.content if block.type == "tool_use")
    assert "city" in block.input
    assert final.stop_reason == "tool_use"


@case
def tool_result_goes_back():
    messages = [
        {"role": "user", "content": ASK_WEATHER},
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Paris"}}],
        },
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "sunny, 24 degrees"}],
        },
    ]
    answer = client.messages.create(model=MODEL, max_tokens=60, tools=[TOOL], messages=messages, extra_body=GREEDY)
    assert "24" in next(block.text for block in answer.content if block.type == "text")


@case
def tokens_are_counted():
    counted = client.messages.count_tokens(model=MODEL, messages=SAY).input_tokens
    answer = client.messages.create(model=MODEL, max_tokens=1, messages=SAY)
    assert counted == answer.usage.input_tokens
    assert client.messages.count_tokens(model=MODEL, messages=SAY, tools=[TOOL]).input_tokens >= counted


@case
def errors_have_anthropics_shape():
    error = raised(
        anthropic.BadRequestError,
        lambda: client.messages.create(model=MODEL, max_tokens=5, messages=SAY, extra_body={"temperature": 9}),
    )
    assert error.body["type"] == "error"
    assert error.body["error"]["type"] == "invalid_request_error"
    raised(anthropic.NotFoundError, lambda: client.messages.create(model="no-such", max_tokens=5, messages=SAY))


@case
async def async_client():
    async with anthropic.AsyncAnthropic(base_url=URL, api_key="none", max_retries=0, timeout=300) as other:
        answer = await other.messages.create(model=MODEL, max_tokens=5, messages=SAY)
    assert answer.content


if __name__ == "__main__":
    main()
