"""A worker's part in the model pool, through HTTP: requests wait, are held back, and hear why a model can't be had."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import asdict

import pytest

from plugserve.core.errors import ModelError
from plugserve.core.settings.model_entries import ModelEntry
from plugserve.core.wire.messages import (
    EngineDown,
    EngineUp,
    ModelAdded,
    ModelCall,
    ModelCounts,
    ModelReleased,
    ModelReply,
    ModelsUsed,
    ReleaseModel,
    TextFailed,
    WantModel,
)
from plugserve.server.operations.service_limits import ServiceLimits
from plugserve.server.worker.model_control import ModelControl
from plugserve.server.worker.served_models import served_model
from tests.server.conftest import running
from tests.server.fakes import FakeEngine, says, served


class PooledEngine(FakeEngine):
    """Follows the supervisor's news."""

    def connect(self, address, info, num_restarts=0):
        self.state = "up"

    def disconnect(self, state, reason):
        self.state = state


class Worker:
    """The models a and b of a worker, and what it sends its supervisor. hand tells it something."""

    def __init__(self, tokenizer, make_state, limits):
        self.tokenizer = tokenizer
        self.sent = []
        self.unreadable = set()
        self.loads = []
        self.replies = {}
        models = [self.make(index, ModelEntry(name, name, (name,), (f"{name}2",))) for index, name in enumerate("ab")]
        self.state = make_state(*models, limits=limits)
        self.control = ModelControl(self.state.models, self.send, self.load_text, self.make, limits.load_timeout_s or 5)
        self.state.model_control = self.control
        for model in models:
            model.news = EngineDown(model.client.model, "unloaded", "", waits=True)
            model.client.state = "unloaded"

    def make(self, index, entry):
        engine = PooledEngine(says(self.tokenizer, "hello world!"), model=entry.name)
        return served_model(entry, engine, index)

    async def load_text(self, model):
        self.loads.append(model.name)
        if model.name in self.unreadable:
            raise ModelError("no tokenizer.json")
        await asyncio.sleep(0.01)
        return served(PooledEngine(says(self.tokenizer, "")), self.tokenizer).text

    async def send(self, message):
        self.sent.append(message)
        if isinstance(message, ModelCall):
            status, error = self.replies.get(message.action, (200, ""))
            if message.action == "add" and status == 200:
                entry = ModelEntry(message.model, message.model, (message.model,))
                await self.hand(ModelAdded(7, message.model, asdict(entry)))
                await self.down(message.model, "unloaded")
            if message.action == "load" and status == 200:
                await self.up(message.model)
            await self.hand(ModelReply(message.call_id, status, error, "model_not_found" if status == 404 else ""))

    async def hand(self, message):
        assert await self.control.note(message)

    async def down(self, model, state, reason="", **fields):
        await self.hand(EngineDown(model=model, state=state, reason=reason, waits=True, **fields))

    async def up(self, model):
        info = self.model(model).client.info or FakeEngine(None).info
        await self.hand(EngineUp(model, ["ipc://x"], info, counts=ModelCounts(num_loads=1, size_bytes=2**30)))

    def model(self, name):
        return next(model for model in self.state.models if model.client.model == name)

    def sent_of(self, kind):
        return [message for message in self.sent if isinstance(message, kind)]


@pytest.fixture
def worker(tokenizer, make_state):
    @asynccontextmanager
    async def start(**limits):
        one = Worker(tokenizer, make_state, ServiceLimits(**{"load_timeout_s": 5.0, **limits}))
        async with running(one.state) as server:
            one.server = server
            yield one
            await one.control.close()

    return start


async def test_twenty_requests_wait_for_one_load(worker, eventually):
    async with worker() as one:
        asking = [asyncio.create_task(one.server.chat(model="a2")) for _ in range(20)]
        await eventually(lambda: one.sent_of(WantModel))
        await one.down("a", "loading", stage="finding files", is_found=False)
        assert not one.loads, "its files are not known yet"
        await one.down("a", "loading", stage="loading")
        listed = (await one.server.client.get("/v1/models/a")).json()
        assert listed["status"] == {"value": "loading", "stage": "loading", "progress": 0.0}
        await one.up("a")
        answers = await asyncio.gather(*asking)
        assert {answer.status_code for answer in answers} == {200}
        assert one.sent_of(WantModel) == [WantModel("a")]
        assert one.loads == ["a"]
        assert (await one.server.client.get("/v1/models/a")).json()["status"]["value"] == "loaded"
        metrics = (await one.server.client.get("/metrics")).text
        assert 'plugserve_model_memory_bytes{model_name="a"} 1073741824.0' in metrics
        assert 'model_name="b"' not in metrics, "a model that was never asked for has no figures"


async def test_waiting_ends_with_503_at_its_limit_and_with_504_at_the_requests(worker):
    async with worker(load_timeout_s=0.05) as one:
        late = await one.server.chat(model="a")
        assert (late.status_code, late.json()["error"]["code"]) == (503, "model_not_loaded")
        assert "--model-load-timeout" in late.json()["error"]["message"]
        assert int(late.headers["retry-after"]) >= 1
    async with worker(timeout_s=0.05) as one:
        assert (await one.server.chat(model="a")).status_code == 504


async def test_a_wrong_body_is_refused_without_a_load(worker):
    async with worker() as one:
        assert (await one.server.chat(model="a", temperature="hot")).status_code == 400
        assert not one.sent_of(WantModel)


async def test_a_failed_load_is_told_to_all_and_remembered(worker, eventually):
    async with worker() as one:
        asking = [asyncio.create_task(one.server.chat(model="a")) for _ in range(3)]
        await eventually(lambda: one.sent_of(WantModel))
        await one.down("a", "failed", "it broke", retry_at_s=time.monotonic() + 60)
        for answer in await asyncio.gather(*asking):
            assert answer.status_code == 503
            assert "it broke" in answer.json()["error"]["message"]
            assert 50 <= int(answer.headers["retry-after"]) <= 60
        again = await one.server.chat(model="a")
        assert again.status_code == 503
        assert len(one.sent_of(WantModel)) == 1
        status = (await one.server.client.get("/v1/models/a")).json()["status"]
        assert (status["value"], status["reason"]) == ("failed", "it broke")
        assert (await one.server.client.get("/health")).json() == {"status": "ok"}
        await one.down("a", "failed", "it broke", retry_at_s=time.monotonic() - 1)
        third = asyncio.create_task(one.server.chat(model="a"))
        await eventually(lambda: len(one.sent_of(WantModel)) == 2)
        await one.up("a")
        assert (await third).status_code == 200


async def test_a_model_is_released_after_its_last_request_and_new_ones_wait(worker, eventually):
    async with worker() as one:
        await one.up("a")
        await eventually(lambda: one.model("a").is_ready)
        engine = one.model("a").client
        engine.step_s = 0.02
        running_one = asyncio.create_task(one.server.chat(model="a"))
        await eventually(lambda: engine.calls)
        await one.hand(ReleaseModel("a", 3))
        held = asyncio.create_task(one.server.chat(model="a"))
        await asyncio.sleep(0.02)
        assert not one.sent_of(ModelReleased)
        assert (await running_one).status_code == 200
        await eventually(lambda: one.sent_of(ModelReleased))
        assert one.sent_of(ModelReleased) == [ModelReleased("a", 3)]
        assert len(engine.calls) == 1, "the new one has not begun"
        wants = len(one.sent_of(WantModel))
        await one.down("a", "unloaded")
        await eventually(lambda: len(one.sent_of(WantModel)) == wants + 1)
        assert one.model("a").text is None
        await one.up("a")
        assert (await held).status_code == 200
        assert one.loads == ["a", "a"]


async def test_a_cancelled_release_lets_requests_go_on(worker, eventually):
    async with worker() as one:
        await one.up("a")
        await eventually(lambda: one.model("a").is_ready)
        await one.hand(ReleaseModel("a", 1))
        await eventually(lambda: one.sent_of(ModelReleased))
        held = asyncio.create_task(one.server.chat(model="a"))
        await asyncio.sleep(0.01)
        await one.up("a")
        assert (await held).status_code == 200


async def test_unreadable_text_side_is_reported(worker, eventually):
    async with worker() as one:
        one.unreadable.add("a")
        await one.down("a", "loading", stage="loading")
        await eventually(lambda: one.sent_of(TextFailed))
        assert one.sent_of(TextFailed) == [TextFailed("a", "no tokenizer.json")]


async def test_other_models_go_on_while_one_is_down(worker, eventually):
    async with worker() as one:
        for name in "ab":
            await one.up(name)
        await eventually(lambda: one.model("a").is_ready and one.model("b").is_ready)
        await one.down("a", "dead", "killed by SIGKILL")
        assert (await one.server.chat(model="a")).status_code == 503
        assert (await one.server.chat(model="b")).status_code == 200
        health = await one.server.client.get("/health")
        assert health.status_code == 200, "no model that loads on demand makes the server unhealthy"


async def test_health_names_what_loads_while_nothing_is_loaded(worker):
    async with worker() as one:
        await one.down("a", "loading", stage="finding files", is_found=False)
        assert (await one.server.client.get("/health")).json() == {"status": "ok", "loading": ["a"]}
        assert (await one.server.client.get("/ready")).json() == {"ready": True}


async def test_use_and_keep_alive_are_reported_before_a_model_is_wanted(worker, eventually):
    async with worker() as one:
        await one.up("a")
        await eventually(lambda: one.model("a").is_ready)
        assert (await one.server.chat(model="a", keep_alive="5m")).status_code == 200
        asking = asyncio.create_task(one.server.chat(model="b"))
        await eventually(lambda: one.sent_of(WantModel))
        kinds = [type(message) for message in one.sent if isinstance(message, ModelsUsed | WantModel)]
        assert kinds == [ModelsUsed, WantModel]
        (use,) = one.sent_of(ModelsUsed)[0].uses
        assert (use.model, use.num_requests, use.keep_alive_s) == ("a", 0, 300.0)
        asking.cancel()


async def test_tokenize_and_count_wait_for_the_model_too(worker, eventually):
    async with worker() as one:
        bodies = {
            "/tokenize": {"prompt": "hello"},
            "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "x"}]},
        }
        asking = [
            asyncio.create_task(one.server.client.post(path, json={"model": "a", **body}))
            for path, body in bodies.items()
        ]
        await eventually(lambda: one.sent_of(WantModel))
        await one.up("a")
        assert [answer.status_code for answer in await asyncio.gather(*asking)] == [200, 200]


async def test_explicit_load_and_unload(worker):
    async with worker() as one:
        post = one.server.client.post
        loaded = await post("/v1/models/load", json={"model": "a2", "keep_alive": "1h"})
        assert loaded.status_code == 200, loaded.text
        assert loaded.json()["model"]["status"]["value"] == "loaded"
        call = one.sent_of(ModelCall)[0]
        assert (call.action, call.model, call.keep_alive_s) == ("load", "a", 3600)
        assert (await post("/models/unload", json={"model": "a"})).status_code == 200
        assert one.sent_of(ModelCall)[-1].action == "unload"
        assert (await post("/v1/models/load", json={"model": "nothing"})).status_code == 404
        assert (await post("/v1/models/load", json={})).status_code == 400
        for wrong in ("5x", "", True, [1]):
            answer = await post("/v1/models/load", json={"model": "a", "keep_alive": wrong})
            assert answer.status_code == 400
            message = answer.json()["error"]["message"]
            assert message.startswith("keep_alive: must be seconds")
            assert message.endswith(f"got {wrong!r}")
        one.replies["load"] = (503, "it broke")
        refused = await post("/v1/models/load", json={"model": "b"})
        assert (refused.status_code, refused.json()["error"]["message"]) == (503, "it broke")


async def test_unknown_ids_join_the_table_only_where_that_is_allowed(worker, eventually):
    async with worker() as one:
        refused = await one.server.chat(model="org/new")
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
        assert not one.sent_of(ModelCall)
    async with worker(downloads_models=True) as one:
        assert (await one.server.chat(model="no id")).status_code == 404
        assert (await one.server.chat(model="../x")).status_code == 404
        assert not one.sent_of(ModelCall)
        asking = asyncio.create_task(one.server.chat(model="org/new"))
        await eventually(lambda: one.sent_of(WantModel))
        await one.up("org/new")
        assert (await asking).status_code == 200
        assert "org/new" in [model["id"] for model in (await one.server.client.get("/v1/models")).json()["data"]]
        await one.hand(ModelAdded(7, "org/new"))
        one.replies["add"] = (404, "The model 'org/new' can't be had")
        assert (await one.server.chat(model="org/new")).status_code == 404
