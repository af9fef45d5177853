"""An engine put together from settings and plugins, the way its process does it."""

from __future__ import annotations

import logging
from array import array

import pytest
from msgspec.structs import replace

from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.engine.build import EngineBuilder
from plugserve.core.errors import ConfigError, PluginError
from plugserve.core.model_files.model_source import resolve
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.settings import Settings
from plugserve.plugins.schedulers.pace import Pace
from plugserve.testing.fake_runner import FakeRunner

FAKE_RUNNER = """
import sys

from plugserve import hookimpl
from plugserve.testing.fake_runner import FakeRunner

calls = []

@hookimpl
def plugserve_model_runners():
    calls.append("runners")
    return {
        "fake": lambda context: FakeRunner(),
        "broken": broken,
        "leaving": lambda context: sys.exit(0),
        "empty": lambda context: None,
    }

def broken(context):
    raise ZeroDivisionError("no luck")

@hookimpl
def plugserve_authorize(request):
    calls.append("authorize")

@hookimpl
def plugserve_request_received(request):
    calls.append("received")

@hookimpl
def plugserve_request_finished(request):
    calls.append("finished")

@hookimpl
def plugserve_error(request):
    calls.append("error")

@hookimpl
def plugserve_engine_started(engine):
    calls.append("started")
"""


@pytest.fixture
def build(tmp_path, smollm2_gguf):
    file = tmp_path / "fake_runner.py"
    file.write_text(FAKE_RUNNER)

    def build(extra=(), **settings):
        settings = Settings(plugin=[str(file), *extra], **settings)
        host = PluginHost.load(settings.selection())
        return host, EngineBuilder(settings, host, resolve(str(smollm2_gguf)))

    return build


def test_100_decode_steps_make_no_hook_call(build, monkeypatch):
    host, builder = build(runner="fake")
    engine, _, _ = builder.build()
    guarded = []
    call = host.guard._call
    monkeypatch.setattr(host.guard, "_call", lambda hook, *more: (guarded.append(hook), call(hook, *more))[1])
    called = host.plugins["fake-runner"].object.calls
    host.observe("plugserve_engine_started", engine=None)
    assert called[-1:] == ["started"], "the test's own monitors must work"
    assert guarded == ["plugserve_engine_started"]
    called.clear()
    guarded.clear()
    engine.admit((b"w", 1), array("i", [1, 2, 3]), SamplingParams(max_tokens=101, seed=0))
    while engine.has_work:
        engine.step()
    assert engine.snapshot().num_steps >= 100
    assert called == []
    assert guarded == []


def test_slots_say_what_was_built(build):
    _, builder = build(runner="fake", enable_prefix_caching=True)
    builder.build()
    assert builder.slots == {"runner": "fake", "scheduler": "fcfs", "prefix cache": "prefix-cache"}


def test_swap_space_that_nobody_uses_is_said(build, caplog):
    build(runner="fake", swap_space=2)[1].build()
    assert "--swap-space 2 has no effect: the model runner keeps no blocks there" in caplog.text


@pytest.mark.parametrize("has_cache", [False, True])
def test_host_blocks_are_said_at_start(build, caplog, monkeypatch, has_cache):
    caplog.set_level(logging.INFO, logger="plugserve")
    _, builder = build(runner="fake", enable_prefix_caching=has_cache)
    runner = FakeRunner(num_host_slots=32)
    runner.info = replace(runner.info, kv_cache_bytes=64 << 30)
    monkeypatch.setattr(builder._strategies, "make_runner", lambda: runner)
    builder.build()
    whose = "preempted sequences and evicted prefixes" if has_cache else "preempted sequences"
    assert f"host memory blocks=32 gib=32.00: keeps those of {whose}" in caplog.text


def test_weights_that_cannot_be_offloaded_are_said(build, caplog):
    build(runner="fake", cpu_offload_gb=1)[1].build()
    assert "--cpu-offload-gb 1 has no effect: on a CPU all weights are in host memory" in caplog.text


def test_an_executor_without_other_ranks_is_said_to_have_no_effect(build, caplog):
    build(runner="fake", distributed_executor_backend="ray")[1].build()
    assert "--distributed-executor-backend ray has no effect: one process runs the model" in caplog.text


def test_attention_beside_a_runner_that_brings_its_own_is_refused(build):
    _, builder = build(runner="fake", attention="torch-sdpa")
    with pytest.raises(ConfigError, match="--attention torch-sdpa has no effect: runner 'fake' brings its own"):
        builder.build()


def test_speculation_beside_a_runner_that_verifies_no_drafts_is_refused(build):
    _, builder = build(runner="fake", num_speculative_tokens=3)
    builder.build()
    builder._host = PluginHost.load(Settings(plugin=["ngram", *builder._settings.plugin], runner="fake").selection())
    with pytest.raises(ConfigError, match=r"runner 'fake' verifies no drafts, so speculation \(ngram\) has no effect"):
        builder.build()


def test_factory_that_raises_is_named(build):
    _, builder = build(runner="broken")
    with pytest.raises(
        PluginError, match=r"plugin 'fake-runner': its runner 'broken' can't be made: ZeroDivisionError"
    ):
        builder.build()


SLOW_SCHEDULER = """
from plugserve import hookimpl
from plugserve.plugins.schedulers.fcfs import FcfsScheduler

class OwnPace(FcfsScheduler):
    follows_pace = False

@hookimpl
def plugserve_schedulers():
    return {"own-pace": lambda context: OwnPace()}
"""


@pytest.mark.parametrize("name", ["fcfs", "priority", "fair"])
def test_built_in_schedulers_keep_the_pace_that_settings_ask_for(build, name):
    _, builder = build(runner="fake", scheduler=name, max_itl_ms=20, scheduler_delay_factor=0.5)
    engine, _, _ = builder.build()
    assert engine._planner._scheduler._pace == Pace(delay_factor=0.5, max_itl_s=0.02)


def test_settings_that_a_scheduler_does_not_follow_are_said(build, tmp_path, caplog):
    (tmp_path / "own_pace.py").write_text(SLOW_SCHEDULER)
    settings = {"runner": "fake", "scheduler": "own-pace", "extra": [str(tmp_path / "own_pace.py")]}
    build(**settings)[1].build()
    assert "no effect" not in caplog.text
    build(**settings, max_itl_ms=20, scheduler_delay_factor=0.5)[1].build()
    assert "--max-itl-ms 20 has no effect: scheduler 'own-pace' doesn't follow it" in caplog.text
    assert "--scheduler-delay-factor 0.5 has no effect" in caplog.text
