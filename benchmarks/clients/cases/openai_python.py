"""The openai package for Python: chat, completions, responses, embeddings, tools, structured output, errors."""

import base64
import json

import openai
from pydantic import BaseModel

from report import ASK_CAPITAL, ASK_CITY_JSON, ASK_WEATHER, MODEL, URL, WEATHER, case, main, raised

client = openai.OpenAI(base_url=URL + "/v1", api_key="none", max_retries=0, timeout=300)
SAY = [{"role": "user", "content": ASK_CAPITAL}]


class City(BaseModel):
    name: str
    country: str


@case
def models_list_and_retrieve():
    listed = client.models.list().data
    assert MODEL in [model.id for model in listed]
    assert client.models.retrieve(MODEL).object == "model"


@case
def unknown_model_is_not_found():
    error = raised(openai.NotFoundError, lambda: client.chat.completions.create(model="no-such", messages=SAY))
    assert error.code == "model_not_found"
    assert error.param == "model"


@case
def chat_answers():
    answer = client.chat.completions.create(model=MODEL, messages=SAY, max_tokens=30, temperature=0)
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@case
def chat_stream_is_the_plain_answer():
    plain = client.chat.completions.create(model=MODEL, messages=SAY, max_tokens=30, temperature=0)
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=SAY,
            max_tokens=30,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == plain.choices[0].message.content
    assert chunks[-1].choices == []
    assert chunks[-1].usage == plain.usage
    assert [c.choices[0].finish_reason for c in chunks if c.choices].count("stop") == 1


@case
def chat_stream_helper():
    with client.chat.completions.stream(model=MODEL, messages=SAY, max_tokens=30, temperature=0) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert "Paris" in final.choices[0].message.content


@case
def several_choices():
    answer = client.chat.completions.create(model=MODEL, messages=SAY, n=3, max_tokens=5, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]


@case
def logprobs_of_chat():
    answer = client.chat.completions.create(
        model=MODEL, messages=SAY, max_tokens=4, logprobs=True, top_logprobs=3, temperature=0
    )
    entries = answer.choices[0].logprobs.content
    assert "".join(entry.token for entry in entries) == answer.choices[0].message.content
    assert all(len(entry.top_logprobs) == 3 and entry.logprob <= 0 for entry in entries)


@case
def stop_and_limit():
    answer = client.chat.completions.create(model=MODEL, messages=SAY, stop=["Paris"], max_tokens=30, temperature=0)
    assert "Paris" not in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    answer = client.chat.completions.create(model=MODEL, messages=SAY, max_completion_tokens=2, temperature=0)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 2


@case
def roles_and_parts():
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": ASK_CAPITAL}]},
    ]
    assert client.chat.completions.create(model=MODEL, messages=messages, max_tokens=20).choices[0].message.content


@case
def tool_is_called_by_itself():
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": ASK_WEATHER}], tools=[WEATHER], max_tokens=100, temperature=0
    )
    call = answer.choices[0].message.tool_calls[0]
    assert answer.choices[0].finish_reason == "tool_calls"
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["city"] == "Paris"


@case
def tool_is_called_in_a_stream():
    with client.chat.completions.stream(
        model=MODEL, messages=[{"role": "user", "content": ASK_WEATHER}], tools=[WEATHER], max_tokens=100, temperature=0
    ) as stream:
        kinds = {event.type for event in stream}
        call = stream.get_final_completion().choices[0].message.tool_calls[0]
    assert "tool_calls.function.arguments.done" in kinds
    assert json.loads(call.function.arguments)["city"] == "Paris"


@case
def tool_choice_required_and_named():
    for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
        answer = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": ASK_WEATHER}],
            tools=[WEATHER],
            tool_choice=choice,
            max_tokens=200,
            temperature=0,
        )
        call = answer.choices[0].message.tool_calls[0]
        assert call.function.name == "get_weather"
        assert "city" in json.loads(call.function.arguments)


@case
def tool_choice_none_calls_nothing():
    answer = client.chat.completions.create(
        model=MODEL, messages=SAY, tools=[WEATHER], tool_choice="none", max_tokens=20
    )
    assert not answer.choices[0].message.tool_calls


@case
def tool_result_goes_back():
    messages = [
        {"role": "user", "content": ASK_WEATHER},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny, 24 degrees"},
    ]
    answer = client.chat.completions.create(
        model=MODEL, messages=messages, tools=[WEATHER], max_tokens=60, temperature=0
    )
    assert "24" in answer.choices[0].message.content


@case
def pydantic_model_is_parsed():
    answer = client.chat.completions.parse(
        model=MODEL,
        messages=[{"role": "user", "content": ASK_CITY_JSON}],
        response_format=City,
        max_tokens=100,
        temperature=0,
    )
    assert isinstance(answer.choices[0].message.parsed, City)


@case
def strict_tool_is_parsed():
    answer = client.chat.completions.parse(
        model=MODEL,
        messages=[{"role": "user", "content": ASK_WEATHER}],
        tools=[openai.pydantic_function_tool(City, name="describe_city")],
        tool_choice={"type": "function", "function": {"name": "describe_city"}},
        max_tokens=200,
        temperature=0,
    )
    assert isinstance(answer.choices[0].message.tool_calls[0].function.parsed_arguments, City)


@case
def json_object_mode():
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": ASK_CITY_JSON}],
        response_format={"type": "json_object"},
        max_tokens=200,
        temperature=0,
    )
    assert isinstance(json.loads(answer.choices[0].message.content), dict)


@case
def bad_schema_names_the_field():
    format = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no-such"}}}
    error = raised(
        openai.BadRequestError,
        lambda: client.chat.completions.create(model=MODEL, messages=SAY, response_format=format),
    )
    assert error.param == "response_format"


@case
def bad_value_names_the_field():
    error = raised(
        openai.BadRequestError, lambda: client.chat.completions.create(model=MODEL, messages=SAY, temperature=9)
    )
    assert error.param == "temperature"
    assert error.type == "invalid_request_error"


@case
def image_to_a_text_model_is_refused_by_name():
    pixel = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, pixel]}]
    error = raised(
        openai.BadRequestError, lambda: client.chat.completions.create(model=MODEL, messages=messages, max_tokens=5)
    )
    assert "image_url" in str(error)


@case
def completions_of_every_prompt_kind():
    for prompt, count in (("Once", 1), (["Once", "Twice"], 2), ([504, 253], 1), ([[504], [253]], 2)):
        answer = client.completions.create(model=MODEL, prompt=prompt, max_tokens=3, temperature=0)
        assert [choice.index for choice in answer.choices] == list(range(count))


@case
def completion_echo_and_logprobs():
    answer = client.completions.create(
        model=MODEL, prompt="The sea is", max_tokens=2, echo=True, logprobs=2, temperature=0
    )
    logprobs = answer.choices[0].logprobs
    assert answer.choices[0].text.startswith("The sea is")
    assert logprobs.token_logprobs[0] is None
    assert logprobs.text_offset[0] == 0
    assert all(logprob <= 0 for logprob in logprobs.token_logprobs[1:])


@case
def completion_stream():
    chunks = list(client.completions.create(model=MODEL, prompt="Once", max_tokens=5, temperature=0, stream=True))
    plain = client.completions.create(model=MODEL, prompt="Once", max_tokens=5, temperature=0)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == plain.choices[0].text


@case
def embeddings_in_both_formats():
    floats = client.embeddings.create(model=MODEL, input=["a", "b c"], encoding_format="float").data
    coded = client.embeddings.create(model=MODEL, input=["a"], encoding_format="base64").data
    assert len(floats) == 2
    assert len(base64.b64decode(coded[0].embedding)) == 4 * len(floats[0].embedding)


@case
def responses_answer_and_go_on():
    first = client.responses.create(model=MODEL, input=ASK_CAPITAL, max_output_tokens=30, temperature=0)
    assert "Paris" in first.output_text
    assert first.status == "completed"
    second = client.responses.create(
        model=MODEL, input="And what is its river?", previous_response_id=first.id, max_output_tokens=20
    )
    assert second.previous_response_id == first.id
    assert client.responses.retrieve(first.id).output_text == first.output_text
    client.responses.delete(first.id)
    raised(openai.NotFoundError, lambda: client.responses.retrieve(first.id))


@case
def responses_stream():
    events = list(
        client.responses.create(model=MODEL, input=ASK_CAPITAL, max_output_tokens=30, temperature=0, stream=True)
    )
    assert events[0].type == "response.created"
    assert events[-1].type in ("response.completed", "response.incomplete")
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == events[-1].response.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))


RESPONSES_TOOL = {"type": "function", "strict": False, **WEATHER["function"]}


@case
def responses_call_a_tool():
    answer = client.responses.create(
        model=MODEL,
        input=ASK_WEATHER,
        tools=[RESPONSES_TOOL],
        tool_choice="required",
        max_output_tokens=200,
        temperature=0,
    )
    call = next(item for item in answer.output if item.type == "function_call")
    assert call.name == "get_weather"
    assert "city" in json.loads(call.arguments)
    answer = client.responses.create(
        model=MODEL,
        previous_response_id=answer.id,
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "sunny, 24 degrees"}],
        max_output_tokens=60,
        temperature=0,
    )
    assert "24" in answer.output_text


@case
def responses_are_parsed():
    answer = client.responses.parse(
        model=MODEL, input=ASK_CITY_JSON, text_format=City, max_output_tokens=100, temperature=0
    )
    assert isinstance(answer.output_parsed, City)


@case
async def async_client_with_many_at_once():
    import asyncio

    async with openai.AsyncOpenAI(base_url=URL + "/v1", api_key="none", max_retries=0, timeout=300) as many:
        answers = await asyncio.gather(
            *(many.chat.completions.create(model=MODEL, messages=SAY, max_tokens=8, temperature=0) for _ in range(16))
        )
    assert len({answer.choices[0].message.content for answer in answers}) == 1


@case
def request_id_is_told():
    answer = client.chat.completions.with_raw_response.create(model=MODEL, messages=SAY, max_tokens=1)
    assert answer.headers["x-request-id"]
    assert answer.parse()._request_id == answer.headers["x-request-id"]


@case
def extra_fields_of_other_servers():
    answer = client.chat.completions.create(
        model=MODEL,
        messages=SAY,
        max_tokens=5,
        user="ada",
        metadata={"a": "b"},
        store=False,
        service_tier="auto",
        extra_body={"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "no_such_field": 1},
    )
    assert answer.choices[0].message.content is not None


@case
def leaving_a_stream_early():
    stream = client.chat.completions.create(model=MODEL, messages=SAY, max_tokens=500, stream=True)
    next(iter(stream))
    stream.close()
    assert client.chat.completions.create(model=MODEL, messages=SAY, max_tokens=1).choices


if __name__ == "__main__":
    main()
