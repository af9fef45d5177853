"""pydantic-ai agents over chat completions and responses: text, streams, tools, outputs of every kind."""

from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput, PromptedOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings

from report import ASK_CAPITAL, ASK_CITY_JSON, ASK_WEATHER, MODEL, URL, case, main

provider = OpenAIProvider(base_url=URL + "/v1", api_key="none")
chat = OpenAIChatModel(MODEL, provider=provider)
responses = OpenAIResponsesModel(MODEL, provider=provider)
SETTINGS = ModelSettings(max_tokens=300, temperature=0, timeout=300)


class City(BaseModel):
    name: str = Field(max_length=40)
    country: str = Field(max_length=40)


def agent(**options):
    return Agent(options.pop("model", chat), model_settings=SETTINGS, retries=2, **options)


@case
def text():
    result = agent(instructions="Be brief.").run_sync(ASK_CAPITAL)
    assert "Paris" in result.output
    assert result.usage.output_tokens > 0


@case
async def streamed_text():
    async with agent().run_stream(ASK_CAPITAL) as result:
        parts = [part async for part in result.stream_text(delta=True)]
    assert "Paris" in "".join(parts)


@case
def history():
    first = agent().run_sync(ASK_CAPITAL)
    second = agent().run_sync("And what is its river?", message_history=first.all_messages())
    assert second.output


@case
def tool_output():
    assert isinstance(agent(output_type=ToolOutput(City)).run_sync(ASK_CITY_JSON).output, City)


@case
def native_output():
    assert isinstance(agent(output_type=NativeOutput(City)).run_sync(ASK_CITY_JSON).output, City)


@case
def prompted_output():
    assert isinstance(agent(output_type=PromptedOutput(City)).run_sync(ASK_CITY_JSON).output, City)


@case
async def streamed_native_output():
    async with agent(output_type=NativeOutput(City)).run_stream(ASK_CITY_JSON) as result:
        cities = [part async for part in result.stream_output(debounce_by=None)]
    assert isinstance(cities[-1], City)


@case
def function_tool():
    asked = []

    def get_weather(city: str) -> str:
        """The weather of a city."""
        asked.append(city)
        return "sunny, 24 degrees"

    result = agent(tools=[get_weather]).run_sync(ASK_WEATHER)
    assert asked == ["Paris"]
    assert "24" in result.output


@case
def responses_text():
    assert "Paris" in agent(model=responses).run_sync(ASK_CAPITAL).output


@case
def responses_tool_output():
    assert isinstance(agent(model=responses, output_type=ToolOutput(City)).run_sync(ASK_CITY_JSON).output, City)


@case
def responses_native_output():
    assert isinstance(agent(model=responses, output_type=NativeOutput(City)).run_sync(ASK_CITY_JSON).output, City)


if __name__ == "__main__":
    main()
