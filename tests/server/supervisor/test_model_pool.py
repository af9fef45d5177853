"""The model pool: loads on demand, memory that makes room, and what a worker hears in which order.

Engines are not started: a scripted keeper says when they are up.
"""

from __future__ import annotations

import asyncio
import time

import pytest

from plugserve.core.contracts.engine_facts import EngineInfo
from plugserve.core.contracts.runner import LoadStage
from plugserve.core.errors import EngineError, ModelError
from plugserve.core.model_files.model_source import ModelSource
from plugserve.core.settings.model_entries import ModelEntry
from plugserve.core.settings.settings import Settings
from plugserve.core.wire.messages import EngineDown, EngineUp, ModelCall, ModelReleased, ModelUse, ReleaseModel
from plugserve.core.wire.runtime_folder import RuntimeFolder
from plugserve.server.operations.tracing.tracer import NullTracer
from plugserve.server.supervisor import model_calls, model_pool
from plugserve.server.supervisor.model_calls import ModelCalls
from plugserve.server.supervisor.model_finder import FoundModel
from plugserve.server.supervisor.model_pool import ModelPool
from plugserve.server.supervisor.process_slots import EngineSlot, ModelState

WORKER = b"worker:0:1"
INFO = EngineInfo(
    vocab_size=8, max_model_len=64, max_num_batched_tokens=64, num_blocks=4, block_size=16, kv_cache_bytes=0,
    weight_bytes=0, dtype="float32", device="cpu", load_seconds=0.1,
    load_stages=[LoadStage("read weights", 1.0, 2.0), LoadStage("warm up", 2.0, 3.0)],
)  # fmt: skip
SIZES = {"a": 40, "b": 40, "c": 40, "big": 90, "huge": 200, "kept": 30}


class Control:
    """One worker, which releases models that it doesn't use."""

    def __init__(self):
        self.told = []
        self.stopping = asyncio.Event()
        self.tasks = set()
        self.busy = set()
        self.pool = None

    def spawn(self, work):
        task = asyncio.create_task(work)
        self.tasks.add(task)
        return task

    def give_up(self, failure):
        raise AssertionError(failure)

    async def send(self, identity, message):
        self.told.append(message)

    def listeners(self):
        return [WORKER]

    async def broadcast(self, message):
        self.told.append(message)
        if isinstance(message, ReleaseModel) and message.model not in self.busy:
            released = ModelReleased(message.model, message.number)
            asyncio.get_running_loop().call_soon(self.pool.note_released, WORKER, released)
        return [WORKER]

    def news(self, model):
        """The states that the worker has heard of a model."""
        return [
            "up" if isinstance(message, EngineUp) else message.state
            for message in self.told
            if isinstance(message, EngineUp | EngineDown) and message.model == model
        ]


class Keeper:
    """Starts nothing. failing are errors by name, slow the names of models that come up when released."""

    def __init__(self, pool):
        self.pool = pool
        self.running = set()
        self.failing = {}
        self.slow = {}
        self.slow_to_stop = {}

    async def start(self, slot, settings):
        if slot.name in self.failing:
            raise self.failing[slot.name]
        if slot.name in self.slow:
            await self.slow[slot.name].wait()
        self.running.add(slot.name)
        for replica in slot.replicas:
            replica.child, replica.info = type("Child", (), {"pid": 1})(), INFO
            replica.generation += 1
        await self.pool._note_up(slot, replica, INFO)

    async def stop(self, slot):
        if slot.name in self.slow_to_stop:
            await self.slow_to_stop[slot.name].wait()
        self.running.discard(slot.name)
        for replica in slot.replicas:
            replica.child = replica.info = None


class Scene:
    def __init__(self, tmp_path, budget, **settings):
        self.settings = Settings(**settings)
        entries = [ModelEntry(name, name, (name,), is_pinned=name == "kept") for name in SIZES]
        self.slots = [EngineSlot(index, entry) for index, entry in enumerate(entries)]
        self.control = Control()
        folder = RuntimeFolder(tmp_path)
        self.traced = []
        tracer = NullTracer()
        tracer.record = self.traced.append
        self.pool = ModelPool(self.settings, folder, None, self.control, None, self.slots, budget, tracer)
        self.keeper = self.pool.keeper = Keeper(self.pool)
        self.control.pool = self.pool
        self.joined = []
        self.calls = ModelCalls(self.settings, self.pool, self.control, self.slots, [10, 11], self.joined.append)

    def state(self, name):
        return self.pool.find(name).state

    async def until(self, claim):
        async with asyncio.timeout(5):
            while not claim():
                await asyncio.sleep(0.002)

    async def want(self, *names):
        """Ask for each model and wait until it is up."""
        for name in names:
            self.pool.want(name)
            await self.until(lambda name=name: self.state(name) in (ModelState.UP, ModelState.FAILED))

    def use(self, name, count=0, keep_alive=None, age=0.0):
        self.pool.note_uses(WORKER, [ModelUse(name, count, time.monotonic() - age, keep_alive)])


@pytest.fixture
def scene(tmp_path, monkeypatch):
    async def find(name, settings):
        if name not in SIZES:
            raise ModelError(f"{name} is nowhere")
        source = ModelSource(name, (), "folder", tmp_path / name)
        return FoundModel(source, SIZES[name])

    for module in (model_pool, model_calls):
        monkeypatch.setattr(module, "find_model", find)
    return lambda budget=100, **settings: Scene(tmp_path, budget, **settings)


@pytest.fixture(autouse=True)
def sizes_as_expected(monkeypatch):
    """A loaded model takes what was expected."""
    original = ModelPool._note_up

    async def note_up(self, slot, replica, info):
        monkeypatch.setattr(model_pool, "measure_bytes", lambda pid, info: slot.found.size_bytes)
        await original(self, slot, replica, info)

    monkeypatch.setattr(ModelPool, "_note_up", note_up)


async def test_a_model_is_loaded_once_for_many_that_want_it(scene):
    one = scene()
    for _ in range(20):
        one.pool.want("a")
    await one.want("a")
    assert one.control.news("a") == ["loading", "loading", "loading", "up"]
    assert one.pool.find("a").counts.num_loads == 1
    stages = [message.stage for message in one.control.told if isinstance(message, EngineDown)]
    assert stages == ["finding files", "waiting for memory", "loading"]


async def test_loads_and_unloads_are_traced_with_their_stages(scene):
    one = scene()
    one.keeper.failing["c"] = EngineError("it died")
    await one.want("a", "big", "c")
    first, unload, second, _, failed = one.traced
    assert (first.name, first.error) == ("load a", "")
    assert first.attributes == {"plugserve.model": "a", "plugserve.model.size_bytes": 40}
    assert [child.name for child in first.children] == ["finding files", "waiting for memory", "start engine"]
    assert [child.name for child in first.children[-1].children] == ["read weights", "warm up"]
    times = [first.started_s, *(child.ended_s for child in first.children)]
    assert times == sorted(times)
    assert times[-1] == first.ended_s
    assert (unload.name, unload.attributes["plugserve.unload.reason"]) == ("unload a", "memory")
    assert second.name == "load big"
    assert (failed.name, failed.error) == ("load c", "EngineError")
    await one.want("a")
    one.pool.find("a").change(ModelState.DEAD)
    await one.keeper.start(one.pool.find("a"), one.settings)
    assert (one.traced[-1].name, len(one.traced[-1].children)) == ("restart engine a", 2)


async def test_the_least_recently_used_model_makes_room(scene):
    one = scene()
    await one.want("a", "b")
    one.use("a")
    await one.want("c")
    assert one.keeper.running == {"a", "c"}
    assert one.control.news("b")[-1] == "unloaded"
    assert one.pool.find("b").counts.unloads == {"memory": 1}
    assert one.pool.room.used_bytes == 80


async def test_only_what_is_needed_is_unloaded(scene):
    one = scene(120)
    await one.want("a", "b", "c")
    one.pool.find("b").counts.size_bytes = 55  # it grew
    one.use("a", age=9)
    one.use("b", age=5)
    await one.want("kept")
    assert one.keeper.running == {"a", "c", "kept"}, "a alone would not have been enough, b alone is"


async def test_a_model_with_requests_is_waited_for_and_idle_ones_go_first(scene):
    one = scene()
    await one.want("a", "b")
    one.use("a", count=1, age=100)
    one.control.busy.add("a")
    await one.want("c")
    assert one.keeper.running == {"a", "c"}
    one.use("c", count=1)
    one.control.busy.add("c")
    one.pool.want("b")
    await one.until(lambda: one.state("a") is ModelState.RELEASING)
    assert one.keeper.running == {"a", "c"}, "its request has not ended"
    number = next(message.number for message in reversed(one.control.told) if isinstance(message, ReleaseModel))
    one.pool.note_released(WORKER, ModelReleased("a", number))
    await one.until(lambda: one.state("b") is ModelState.UP)
    assert one.keeper.running == {"b", "c"}


async def test_waiting_for_memory_is_bounded_and_the_busy_model_goes_on(scene):
    one = scene(model_load_timeout=0.05)
    await one.want("big")
    one.use("big", count=1)
    one.control.busy.add("big")
    await one.want("a")
    assert one.state("a") is ModelState.FAILED
    await one.until(lambda: one.state("big") is ModelState.UP)
    assert one.control.news("big")[-1] == "up"
    reason = one.pool.find("a").reason
    assert "big" in reason
    assert "1 requests" in reason
    assert one.pool.room.used_bytes == 90


async def test_a_worker_that_dies_holds_nothing_up(scene):
    one = scene()
    await one.want("big")
    one.use("big", count=3)
    one.control.busy.add("big")
    one.pool.want("a")
    await one.until(lambda: one.state("big") is ModelState.RELEASING)
    one.pool.note_worker_gone(WORKER)
    await one.until(lambda: one.state("a") is ModelState.UP)
    assert one.keeper.running == {"a"}


async def test_pinned_models_stay_and_what_can_not_fit_says_so(scene):
    one = scene()
    await one.want("kept", "a")
    await one.want("big")
    assert one.state("big") is ModelState.FAILED
    assert one.keeper.running == {"kept", "a"}
    assert "pinned (kept" in one.pool.find("big").reason
    await one.want("huge")
    assert "raise --model-memory-budget" in one.pool.find("huge").reason


async def test_a_failed_load_is_remembered_and_tried_again_later_only(scene):
    one = scene()
    one.keeper.failing["a"] = EngineError("it broke")
    await one.want("a")
    slot = one.pool.find("a")
    assert (slot.state, slot.reason) == (ModelState.FAILED, "it broke")
    first_s = slot.retry_at_s - time.monotonic()
    one.pool.want("a")
    assert slot.state is ModelState.FAILED
    slot.retry_at_s = time.monotonic()
    await one.want("a")
    assert slot.retry_at_s - time.monotonic() > 1.5 * first_s
    assert one.pool.room.used_bytes == 0
    one.keeper.failing.clear()
    slot.retry_at_s = time.monotonic()
    one.pool.want("a")
    await one.until(lambda: slot.state is ModelState.UP)
    assert slot.num_failures == 0


async def test_idle_models_are_unloaded_after_their_time(scene):
    one = scene(model_ttl=50)
    await one.want("a", "b")
    for name in ("a", "b"):
        one.pool.find(name).loaded_s -= 1000
    one.use("b", age=40)
    one.use("a", age=60)
    await one.until(lambda: one.state("a") is ModelState.UNLOADED)
    assert one.state("b") is ModelState.UP
    assert one.pool.find("a").counts.unloads == {"idle": 1}
    one.use("b", count=1, age=500)
    await asyncio.sleep(0.01)
    assert one.state("b") is ModelState.UP, "a request runs"


async def test_keep_alive_of_a_request_wins_over_the_rule(scene):
    one = scene(model_ttl=50)
    await one.want("a", "b")
    for name in ("a", "b"):
        one.pool.find(name).loaded_s -= 1000
    one.use("a", age=60, keep_alive=-1)
    one.use("b", age=0, keep_alive=0)
    await one.until(lambda: one.state("b") is ModelState.UNLOADED)
    assert one.state("a") is ModelState.UP
    await one.want("kept")
    one.use("kept", keep_alive=0)
    await asyncio.sleep(0.01)
    assert one.state("kept") is ModelState.UP, "clients can't unload what is pinned"


async def call(one, action, model, **fields):
    reply = await one.calls.answer(ModelCall(1, action, model, **fields))
    return reply.status, reply.error


async def test_calls_load_and_unload(scene):
    one = scene()
    assert await call(one, "load", "a", keep_alive_s=7.0) == (200, "")
    assert one.pool.find("a").keep_alive_s == 7
    assert await call(one, "load", "a") == (200, "")
    assert one.pool.find("a").counts.num_loads == 1
    assert await call(one, "unload", "a") == (200, "")
    assert await call(one, "unload", "a") == (200, "")
    assert one.pool.find("a").counts.unloads == {"call": 1}
    assert (await call(one, "load", "nothing"))[0] == 404
    one.keeper.failing["b"] = EngineError("it broke")
    status, error = await call(one, "load", "b")
    assert (status, "it broke" in error) == (503, True)
    one.keeper.failing.clear()
    assert await call(one, "load", "b") == (200, ""), "a call doesn't wait for the back-off"


async def test_unload_ends_a_load_that_is_under_way(scene):
    one = scene()
    one.keeper.slow["a"] = asyncio.Event()
    one.pool.want("a")
    await one.until(lambda: one.pool.find("a").stage == "loading")
    assert await call(one, "unload", "a") == (200, "")
    assert one.state("a") is ModelState.UNLOADED
    assert one.control.news("a")[-2:] == ["failed", "unloaded"], "requests that wait must not load it again"
    assert one.pool.room.used_bytes == 0


async def test_a_model_that_makes_room_is_unloaded_even_if_the_other_is_not_loaded_any_more(scene):
    one = scene()
    await one.want("big")
    stopping = one.keeper.slow_to_stop["big"] = asyncio.Event()
    one.pool.want("a")
    await one.until(lambda: one.state("big") is ModelState.RELEASING)
    await asyncio.sleep(0.01)
    await one.pool.note_text_failure("a", "no tokenizer.json")
    assert one.state("a") is ModelState.FAILED
    stopping.set()
    await one.until(lambda: one.state("big") is ModelState.UNLOADED)
    assert one.control.news("big")[-1] == "unloaded"
    await one.want("big")
    assert one.state("big") is ModelState.UP


async def test_unreadable_tokenizer_fails_the_model(scene):
    one = scene()
    await one.want("a")
    await one.pool.note_text_failure("a", "no tokenizer.json")
    assert (one.state("a"), one.pool.find("a").reason) == (ModelState.FAILED, "no tokenizer.json")
    assert not one.keeper.running


async def test_an_id_joins_the_table_once_its_files_are_there(scene):
    one = scene()
    SIZES["org/new"] = 10
    try:
        assert await asyncio.gather(*(call(one, "add", "org/new") for _ in range(5))) == [(200, "")] * 5
    finally:
        del SIZES["org/new"]
    assert [slot.name for slot in one.joined] == ["org/new"]
    await one.want("org/new")
    assert one.state("org/new") is ModelState.UP
    status, error = await call(one, "add", "org/none")
    assert (status, "org/none is nowhere" in error) == (404, True)


async def test_ids_that_requests_add_are_bounded(scene):
    one = scene(1000)
    names = ["x/1", "x/2", "x/3"]
    SIZES.update(dict.fromkeys(names, 10))
    try:
        for name in names[:2]:
            assert (await call(one, "add", name))[0] == 200
        await one.want("x/2")
        assert (await call(one, "add", "x/3"))[0] == 200
        assert one.pool.find("x/1") is None, "it was not loaded, and made room"
        await one.want("x/3")
        assert (await call(one, "add", "x/1"))[0] == 503
    finally:
        for name in names:
            del SIZES[name]
