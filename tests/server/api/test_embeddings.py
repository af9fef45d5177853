"""POST /v1/embeddings, as OpenAI's own client sees it."""

import asyncio

import openai
import pytest


@pytest.fixture
async def client(server):
    async with openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0
    ) as client:
        yield client


async def test_openais_client_reads_vectors_of_length_one(server, client):
    answer = await client.embeddings.create(model="model", input=["hello", "hello world"])
    assert answer.model == "fake/model"
    assert [item.index for item in answer.data] == [0, 1]
    for item, call in zip(answer.data, server.engine.calls, strict=True):
        length = (9 + 16 + len(call.prompt) ** 2) ** 0.5
        assert item.embedding == pytest.approx([3 / length, 4 / length, len(call.prompt) / length], abs=1e-6)
        assert (call.params.pooling, call.params.max_tokens) == ("mean", 0)
    total = sum(len(call.prompt) for call in server.engine.calls)
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (total, total)


async def test_base64_and_floats_say_the_same(client):
    as_text = await client.embeddings.create(model="model", input="hello", encoding_format="base64")
    as_floats = await client.embeddings.create(model="model", input="hello", encoding_format="float")
    assert isinstance(as_text.data[0].embedding, str)
    default = await client.embeddings.create(model="model", input="hello")  # base64 that the client reads
    assert default.data[0].embedding == pytest.approx(as_floats.data[0].embedding, abs=1e-7)


@pytest.mark.parametrize(
    ("input", "prompts"),
    [("", [[0]]), ([5, 6, 7], [[5, 6, 7]]), ([[5], [6, 7]], [[5], [6, 7]]), ([4] * 128, [[4] * 128])],
)
async def test_inputs_of_every_kind(server, input, prompts):
    response = await server.client.post("/v1/embeddings", json={"input": input})
    assert response.status_code == 200, response.text
    assert [call.prompt for call in server.engine.calls] == prompts


async def test_pooling_and_length_are_the_clients_choice(server):
    body = {"input": [5, 6], "pooling": "last", "normalize": False}
    response = await server.client.post("/v1/embeddings", json=body)
    assert response.json()["data"][0]["embedding"] == [3.0, 4.0, 2.0]
    assert server.engine.calls[0].params.pooling == "last"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": {"a": 1}}, "input"),
        ({"input": [300]}, "input"),
        ({"input": [4] * 129}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"dimensions": 2}, "dimensions"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"pooling": "max"}, "pooling"),
        ({"model": 5}, "model"),
    ],
)
async def test_what_is_wrong_is_named(server, fields, param):
    response = await server.client.post("/v1/embeddings", json={"input": "hello", **fields})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
    assert "prompt:" not in response.json()["error"]["message"]
    assert not server.engine.calls


async def test_client_that_leaves_aborts_its_inputs(serve, eventually):
    async with serve(stops_after=0) as server:
        request = asyncio.create_task(server.client.post("/v1/embeddings", json={"input": ["a", "b"]}))
        await eventually(lambda: len(server.engine.calls) == 2)
        request.cancel()
        await eventually(lambda: len(server.engine.aborted) == 2)


async def test_engine_that_dies_is_an_error(serve, eventually):
    async with serve(stops_after=0) as server:
        request = asyncio.create_task(server.client.post("/v1/embeddings", json={"input": ["a", "b"]}))
        await eventually(lambda: len(server.engine.calls) == 2)
        server.engine.die()
        assert (await request).status_code == 503


async def test_plugins_hear_of_it(serve, eventually):
    async with serve() as server:
        await server.client.post("/v1/embeddings", json={"input": "a"})
        await eventually(lambda: server.state.hooks.told)
        name, told = server.state.hooks.told[0]
        assert (name, told["request"].model, told["usage"].num_generated_tokens) == (
            "plugserve_request_finished",
            "fake/model",
            0,
        )
