"""litellm, as openai/MODEL and as hosted_vllm/MODEL."""

import json

import litellm

from report import ASK_CAPITAL, ASK_CITY_JSON, ASK_WEATHER, MODEL, URL, WEATHER, case, main, raised

litellm.suppress_debug_info = True
litellm.drop_params = False
SAY = [{"role": "user", "content": ASK_CAPITAL}]
KINDS = ("openai", "hosted_vllm")
CITY = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "country": {"type": "string"}},
    "required": ["name", "country"],
    "additionalProperties": False,
}


def target(kind: str) -> dict:
    return {"model": f"{kind}/{MODEL}", "api_base": URL + "/v1", "api_key": "none", "timeout": 300, "max_retries": 0}


@case
def completion():
    for kind in KINDS:
        answer = litellm.completion(**target(kind), messages=SAY, max_tokens=30, temperature=0)
        assert "Paris" in answer.choices[0].message.content
        assert answer.usage.completion_tokens > 0


@case
def stream():
    for kind in KINDS:
        chunks = list(
            litellm.completion(
                **target(kind),
                messages=SAY,
                max_tokens=30,
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        assert "Paris" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        whole = litellm.stream_chunk_builder(chunks, messages=SAY)
        assert whole.choices[0].finish_reason == "stop"


@case
async def async_completion():
    answer = await litellm.acompletion(**target("hosted_vllm"), messages=SAY, max_tokens=30, temperature=0)
    assert answer.choices[0].message.content


@case
def tools():
    for kind in KINDS:
        answer = litellm.completion(
            **target(kind),
            messages=[{"role": "user", "content": ASK_WEATHER}],
            tools=[WEATHER],
            tool_choice="required",
            max_tokens=200,
            temperature=0,
        )
        call = answer.choices[0].message.tool_calls[0].function
        assert call.name == "get_weather"
        assert "city" in json.loads(call.arguments)


@case
def tool_by_itself():
    answer = litellm.completion(
        **target("openai"),
        messages=[{"role": "user", "content": ASK_WEATHER}],
        tools=[WEATHER],
        max_tokens=100,
        temperature=0,
    )
    assert json.loads(answer.choices[0].message.tool_calls[0].function.arguments)["city"] == "Paris"


@case
def tool_in_a_stream():
    chunks = list(
        litellm.completion(
            **target("hosted_vllm"),
            messages=[{"role": "user", "content": ASK_WEATHER}],
            tools=[WEATHER],
            tool_choice="required",
            max_tokens=200,
            temperature=0,
            stream=True,
        )
    )
    call = litellm.stream_chunk_builder(chunks).choices[0].message.tool_calls[0].function
    assert call.name == "get_weather"
    assert "city" in json.loads(call.arguments)


@case
def json_schema():
    for kind in KINDS:
        answer = litellm.completion(
            **target(kind),
            messages=[{"role": "user", "content": ASK_CITY_JSON}],
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "city", "schema": CITY, "strict": True},
            },
            max_tokens=100,
            temperature=0,
        )
        assert set(json.loads(answer.choices[0].message.content)) == {"name", "country"}


@case
def text_completion():
    answer = litellm.text_completion(
        model=f"text-completion-openai/{MODEL}", api_base=URL + "/v1", api_key="none", prompt="Once", max_tokens=5
    )
    assert answer.choices[0].text is not None


@case
def embedding():
    answer = litellm.embedding(**target("openai"), input=["a", "b"], encoding_format="float")
    assert len(answer.data) == 2


@case
def responses():
    answer = litellm.responses(**target("openai"), input=ASK_CAPITAL, max_output_tokens=30, temperature=0)
    assert "Paris" in answer.output_text


@case
def anthropic_messages():
    answer = litellm.completion(
        model=f"anthropic/{MODEL}", api_base=URL, api_key="none", messages=SAY, max_tokens=30, temperature=0
    )
    assert "Paris" in answer.choices[0].message.content


@case
def errors_are_mapped():
    raised(
        litellm.NotFoundError,
        lambda: litellm.completion(**{**target("openai"), "model": "openai/no-such"}, messages=SAY),
    )
    raised(
        litellm.BadRequestError,
        lambda: litellm.completion(**target("openai"), messages=SAY, temperature=9),
    )
    raised(
        litellm.ContextWindowExceededError,
        lambda: litellm.completion(**target("openai"), messages=[{"role": "user", "content": "a b " * 30000}]),
    )


if __name__ == "__main__":
    main()
