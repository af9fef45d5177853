"""What the supervisor knows of adapters: whose they are, and what engines and workers are told in which order."""

from __future__ import annotations

import asyncio

import pytest

from plugserve.core.errors import ConfigError, EngineUnavailableError
from plugserve.core.settings.model_entries import ModelEntry, by_every_name
from plugserve.core.settings.settings import Settings
from plugserve.core.wire.messages import AdapterCall, AdapterLoaded, Adapters, LoadAdapter, UnloadAdapter
from plugserve.server.supervisor.adapter_registry import AdapterRegistry, AdapterTransport


def entries(names, served):
    """Entries as the model table makes them of --model and --served-model-name."""
    every = [*served, *names[len(served) :]]
    return [ModelEntry(name, name, (own,)) for name, own in zip(names, every, strict=True)]


class Others:
    """Engines and workers that do what they are told; errors by an adapter's name are what engines say of it."""

    def __init__(self):
        self.told = []
        self.errors = {}
        self.down = set()
        self.engines = {}  # identities by model; one of the model's name where there is none
        self.workers = [b"worker:0", b"worker:1"]
        self.registry = None

    async def to_engines(self, model, message):
        if model in self.down:
            raise EngineUnavailableError("down")
        engines = self.engines.get(model, [model.encode()])
        for engine in engines:
            await self.to_one(engine, message)
        return engines

    async def to_one(self, engine, message):
        self.told.append((engine.decode(), message))
        if isinstance(message, LoadAdapter):
            error = self.errors.get((engine.decode(), message.name), self.errors.get(message.name, ""))
            loaded = AdapterLoaded(message.id, error)
            asyncio.get_running_loop().call_later(0.001, self.registry.note_loaded, engine, loaded)

    async def to_workers(self, message):
        self.told.append(("workers", message))
        for worker in self.workers:
            asyncio.get_running_loop().call_later(0.01, self.registry.note_heard, worker, message.version)
        return self.workers

    def kinds(self):
        return [(who, type(message).__name__) for who, message in self.told]


@pytest.fixture
def make(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text("{}")

    def make(*names, served=(), modules=(), **more):
        others = Others()
        settings = Settings(
            lora_dir=str(tmp_path),
            served_model_name=list(served),
            lora_modules=[dict(module) for module in modules],
            **more,
        )
        models = by_every_name(entries(names, served))
        others.registry = AdapterRegistry(
            settings, models, AdapterTransport(others.to_engines, others.to_one, others.to_workers)
        )
        return others.registry, others

    return make


async def call(registry, name="x", path="a", **fields):
    reply = await registry.answer(AdapterCall(call_id=1, name=name, path=path, **fields))
    return reply.status, reply.error


async def test_engine_and_workers_know_before_the_client_hears(make):
    registry, others = make("m")
    assert await call(registry) == (200, "")
    assert others.kinds() == [("m", "LoadAdapter"), ("workers", "Adapters")]
    assert [info.name for info in registry.news.adapters] == ["x"]
    assert await call(registry, path="") == (200, "")
    assert others.kinds()[2:] == [("workers", "Adapters"), ("m", "UnloadAdapter")]


async def test_a_replacement_is_loaded_before_the_old_one_goes(make):
    registry, others = make("m")
    await call(registry)
    others.told.clear()
    others.errors["x"] = "LoRA rank 99"
    status, error = await call(registry, path="b", is_replacement=True)
    assert (status, "LoRA rank 99" in error) == (400, True)
    assert registry.news.adapters[0].path.endswith("/a")
    others.errors.clear()
    old = registry.news.adapters[0].id
    assert (await call(registry, path="b", is_replacement=True))[0] == 200
    assert registry.news.adapters[0].id != old
    assert others.told[-1] == ("m", UnloadAdapter(old))


async def test_with_several_models_the_base_has_to_be_named(make):
    registry, others = make("m", "n", served=["one", "two"])
    status, error = await call(registry)
    assert (status, "base_model_name, one of m, n" in error) == (400, True)
    assert (await call(registry, model="nobody"))[0] == 400
    assert (await call(registry, model="two"))[0] == 200
    assert registry.news.adapters[0].model == "n"
    assert others.kinds()[0] == ("n", "LoadAdapter")
    for name in ("one", "two", "m"):
        assert (await call(registry, name=name, model="one"))[0] == 400


async def test_an_engine_that_is_down_or_dies_meanwhile_is_503(make):
    registry, others = make("m")
    others.down.add("m")
    assert (await call(registry))[0] == 503
    others.down.clear()

    async def hangs(model, message):
        asyncio.get_running_loop().call_later(0.02, registry.note_engine_down, b"m")
        return [b"m"]

    registry._transport = AdapterTransport(hangs, others.to_one, others.to_workers)
    assert (await call(registry))[0] == 503
    assert registry.news.adapters == []


async def test_a_fresh_engine_gets_its_adapters_and_drops_what_is_gone(make, tmp_path):
    modules = [{"name": name, "path": str(tmp_path / name)} for name in ("a", "b")]
    registry, others = make("m", modules=modules)
    assert await registry.bring_up("m", b"m", is_first=True) == ""
    assert others.kinds() == [("m", "LoadAdapter")] * 2
    others.told.clear()
    others.errors["b"] = "gone"
    assert await registry.bring_up("m", b"m", is_first=False) == ""
    assert [info.name for info in registry.news.adapters] == ["a"]
    assert isinstance(others.told[-1][1], Adapters)


async def test_a_first_start_with_a_bad_adapter_says_which(make, tmp_path):
    registry, others = make("m", modules=[{"name": "a", "path": str(tmp_path / "a")}])
    others.errors["a"] = "use_dora is set"
    assert await registry.bring_up("m", b"m", is_first=True) == f"--lora-modules a={tmp_path / 'a'}: use_dora is set"


async def test_every_engine_of_a_model_reads_an_adapter_and_a_fresh_one_alone_reads_all(make):
    registry, others = make("m")
    others.engines["m"] = [b"m0", b"m1"]
    assert (await call(registry))[0] == 200
    assert others.kinds()[:2] == [("m0", "LoadAdapter"), ("m1", "LoadAdapter")]
    others.told.clear()
    assert await registry.bring_up("m", b"m1", is_first=False) == ""
    assert [who for who, message in others.told if isinstance(message, LoadAdapter)] == ["m1"]


async def test_an_adapter_that_one_engine_cannot_read_is_unloaded_from_the_others(make):
    registry, others = make("m")
    others.engines["m"] = [b"m0", b"m1"]
    others.errors["m1", "x"] = "out of memory"
    status, error = await call(registry)
    assert (status, "out of memory" in error) == (400, True)
    assert others.kinds()[-2:] == [("m0", "UnloadAdapter"), ("m1", "UnloadAdapter")]
    assert registry.news.adapters == []


async def test_an_engine_that_dies_while_it_reads_does_not_fail_the_others(make):
    registry, others = make("m")
    others.engines["m"] = [b"m0", b"m1"]
    registry._transport = AdapterTransport(others.to_engines, others.to_one, others.to_workers)
    registry.note_loaded, note_loaded = lambda engine, loaded: note(engine, loaded), registry.note_loaded

    def note(engine, loaded):
        registry.note_engine_down(engine) if engine == b"m1" else note_loaded(engine, loaded)

    assert (await call(registry))[0] == 200
    assert [info.name for info in registry.news.adapters] == ["x"]


async def test_a_worker_that_dies_is_not_waited_for(make):
    registry, others = make("m")
    others.workers = [b"worker:0"]
    registry._transport = AdapterTransport(others.to_engines, others.to_one, lambda message: _nobody_answers(registry))
    async with asyncio.timeout(2):
        assert (await call(registry))[0] == 200


async def _nobody_answers(registry):
    asyncio.get_running_loop().call_later(0.05, registry.note_heard, b"worker:9")
    return [b"worker:9"]


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ({"name": "m", "path": "a"}, "is the name of a model"),
        ({"name": "x", "path": "/nowhere"}, "is not a folder"),
        ({"name": "x", "path": "a", "base_model_name": "z"}, "is not a served model"),
    ],
)
def test_modules_of_the_start_are_checked(make, module, message):
    with pytest.raises(ConfigError, match=message):
        make("m", modules=[module])


async def test_adapters_beyond_host_memory_are_listed(make):
    registry, _ = make("m", max_cpu_loras=1)
    assert [(await call(registry, name))[0] for name in ("x", "y", "z")] == [200] * 3
    assert [info.name for info in registry.news.adapters] == ["x", "y", "z"]


async def test_restarted_engine_reads_no_more_adapters_than_host_memory_may_hold(make, tmp_path):
    modules = [{"name": name, "path": str(tmp_path / name)} for name in ("a", "b")]
    registry, others = make("m", modules=modules, max_cpu_loras=1)
    assert await registry.bring_up("m", b"m", is_first=True) == ""
    assert [message.is_deferred for _, message in others.told] == [False, False]  # each is checked at the first start
    others.told.clear()
    assert await registry.bring_up("m", b"m", is_first=False) == ""
    assert [message.is_deferred for _, message in others.told if isinstance(message, LoadAdapter)] == [False, True]


async def test_listed_adapters_are_bounded(make, monkeypatch):
    monkeypatch.setattr("plugserve.server.supervisor.adapter_registry._MOST_ADAPTERS", 2)
    registry, _ = make("m")
    assert [(await call(registry, name))[0] for name in ("x", "y")] == [200, 200]
    status, error = await call(registry, "z")
    assert (status, "2 LoRA adapters are loaded" in error) == (400, True)
    assert (await call(registry, "y", "b", is_replacement=True))[0] == 200
    assert (await call(registry, "x", ""))[0] == 200
    assert (await call(registry, "z"))[0] == 200


async def test_an_engine_that_does_not_answer_ends_the_call(make, monkeypatch):
    monkeypatch.setattr("plugserve.server.supervisor.adapter_registry._LOAD_S", 0.05)
    registry, _ = make("m")
    monkeypatch.setattr(registry, "note_loaded", lambda message: None)
    status, error = await call(registry, "x")
    assert status == 400
    assert "it was not read in" in error
    assert registry.news.adapters == []


async def test_calls_that_wait_for_one_another_are_bounded(make, monkeypatch):
    registry, _ = make("m")
    async with registry._lock:
        waiting = [asyncio.create_task(call(registry, f"x{i}")) for i in range(16)]
        await asyncio.sleep(0)
        assert (await call(registry, "late"))[0] == 503
    assert {status for status, _ in await asyncio.gather(*waiting)} == {200}
    assert (await call(registry, "late"))[0] == 200
