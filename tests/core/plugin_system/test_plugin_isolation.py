"""A plugin that fails at a request is set aside for that request, and seen: errors, counts, traces."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from plugserve import PluginCallError, Refusal, RequestTimings, RequestUsage, RequestView, hookimpl
from plugserve.core.plugin_system.plugin_calls import HookCalls
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.plugin_system.plugin_loading import Plugin
from plugserve.core.settings.selection import Selection
from plugserve.core.settings.settings import Settings

REQUEST = RequestView(
    id="r",
    path="/v1/completions",
    method="POST",
    headers={"authorization": "Bearer secret", "x": "y"},
    client="test",
    body={"n": 0},
)
OTHER = dataclasses.replace(REQUEST, id="other")
END = {"usage": RequestUsage(1, 1), "timings": RequestTimings(total_s=1.0)}


def plugin(name, **functions):
    return Plugin(name, "test", "1", None, {hook: hookimpl(function) for hook, function in functions.items()})


class Listener:
    def __init__(self):
        self.heard = []

    def spent(self, plugin, hook, seconds):
        assert seconds >= 0
        self.heard.append(("spent", plugin, hook))

    def failed(self, plugin, hook):
        self.heard.append(("failed", plugin, hook))

    def set_aside(self, plugin, hook):
        self.heard.append(("set aside", plugin, hook))


async def finish(calls, request):
    await calls.observe_async("plugserve_request_finished", request=request, **END)


async def test_plugin_that_failed_is_not_called_again_for_that_request():
    seen = []

    def bad(request):
        if request.id == "r":
            raise ValueError("broken")

    calls = HookCalls(
        [
            plugin(
                "bad", plugserve_request_received=bad, plugserve_request_finished=lambda request: seen.append("bad")
            ),
            plugin("good", plugserve_request_finished=lambda request: seen.append("good")),
        ]
    )
    for request in (REQUEST, OTHER, REQUEST):
        await calls.request_received(request)
        await finish(calls, request)
    assert seen == ["good", "bad", "good", "good"]
    assert calls.quarantines == {("bad", "plugserve_request_received"): 2}


async def test_request_that_has_ended_is_forgotten():
    calls = HookCalls([plugin("bad", plugserve_request_received=lambda request: 5)])
    for number in range(5000):
        await calls.request_received(dataclasses.replace(REQUEST, id=str(number)))
    assert len(calls._set_aside) < 5000, "requests that never end must not pile up"
    for number in range(5000):
        await finish(calls, dataclasses.replace(REQUEST, id=str(number)))
    assert not calls._set_aside


async def test_async_hook_that_hangs_is_left(caplog):
    async def hangs(request):
        await asyncio.sleep(60)

    calls = HookCalls([plugin("slow", plugserve_request_received=hangs)], async_deadline_s=0.01)
    assert await calls.request_received(REQUEST) is None
    assert calls.errors == {("slow", "plugserve_request_received"): 1}
    error = caplog.records[0].exc_info[1]
    assert isinstance(error, PluginCallError)
    assert str(error) == "plugin 'slow' failed in plugserve_request_received: it took longer than 0.01 s"


async def test_door_that_hangs_stays_shut():
    async def hangs(request):
        await asyncio.sleep(60)

    calls = HookCalls([plugin("door", plugserve_authorize=hangs)], async_deadline_s=0.01)
    assert await calls.authorize(REQUEST) == Refusal(
        500, "plugin 'door' failed to authorize the request", code="plugin_failed"
    )


async def test_timeout_of_the_plugins_own_is_its_own_error():
    async def times_out(request):
        async with asyncio.timeout(0):
            await asyncio.sleep(1)

    calls = HookCalls([plugin("own", plugserve_error=times_out)])
    await calls.observe_async("plugserve_error", request=REQUEST, error=ValueError())
    assert calls.errors == {("own", "plugserve_error"): 1}


async def test_listener_hears_of_time_failures_and_quarantines():
    listener = Listener()
    calls = HookCalls([plugin("bad", plugserve_authorize=lambda request: 5)])
    calls.watch(listener)
    assert (await calls.authorize(REQUEST)).status == 500
    hook = ("bad", "plugserve_authorize")
    assert listener.heard == [("spent", *hook), ("failed", *hook), ("set aside", *hook)]


async def test_report_counts_quarantines(tmp_path):
    file = tmp_path / "door.py"
    file.write_text("from plugserve import hookimpl\n@hookimpl\ndef plugserve_authorize(request): return 5\n")
    host = PluginHost.load(Selection(plugin=(str(file),)))
    await host.authorize(REQUEST)
    (report,) = [report for report in host.report() if report.name == "door"]
    assert (report.num_errors, report.num_quarantines) == (1, 1)


# ---------------------------------------------------------------- traces


async def test_trace_shows_what_an_async_hook_answered_and_no_keys(capsys):
    async def late(request):
        await asyncio.sleep(0)
        return Refusal(403, "no")

    await HookCalls([plugin("door", plugserve_authorize=late)], trace=True).authorize(REQUEST)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("plugserve-trace door: plugserve_authorize(request=RequestView(id='r', ")
    assert "'authorization': '***', 'x': 'y'" in line
    assert line.endswith("-> Refusal(status=403, message='no', code=None, headers={})")
    assert "secret" not in line


async def test_trace_shows_what_was_raised(capsys):
    def bad(error):
        raise ValueError("broken\nin two")

    await HookCalls([plugin("bad", plugserve_error=bad)], trace=True).observe_async(
        "plugserve_error", request=REQUEST, error=KeyError("k")
    )
    assert capsys.readouterr().err == (
        "plugserve-trace bad: plugserve_error(error=KeyError('k')) raised ValueError('broken\\nin two')\n"
    )


def test_trace_shows_changed_settings_and_no_secrets(capsys):
    settings = Settings(api_key=["sekret"], max_num_seqs=7)
    HookCalls([plugin("a", plugserve_configure=lambda config: None)], trace=True).start(
        "plugserve_configure", config=settings.view()
    )
    assert capsys.readouterr().err == (
        "plugserve-trace a: plugserve_configure(config=SettingsView(max_num_seqs=7)) -> None\n"
    )


def test_trace_shows_the_hooks_that_declare_and_provide(tmp_path, monkeypatch, capsys):
    file = tmp_path / "mine.py"
    file.write_text("from plugserve import hookimpl\n@hookimpl\ndef plugserve_schedulers(): return {'mine': print}\n")
    monkeypatch.setenv("PLUGSERVE_TRACE_PLUGINS", "1")
    PluginHost.load(Selection(plugin=(str(file),)))
    lines = capsys.readouterr().err.splitlines()
    assert "plugserve-trace mine: plugserve_schedulers() -> {'mine': <built-in function print>}" in lines
    assert any(line.startswith("plugserve-trace fcfs: plugserve_schedulers() -> ") for line in lines)


@pytest.mark.parametrize("value", ["x" * 100_000, {"prompt": "y" * 100_000}])
async def test_trace_of_large_bodies_is_shortened(value, capsys):
    HookCalls([plugin("a", plugserve_configure=lambda config: None)], trace=True).start(
        "plugserve_configure", config=value
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert len(line) < 3000
