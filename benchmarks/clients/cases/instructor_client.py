"""instructor over the openai package: models from tools, schemas and JSON mode; lists, partial answers, retries."""

import asyncio
from typing import Literal

import instructor
import openai
from pydantic import BaseModel, Field, field_validator

from report import ASK_CITY_JSON, MODEL, URL, case, main

plain = openai.OpenAI(base_url=URL + "/v1", api_key="none", max_retries=0, timeout=300)
MODES = (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA)
ASK = {"model": MODEL, "max_tokens": 300, "temperature": 0, "messages": [{"role": "user", "content": ASK_CITY_JSON}]}


class City(BaseModel):
    name: str = Field(max_length=40)
    country: str = Field(max_length=40)


class Street(BaseModel):
    name: str = Field(max_length=20)
    kind: Literal["road", "lane"]


class Town(BaseModel):
    """A town."""

    name: str = Field(max_length=20)
    streets: list[Street] = Field(min_length=1, max_length=2)
    mayor: str | None = Field(max_length=20)


def _client(mode):
    return instructor.from_openai(plain, mode=mode)


@case
def model_from_each_mode():
    for mode in MODES:
        city = _client(mode).chat.completions.create(**ASK, response_model=City, max_retries=0)
        assert isinstance(city, City)


@case
def nested_model_from_each_mode():
    ask = {**ASK, "messages": [{"role": "user", "content": "Describe the town of Ulm with its streets as JSON."}]}
    for mode in MODES:
        town = _client(mode).chat.completions.create(**ask, response_model=Town, max_retries=0)
        assert town.streets[0].kind in ("road", "lane")


@case
def json_mode():
    city = _client(instructor.Mode.JSON).chat.completions.create(**ASK, response_model=City, max_retries=2)
    assert city.name == "Paris"


@case
def strict_tools():
    city = _client(instructor.Mode.TOOLS_STRICT).chat.completions.create(**ASK, response_model=City, max_retries=0)
    assert isinstance(city, City)


@case
def partial_answers():
    for mode in MODES:
        parts = list(_client(mode).chat.completions.create_partial(**ASK, response_model=City, max_retries=0))
        assert len(parts) > 1
        assert parts[-1].country is not None


@case
def many_models():
    ask = {**ASK, "messages": [{"role": "user", "content": "List two cities of France as JSON."}]}
    cities = list(_client(instructor.Mode.TOOLS).chat.completions.create_iterable(**ask, response_model=City))
    assert cities
    assert all(isinstance(city, City) for city in cities)


@case
def validator_makes_it_ask_again():
    seen = []

    class Picky(BaseModel):
        name: str = Field(max_length=40)

        @field_validator("name")
        @classmethod
        def check(cls, name: str) -> str:
            seen.append(name)
            if len(seen) < 2:
                raise ValueError("say it once more")
            return name

    _client(instructor.Mode.TOOLS).chat.completions.create(**ASK, response_model=Picky, max_retries=3)
    assert len(seen) == 2


@case
def with_completion():
    city, answer = _client(instructor.Mode.JSON_SCHEMA).chat.completions.create_with_completion(
        **ASK, response_model=City
    )
    assert isinstance(city, City)
    assert answer.usage.completion_tokens > 0


@case
async def async_client():
    other = instructor.from_openai(openai.AsyncOpenAI(base_url=URL + "/v1", api_key="none", timeout=300))
    cities = await asyncio.gather(*(other.chat.completions.create(**ASK, response_model=City) for _ in range(4)))
    assert len(cities) == 4


if __name__ == "__main__":
    main()
