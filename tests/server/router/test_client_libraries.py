"""OpenAI's and Anthropic's libraries raise when a stream through a router breaks off."""

import anthropic
import openai
import pytest

from tests.server.router.stub_upstream import streams

CHAT = (
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m",'
    b'"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
)
CREATED = (
    b'event: response.created\ndata: {"type":"response.created","sequence_number":0,"response":{"id":"resp_0001"}}\n\n'
)
STARTED = (
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant",'
    b'"content":[],"model":"m","stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":1,"output_tokens":1}}}\n\n'
)


async def dies(writer):
    await writer.drain()
    writer.transport.abort()


async def read(stream, seen):
    """Read a stream; seen gets its events, also if it ends with an error."""
    async for event in await stream:
        seen.append(event)


@pytest.fixture
async def broken(route, stubs):
    """broken(first event) -> a router before an upstream that dies after it."""

    async def make(event):
        (stub,) = await stubs("a")
        stub.answer = streams(event, then=dies)
        return route(stub)

    return make


async def test_openai_chat(broken):
    async with await broken(CHAT) as router:
        client = openai.AsyncOpenAI(base_url=f"{router.client.base_url}/v1", api_key="none", max_retries=0)
        seen = []
        with pytest.raises(openai.APIError, match="The server of this request failed"):
            await read(client.chat.completions.create(model="m", messages=[], stream=True), seen)
        assert [one.choices[0].delta.content for one in seen] == ["a"]
        await client.close()


async def test_openai_responses(broken):
    async with await broken(CREATED) as router:
        client = openai.AsyncOpenAI(base_url=f"{router.client.base_url}/v1", api_key="none", max_retries=0)
        seen = []
        await read(client.responses.create(model="m", input="x", stream=True), seen)
        assert [one.type for one in seen] == ["response.created", "error"]
        assert (seen[1].code, seen[1].sequence_number) == ("upstream_failed", 1)
        await client.close()


async def test_anthropic_messages(broken):
    async with await broken(STARTED) as router:
        client = anthropic.AsyncAnthropic(base_url=str(router.client.base_url), api_key="none", max_retries=0)
        seen = []
        with pytest.raises(anthropic.APIStatusError, match="The server of this request failed"):
            await read(client.messages.create(model="m", max_tokens=5, messages=[], stream=True), seen)
        assert [one.type for one in seen] == ["message_start"]
        await client.close()
