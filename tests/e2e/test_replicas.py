"""Two engines of one model behind two server workers: load, prefixes, adapters, and the death of one engine."""

import asyncio
import json
import re
import signal

import httpx
import pytest

from tests.e2e.live_server import LiveServer, eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def live(tmp_path_factory, smollm2_gguf):
    with LiveServer(
        "--data-parallel-size", 2, "--api-workers", 2, "--enable-prefix-caching", "--max-num-seqs", 8, "--model",
        f"m={smollm2_gguf}", "--kv-cache-memory", "200MiB", "--shutdown-timeout", 60,
    ) as live:  # fmt: skip
        yield live


def engine(live, replica):
    found = [one for one in live.children() if "plugserve.core.engine" in one.cmdline()]
    (own,) = [one for one in found if one.cmdline()[-2] == str(replica)]
    return own


class Chat:
    """One streamed chat on a connection of its own, so that any worker may get it."""

    def __init__(self, url, prompt, num_tokens):
        self.started = asyncio.Event()
        self.error = None
        self.text = ""
        self.task = asyncio.create_task(self._run(url, prompt, num_tokens))

    async def _run(self, url, prompt, num_tokens):
        fields = {"messages": [{"role": "user", "content": prompt}], "temperature": 0, "ignore_eos": True}
        body = fields | {"max_tokens": num_tokens, "stream": True}
        async with (
            httpx.AsyncClient(base_url=url, timeout=60) as client,
            client.stream("POST", "/v1/chat/completions", json=body) as answer,
        ):
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line[6:])
                    self.error = event.get("error", self.error)
                    for choice in event.get("choices", ()):
                        self.text += choice["delta"].get("content") or ""
                    self.started.set()


async def running(url):
    """Requests by engine."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        engines = (await client.get("/live?once=true")).json()["models"][0]["engines"]
    return {one["engine"]: one["running"] for one in engines}


async def test_requests_spread_and_a_dead_engine_ends_its_own_alone(live):
    async with httpx.AsyncClient(base_url=live.url, timeout=60) as client:
        assert len((await client.get("/v1/models")).json()["data"]) == 1
        chats = [Chat(live.url, f"Tell me about {what}.", 120) for what in ("ants", "bees", "cats", "dogs")]
        await asyncio.gather(*(chat.started.wait() for chat in chats))
        assert await running(live.url) == {0: 2, 1: 2}
        dead = engine(live, 1)
        dead.send_signal(signal.SIGKILL)
        while sum(chat.error is not None for chat in chats) < 2:
            await asyncio.sleep(0.02)
        health = await client.get("/health")
        assert (health.status_code, health.json()) == (200, {"status": "degraded", "engines_down": {"m": 1}})
        assert (await client.get("/ready")).status_code == 200
        later = Chat(live.url, "Tell me about eels.", 4)  # beside the two that go on
        await later.task
        assert (later.error, bool(later.text)) == (None, True)
        await asyncio.gather(*(chat.task for chat in chats))
        assert sorted(chat.error is None for chat in chats) == [False, False, True, True]
        assert all(len(chat.text) > 200 for chat in chats if chat.error is None)
    eventually(lambda: httpx.get(f"{live.url}/health").json() == {"status": "ok"}, 60)
    assert engine(live, 1).pid != dead.pid


async def test_the_same_beginning_goes_to_the_engine_that_has_it(live):
    text = "The following is a long story that every question is about. " * 60
    async with httpx.AsyncClient(base_url=live.url, timeout=60) as client:
        cached = []
        for question in ("Who?", "Where?", "When?", "Why?"):
            body = {"prompt": text + question, "max_tokens": 1, "temperature": 0}
            usage = (await client.post("/v1/completions", json=body)).json()["usage"]
            cached.append(usage.get("prompt_tokens_details", {}).get("cached_tokens", 0))
    assert cached[0] == 0
    assert min(cached[1:]) > 500
    text = live.get("/metrics").text
    shown = re.findall(r'^plugserve_prefix_cache_hits_total{[^}]*engine="(.)"[^}]*} (.+)$', text, re.M)
    assert sorted(engine for engine, _ in shown) == ["0", "1"]
    assert max(float(hits) for _, hits in shown) >= sum(cached)
