"""A plugin that fails at a request is left out of that request, and reported: errors, counts, traces."""

from __future__ import annotations

import asyncio
import dataclasses
import signal
from pathlib import Path

import pytest

import plugserve
from plugserve import PluginCallError, PluginError, Refusal, RequestTimings, RequestUsage, RequestView, hookimpl
from plugserve.core.contracts.requests import Identity, RequestOutcome
from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.plugin_system.failure_policy import HOOK_POLICIES, STRATEGY_POLICIES
from plugserve.core.plugin_system.plugin_guard import PluginGuard
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.plugin_system.plugin_loading import ASYNC_HOOKS, SPECS, Plugin, load_object
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
OTHER = dataclasses.replace(REQUEST, id="other", key="other")
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


async def finish(guard, request):
    await guard.observe_async("plugserve_request_finished", request=request, **END)
    await guard.request_ended(request, RequestOutcome(200, is_complete=True))


async def test_plugin_that_failed_is_not_called_again_for_that_request():
    seen = []

    def bad(request):
        if request.id == "r":
            raise ValueError("broken")

    guard = PluginGuard(
        [
            plugin(
                "bad", plugserve_request_received=bad, plugserve_request_finished=lambda request: seen.append("bad")
            ),
            plugin("good", plugserve_request_finished=lambda request: seen.append("good")),
        ]
    )
    for request in (REQUEST, OTHER, REQUEST):
        await guard.request_received(request)
        await finish(guard, request)
    assert seen == ["good", "bad", "good", "good"]
    assert guard.quarantines == {("bad", "plugserve_request_received"): 2}


async def test_failure_at_a_request_touches_no_other_request_of_the_same_id():
    seen = []

    def bad(request):
        if request.key == REQUEST.key:
            raise ValueError("broken")
        seen.append(request.key)

    guard = PluginGuard([plugin("bad", plugserve_request_received=bad)])
    await guard.request_received(REQUEST)
    await guard.request_received(dataclasses.replace(REQUEST, key="another client"))
    assert seen == ["another client"]


async def test_authorization_that_failed_is_asked_again_at_the_same_id():
    def broken(request):
        raise ValueError("broken")

    guard = PluginGuard([plugin("door", plugserve_authorize=broken, plugserve_request_received=broken)])
    await guard.request_received(REQUEST)
    assert [(await guard.authorize(REQUEST)).status for _ in range(2)] == [500, 500]


async def test_request_that_has_ended_is_forgotten():
    guard = PluginGuard([plugin("bad", plugserve_request_received=lambda request: 5)])
    for number in range(5000):
        await guard.request_received(dataclasses.replace(REQUEST, key=str(number)))
    assert len(guard._set_aside) < 5000, "requests that never end must not pile up"
    for number in range(5000):
        await finish(guard, dataclasses.replace(REQUEST, key=str(number)))
    assert not guard._set_aside


async def test_async_hook_that_hangs_is_left(caplog):
    async def hangs(request):
        await asyncio.sleep(5)

    guard = PluginGuard([plugin("slow", plugserve_request_received=hangs)], async_deadline_s=0.01)
    assert await guard.request_received(REQUEST) is None
    assert guard.errors == {("slow", "plugserve_request_received"): 1}
    error = caplog.records[0].exc_info[1]
    assert isinstance(error, PluginCallError)
    assert str(error) == "plugin 'slow' failed in plugserve_request_received: it took longer than 0.01 s"


async def test_door_that_hangs_stays_shut():
    async def hangs(request):
        await asyncio.sleep(5)

    guard = PluginGuard([plugin("door", plugserve_authorize=hangs)], async_deadline_s=0.01)
    assert await guard.authorize(REQUEST) == Refusal(
        500, "plugin 'door' failed to authorize the request", code="plugin_failed"
    )


async def test_timeout_of_the_plugins_own_is_its_own_error():
    async def times_out(request):
        async with asyncio.timeout(0):
            await asyncio.sleep(1)

    guard = PluginGuard([plugin("own", plugserve_error=times_out)])
    await guard.observe_async("plugserve_error", request=REQUEST, error=ValueError())
    assert guard.errors == {("own", "plugserve_error"): 1}


async def test_listener_hears_of_time_failures_and_quarantines():
    listener = Listener()
    guard = PluginGuard([plugin("bad", plugserve_authorize=lambda request: 5)])
    guard.watch(listener)
    assert (await guard.authorize(REQUEST)).status == 500
    hook = ("bad", "plugserve_authorize")
    assert listener.heard == [("spent", *hook), ("failed", *hook)], "authorize is never set aside"
    listener.heard.clear()
    guard = PluginGuard([plugin("bad", plugserve_request_received=lambda request: 5)])
    guard.watch(listener)
    await guard.request_received(REQUEST)
    hook = ("bad", "plugserve_request_received")
    assert listener.heard == [("spent", *hook), ("failed", *hook), ("set aside", *hook)]


async def test_report_counts_quarantines(tmp_path):
    file = tmp_path / "door.py"
    file.write_text("from plugserve import hookimpl\n@hookimpl\ndef plugserve_request_received(request): return 5\n")
    host = PluginHost.load(Selection(plugin=(str(file),)))
    await host.request_received(REQUEST)
    (report,) = [report for report in host.report() if report.name == "door"]
    assert (report.num_errors, report.num_quarantines) == (1, 1)


# ---------------------------------------------------------------- exceptions that would end a process or task


@pytest.fixture
def ignored_sigint():
    """As in engines and server workers."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()])
@pytest.mark.parametrize("is_async", [False, True])
async def test_exit_of_a_hook_is_a_failure_of_its_plugin(error, is_async, ignored_sigint):
    def leaves(request):
        raise error

    async def leaves_later(request):
        raise error

    hook = leaves_later if is_async else leaves
    guard = PluginGuard([plugin("bad", **dict.fromkeys(sorted(ASYNC_HOOKS), hook))])
    assert (await guard.authorize(REQUEST)).status == 500
    assert await guard.request_received(REQUEST) is None
    for name in ("plugserve_error", "plugserve_request_finished"):
        more = {"error": ValueError()} if name == "plugserve_error" else END
        await guard.observe_async(name, request=dataclasses.replace(REQUEST, key=name), **more)
    assert guard.errors == {("bad", name): 1 for name in ASYNC_HOOKS}


async def test_ctrl_c_is_let_through(monkeypatch):
    """Where Ctrl-C raises KeyboardInterrupt: a process started in the background ignores it."""

    def interrupted(request):
        raise KeyboardInterrupt

    monkeypatch.setattr(signal, "getsignal", lambda number: signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        await PluginGuard([plugin("any", plugserve_request_received=interrupted)]).request_received(REQUEST)


def test_exit_in_hooks_of_the_engine_and_of_the_start():
    def leaves():
        raise SystemExit(0)

    guard = PluginGuard([plugin("bad", plugserve_engine_started=leaves, plugserve_configure=leaves)])
    guard.observe("plugserve_engine_started", engine=None)
    assert guard.errors == {("bad", "plugserve_engine_started"): 1}
    with pytest.raises(PluginError, match=r"^plugin 'bad': plugserve_configure raised SystemExit: 0$"):
        guard.start("plugserve_configure", config=None)


# ---------------------------------------------------------------- what is logged


async def test_each_distinct_error_is_logged_once_with_plugin_hook_and_advice(caplog):
    def bad(request):
        if request.body["n"]:
            raise ValueError(request.id)
        raise KeyError(request.id)

    guard = PluginGuard([plugin("bad", plugserve_request_received=bad)])
    for number in range(6):
        await guard.request_received(
            dataclasses.replace(REQUEST, id=str(number), key=str(number), body={"n": number % 2})
        )
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert lines[0] == (
        "plugin=bad hook=plugserve_request_received raised KeyError: '0'; it is left out of the rest of the request, "
        "which continues; further errors like this are only counted; correct the plugin or start without it"
    )
    assert guard.errors.total() == 6


def test_every_hook_has_a_policy():
    assert HOOK_POLICIES.keys() == SPECS.keys()


def test_page_on_failures_says_what_each_policy_means():
    page = (Path(__file__).parents[3] / "docs" / "plugins" / "failures.md").read_text()
    for place, policy in (HOOK_POLICIES | STRATEGY_POLICIES).items():
        row = next((line for line in page.splitlines() if line.startswith("|") and f" {policy.value} |" in line), "")
        assert place in row.replace("`", ""), (place, policy)


# ---------------------------------------------------------------- traces


async def test_trace_shows_what_an_async_hook_answered_and_no_keys(capsys):
    async def late(request):
        await asyncio.sleep(0)
        return Refusal(403, "no")

    await PluginGuard([plugin("door", plugserve_authorize=late)], trace=True).authorize(REQUEST)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("plugserve-trace door: plugserve_authorize(request=RequestView(id='r', ")
    assert "'authorization': '***', 'x': 'y'" in line
    assert line.endswith("-> Refusal(status=403, message='no', code=None, headers={})")
    assert "secret" not in line


async def test_trace_shows_what_was_raised(capsys):
    def bad(error):
        raise ValueError("broken\nin two")

    await PluginGuard([plugin("bad", plugserve_error=bad)], trace=True).observe_async(
        "plugserve_error", request=REQUEST, error=KeyError("k")
    )
    assert capsys.readouterr().err == (
        "plugserve-trace bad: plugserve_error(error=KeyError('k')) raised ValueError('broken\\nin two')\n"
    )


def test_trace_shows_changed_settings_and_no_secrets(capsys):
    settings = Settings(api_key=["sekret"], max_num_seqs=7)
    PluginGuard([plugin("a", plugserve_configure=lambda config: None)], trace=True).start(
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
    PluginGuard([plugin("a", plugserve_configure=lambda config: None)], trace=True).start(
        "plugserve_configure", config=value
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert len(line) < 3000


# ---------------------------------------------------------------- rules that must hold


class Rule:
    @hookimpl
    def plugserve_request_received(self, request):
        raise KeyError("no rule")


class StrictRule(Rule):
    fails_closed = True


async def test_plugin_that_fails_closed_refuses_the_request():
    assert await PluginGuard([load_object("lenient", Rule())]).request_received(REQUEST) is None
    with pytest.raises(PluginCallError, match="plugin 'strict' failed in plugserve_request_received: KeyError"):
        await PluginGuard([load_object("strict", StrictRule())]).request_received(REQUEST)


async def test_every_door_is_asked_and_the_first_identity_counts():
    asked = []

    def door(name, answer):
        def authorize(request):
            asked.append((name, request.identity))
            return answer

        return plugin(name, plugserve_authorize=authorize)

    doors = [door("a", None), door("b", Identity("ada")), door("c", Identity("bob")), door("d", None)]
    assert await PluginGuard(doors).authorize(REQUEST) == Identity("ada")
    assert asked == [("a", None), ("b", None), ("c", Identity("ada")), ("d", Identity("ada"))]
    shut = PluginGuard([*doors, door("e", Refusal(403, "no"))])
    assert await shut.authorize(REQUEST) == Refusal(403, "no")


@pytest.mark.parametrize("answer", [None, 5, ValueError("broken"), SystemExit(1)])
async def test_sampling_rule_that_fails_refuses_the_request(answer):
    def rule(params):
        if isinstance(answer, BaseException):
            raise answer
        return answer

    guard = PluginGuard([plugin("rule", plugserve_sampling_params=rule)])
    params = SamplingParams(max_tokens=5, seed=0)
    if answer is None:
        assert await guard.sampling_params(REQUEST, params, 1, 1) is params
        return
    for _ in range(2):
        with pytest.raises(PluginCallError, match="plugin 'rule' failed in plugserve_sampling_params"):
            await guard.sampling_params(REQUEST, params, 1, 1)
    assert guard.errors == {("rule", "plugserve_sampling_params"): 2}


async def test_hooks_get_what_is_a_plugserve_sampling_params_and_may_return_one():
    def rule(params):
        assert isinstance(params, plugserve.SamplingParams)
        return plugserve.SamplingParams(max_tokens=3, seed=params.seed, temperature=0.0)

    guard = PluginGuard([plugin(name, plugserve_sampling_params=rule) for name in ("first", "next")])
    changed = await guard.sampling_params(REQUEST, SamplingParams(max_tokens=5, seed=7), 1, 1)
    assert type(changed) is SamplingParams
    assert changed == SamplingParams(max_tokens=3, seed=7, temperature=0.0)
    assert not isinstance(None, plugserve.SamplingParams)


async def test_plugins_that_failed_before_are_called_at_the_end():
    ended = []
    bad = plugin(
        "bad",
        plugserve_request_received=lambda request: 5,
        plugserve_request_ended=lambda request, outcome: ended.append((request.key, outcome.status)),
    )
    guard = PluginGuard([bad])
    await guard.request_received(REQUEST)
    await guard.request_ended(REQUEST, RequestOutcome(200, is_complete=True))
    assert ended == [(REQUEST.key, 200)]
    assert not guard._set_aside


async def test_async_observer_that_hangs_is_switched_off_after_three_requests(caplog):
    calls = []

    async def hangs(request):
        calls.append(request.key)
        await asyncio.sleep(60)

    guard = PluginGuard([plugin("slow", plugserve_request_finished=hangs)], async_deadline_s=0.01)
    for number in range(5):
        await finish(guard, dataclasses.replace(REQUEST, key=str(number)))
    assert calls == ["0", "1", "2"]
    assert "plugin=slow hook=plugserve_request_finished took longer than 0.01 s 3 times; it is off" in caplog.text


async def test_async_door_that_hangs_stays_on():
    async def hangs(request):
        await asyncio.sleep(60)

    guard = PluginGuard([plugin("slow", plugserve_authorize=hangs)], async_deadline_s=0.01)
    for _ in range(5):
        assert (await guard.authorize(REQUEST)).status == 500
