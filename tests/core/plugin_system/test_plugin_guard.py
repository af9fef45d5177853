"""The guard calls hooks in pluggy's order, keeps plugins apart, and decides by their results."""

import asyncio
import logging
from dataclasses import replace

import pytest

import plugserve
from plugserve import PluginError, Refusal, RequestError, RequestView, hookimpl
from plugserve.core.plugin_system import hookspecs
from plugserve.core.plugin_system.plugin_guard import PluginGuard
from plugserve.core.plugin_system.plugin_loading import SPECS, Plugin

REQUEST = RequestView(id="r", path="/v1/completions", method="POST", headers={}, client="test", body={"n": 0})


def plugin(name, **functions):
    return Plugin(name, "test", "1", None, {hook: hookimpl(function) for hook, function in functions.items()})


def guard_of(*plugins, **more):
    return PluginGuard(plugins, **more)


async def test_raise_in_an_observing_hook_is_logged_once_and_counted(caplog):
    seen = []

    def bad(request, error):
        raise ValueError("broken")

    async def good(error):
        seen.append(str(error))

    hooks = guard_of(plugin("bad", plugserve_error=bad), plugin("good", plugserve_error=good))
    for number in range(3):
        request = replace(REQUEST, key=str(number))
        await hooks.observe_async("plugserve_error", request=request, error=ValueError(number))
    assert seen == ["0", "1", "2"]
    assert hooks.errors == {("bad", "plugserve_error"): 3}
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "plugin=bad hook=plugserve_error raised ValueError: broken" in caplog.text


def test_synchronous_observing_hooks_are_isolated_too():
    seen = []

    def bad(engine):
        raise ValueError

    def good(engine):
        seen.append(engine)

    hooks = guard_of(*(plugin(one.__name__, plugserve_engine_started=one) for one in (bad, good)))
    hooks.observe("plugserve_engine_started", engine="e")
    assert seen == ["e"]
    assert hooks.errors.total() == 1


async def test_first_refusal_wins():
    asked = []

    async def allow(request):
        asked.append("allow")

    def refuse(request):
        asked.append("refuse")
        return Refusal(401, "no")

    def never(request):
        asked.append("never")

    hooks = guard_of(*(plugin(one.__name__, plugserve_authorize=one) for one in (allow, refuse, never)))
    assert await hooks.authorize(REQUEST) == Refusal(401, "no")
    assert asked == ["allow", "refuse"]


@pytest.mark.parametrize("answer", [ValueError("broken"), False, True, "yes"])
async def test_authorization_that_fails_refuses_with_500(answer):
    def broken(request):
        if isinstance(answer, Exception):
            raise answer
        return answer

    hooks = guard_of(plugin("broken", plugserve_authorize=broken))
    assert (await hooks.authorize(REQUEST)).status == 500
    assert hooks.errors == {("broken", "plugserve_authorize"): 1}


async def test_each_plugin_sees_the_last_ones_body():
    def add(request):
        return {**request.body, "n": request.body["n"] + 1}

    async def double(request):
        return {**request.body, "n": request.body["n"] * 2}

    def leave(request):
        return None

    def bad(request):
        raise ValueError

    def wrong(request):
        return 5

    hooks = guard_of(
        *(plugin(one.__name__, plugserve_request_received=one) for one in (add, bad, double, wrong, leave))
    )
    assert await hooks.request_received(REQUEST) == {"n": 2}
    assert set(hooks.errors) == {("bad", "plugserve_request_received"), ("wrong", "plugserve_request_received")}
    assert await guard_of(plugin("leave", plugserve_request_received=leave)).request_received(REQUEST) is None


async def test_plugin_may_refuse_a_body_with_a_request_error():
    def refuse(request):
        raise RequestError("too long", status=413)

    with pytest.raises(RequestError, match="too long"):
        await guard_of(plugin("strict", plugserve_request_received=refuse)).request_received(REQUEST)


class Clock:
    """Moves only when told to."""

    now = 0.0

    def __call__(self):
        return self.now


async def test_slow_synchronous_hook_is_off_from_the_next_request_on(caplog):
    clock, seen = Clock(), []

    def slow(request):
        seen.append("slow")
        clock.now += 0.6

    def quick(request):
        seen.append("quick")
        clock.now += 0.4

    hooks = guard_of(*(plugin(one.__name__, plugserve_request_received=one) for one in (slow, quick)), clock=clock)
    for _ in range(3):
        await hooks.request_received(REQUEST)
    assert seen == ["slow", "quick", "quick", "quick"]
    assert len(caplog.records) == 1
    assert hooks.seconds["slow", "plugserve_request_received"] == pytest.approx(0.6)
    assert hooks.seconds["quick", "plugserve_request_received"] == pytest.approx(1.2)


async def test_slow_authorization_stays_on(caplog):
    clock = Clock()

    def slow(request):
        clock.now += 9
        return Refusal(401, "no")

    hooks = guard_of(plugin("door", plugserve_authorize=slow), clock=clock)
    assert [(await hooks.authorize(REQUEST)).status for _ in range(3)] == [401, 401, 401]
    assert len(caplog.records) == 1


async def test_cancelling_a_request_is_no_error_of_the_plugin():
    async def wait(request):
        await asyncio.sleep(60)

    hooks = guard_of(plugin("waits", plugserve_error=wait))
    task = asyncio.create_task(hooks.observe_async("plugserve_error", request=REQUEST, error=ValueError()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not hooks.errors


def test_start_up_hook_that_raises_stops_the_start_with_the_plugins_name():
    def bad(config):
        raise ValueError("broken")

    def picky(config):
        raise plugserve.ConfigError("--port 1 is not nice")

    with pytest.raises(PluginError, match=r"^plugin 'bad': plugserve_configure raised ValueError: broken$"):
        guard_of(plugin("bad", plugserve_configure=bad)).start("plugserve_configure", config=None)
    with pytest.raises(plugserve.ConfigError, match=r"^plugin 'picky': --port 1 is not nice$"):
        guard_of(plugin("picky", plugserve_configure=picky)).start("plugserve_configure", config=None)


def test_order_is_activation_but_for_tryfirst_and_trylast():
    order = []
    plugins = [
        plugin("last", plugserve_engine_started=lambda: order.append("last")),
        plugin("one", plugserve_engine_started=lambda: order.append("one")),
        plugin("two", plugserve_engine_started=lambda: order.append("two")),
        plugin("first", plugserve_engine_started=lambda: order.append("first")),
    ]
    plugins[0].hooks["plugserve_engine_started"].plugserve_impl["trylast"] = True
    plugins[3].hooks["plugserve_engine_started"].plugserve_impl["tryfirst"] = True
    guard_of(*plugins).observe("plugserve_engine_started", engine=None)
    assert order == ["first", "one", "two", "last"]


def test_trace_prints_each_call_and_result(capsys):
    hooks = guard_of(plugin("a", plugserve_engine_started=lambda engine: 5), trace=True)
    hooks.observe("plugserve_engine_started", engine="e")
    assert capsys.readouterr().err == "plugserve-trace a: plugserve_engine_started(engine='e') -> 5\n"


def test_every_hook_is_specified_and_documented():
    for name in SPECS:
        assert getattr(hookspecs, name).__doc__, name
    assert not [name for name in SPECS if any(word in name for word in ("step", "token", "layer"))]
