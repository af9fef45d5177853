"""The Server-Timing header."""

import time

from plugserve.core.wire.sequence_times import SequenceTimes


def timed(tokens):
    def answer(call):
        now_s = time.monotonic()
        call.stream.times = SequenceTimes(now_s - 7, now_s - 6, now_s - 4, now_s)
        return tokens

    return answer


def parts(response):
    """The header's milliseconds by name."""
    entries = (entry.split(";dur=") for entry in response.headers["server-timing"].split(", "))
    return {name: float(value) for name, value in entries}


async def test_answer_says_where_its_time_went(serve, tokenizer):
    async with serve(timed([*tokenizer.encode("hello").ids, 1])) as server:
        answer = await server.complete(n=2)
        found = parts(answer)
        assert list(found) == ["prepare", "queue", "prefill", "decode", "total"]
        assert (found["queue"], found["prefill"], found["decode"]) == (250.0, 2000.0, 4000.0)
        assert 0 < found["prepare"] <= found["total"]
        async with server.client.stream("POST", "/v1/completions", json={"prompt": "x", "stream": True}) as stream:
            await stream.aread()
        assert list(parts(stream)) == ["prepare", "queue", "prefill", "total"]
        refused = await server.complete(temperature=9)
        assert "server-timing" not in refused.headers


async def test_embeddings_have_it_too(serve):
    async with serve() as server:
        answer = await server.client.post("/v1/embeddings", json={"input": "x"})
    assert {"prepare", "queue", "total"} <= set(parts(answer))
