"""Calls plugins' hooks, and handles the failures of hooks and strategies. No other module calls a hook.

It calls pluggy's implementations one by one, in pluggy's order and with the arguments that each declares,
catches everything but a shutdown, times and counts each call, logs each distinct error once, and applies the policy of
the call (failure_policy). Implementations are looked up once, when the process starts; a hook without implementations
costs one dictionary look-up.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import logging
import time
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec
from pluggy import HookImpl

from plugserve.core.contracts.requests import Identity, Refusal, RequestOutcome, RequestView
from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.errors import PluginCallError, PluginError, RequestError, UserError, one_line
from plugserve.core.plugin_system.failure_policy import HOOK_POLICIES, FailurePolicy, is_shutdown
from plugserve.core.plugin_system.hook_registration import make_manager
from plugserve.core.plugin_system.plugin_loading import SPECS, Plugin
from plugserve.core.plugin_system.plugin_trace import raised, returned, trace_call

logger = logging.getLogger(__name__)

REQUEST_DEADLINE_S = 0.5
ASYNC_DEADLINE_S = 10.0
_MOST_SET_ASIDE = 4096  # requests
FAILS_CLOSED = "fails_closed"
"""The attribute of a plugin that, if True, makes its failures refuse requests."""
_MOST_TIMEOUTS = 3
_MOST_LOGGED = 20  # distinct errors of a plugin in one place


class CallListener(Protocol):
    """Is called as each call of a plugin ends."""

    def spent(self, plugin: str, hook: str, seconds: float) -> None: ...

    def failed(self, plugin: str, hook: str) -> None: ...

    def set_aside(self, plugin: str, hook: str) -> None: ...


class _NullListener:
    def spent(self, plugin: str, hook: str, seconds: float) -> None: ...

    def failed(self, plugin: str, hook: str) -> None: ...

    def set_aside(self, plugin: str, hook: str) -> None: ...


class PluginGuard:
    """Guards the calls of a process's active plugins.

    errors counts failures, calls the calls of hooks, seconds sums the time spent (waiting included where a hook is
    async), quarantines counts how often a plugin was left out or switched off; all are keyed by (plugin, hook or call
    of a strategy). warnings are lines about deprecated hooks.

    A plugin that fails in a hook of a request (it raises, returns what the hook doesn't take, or is async and takes
    longer than async_deadline_s) is left out of the rest of that request: none of its other hooks is called for it. A
    synchronous request hook that takes longer than deadline_s is switched off from the next request on, an async one
    that takes too long for the third time. Hooks that may refuse requests are never switched off,
    because requests would then pass unchecked.
    """

    def __init__(
        self,
        plugins: Sequence[Plugin] = (),
        *,
        trace: bool = False,
        deadline_s: float = REQUEST_DEADLINE_S,
        async_deadline_s: float = ASYNC_DEADLINE_S,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.errors: Counter[tuple[str, str]] = Counter()
        self.seconds: defaultdict[tuple[str, str], float] = defaultdict(float)
        self.calls: Counter[tuple[str, str]] = Counter()
        self.quarantines: Counter[tuple[str, str]] = Counter()
        manager, self.warnings = make_manager(plugins)
        self._implementations: dict[str, tuple[HookImpl, ...]] = {
            hook: tuple(reversed(getattr(manager.hook, hook).get_hookimpls())) for hook in SPECS
        }
        self._failing_closed = {plugin.name for plugin in plugins if getattr(plugin.object, FAILS_CLOSED, False)}
        self._timeouts: Counter[tuple[str, str]] = Counter()
        self._trace = trace
        self._deadline_s = deadline_s
        self._async_deadline_s = async_deadline_s
        self._set_aside: OrderedDict[str, set[str]] = OrderedDict()  # plugins by RequestView.key
        self._listener: CallListener = _NullListener()
        self._clock = clock
        self._logged: defaultdict[tuple[str, str], set[object]] = defaultdict(set)

    def watch(self, listener: CallListener) -> None:
        """Report every call to listener from now on."""
        self._listener = listener

    # ------------------------------------------------ hooks

    def start(self, hook: str, **arguments: Any) -> None:
        """Call every implementation of a start-up hook. A failure becomes a PluginError that names the plugin; a
        UserError keeps its own type and text."""
        self.start_each(hook, lambda plugin: arguments)

    def start_each(self, hook: str, arguments_of: Callable[[str], Mapping[str, Any]]) -> None:
        """As start, with arguments that depend on the plugin's name."""
        for implementation in self._implementations[hook]:
            try:
                self._call(hook, implementation, arguments_of(implementation.plugin_name))
            except UserError as error:
                raise type(error)(f"plugin {implementation.plugin_name!r}: {error}") from error
            except BaseException as error:
                if is_shutdown(error):
                    raise
                raise PluginError(f"plugin {implementation.plugin_name!r}: {hook} raised {one_line(error)}") from error

    def observe(self, hook: str, **arguments: Any) -> None:
        """Call every implementation of a synchronous observing hook."""
        for implementation in self._implementations[hook]:
            try:
                self._call(hook, implementation, arguments)
            except BaseException as error:
                self.note_failure(implementation.plugin_name, hook, error, HOOK_POLICIES[hook])

    async def observe_async(self, hook: str, **arguments: Any) -> None:
        """Call every implementation of an observing request hook, awaiting those that are async."""
        request: RequestView = arguments["request"]
        for implementation in self._implementations[hook]:
            try:
                await self._call_for_request(hook, implementation, arguments)
            except BaseException as error:
                self._leave_out(implementation, hook, error, request)

    async def request_ended(self, request: RequestView, outcome: RequestOutcome) -> None:
        """Call every implementation of plugserve_request_ended, also those of plugins that were left out: they
        may have to release what they counted at the request's start."""
        hook = "plugserve_request_ended"
        self._set_aside.pop(request.key, None)
        for implementation in self._implementations[hook]:
            try:
                await self._result(hook, implementation, {"request": request, "outcome": outcome})
            except BaseException as error:
                self.note_failure(implementation.plugin_name, hook, error, HOOK_POLICIES[hook])

    def implements(self, hook: str) -> bool:
        """An active plugin implements hook."""
        return bool(self._implementations[hook])

    async def authorize(self, request: RequestView) -> Refusal | Identity | None:
        """The first refusal of plugserve_authorize, else the first identity, or None. Implementations are called
        until one refuses. A failure, or a result of another type, refuses with 500."""
        hook = "plugserve_authorize"
        identity: Identity | None = None
        for implementation in self._implementations[hook]:
            plugin = implementation.plugin_name
            try:
                answer = await self._result(hook, implementation, {"request": request})
                if not isinstance(answer, Refusal | Identity | None):
                    raise TypeError(f"it must return a Refusal, an Identity or None, got {answer!r}")
            except BaseException as error:
                self.note_failure(plugin, hook, error, HOOK_POLICIES[hook])
                return Refusal(500, f"plugin {plugin!r} failed to authorize the request", code="plugin_failed")
            if isinstance(answer, Refusal):
                return answer
            if identity is None and answer is not None:
                identity = answer
                request = dataclasses.replace(request, identity=identity)
        return identity

    async def sampling_params(
        self, request: RequestView, params: SamplingParams, num_choices: int, num_prompts: int
    ) -> SamplingParams:
        """params as plugserve_sampling_params changed them. A RequestError of a plugin is re-raised, for the client;
        another failure refuses the request (PluginCallError), so that no rule is skipped."""
        hook = "plugserve_sampling_params"
        counts = {"num_choices": num_choices, "num_prompts": num_prompts}
        for implementation in self._implementations[hook]:
            try:
                changed = await self._result(hook, implementation, {"request": request, "params": params, **counts})
                if not isinstance(changed, SamplingParams | None):
                    raise TypeError(f"it must return SamplingParams or None, got {changed!r}")
                if changed is not None and type(changed) is not SamplingParams:  # made with a program's SamplingParams
                    changed = msgspec.convert(msgspec.to_builtins(changed), SamplingParams)
            except RequestError:
                raise
            except BaseException as error:
                self.note_failure(implementation.plugin_name, hook, error, HOOK_POLICIES[hook])
                raise PluginCallError(implementation.plugin_name, hook, one_line(error)) from error
            params = params if changed is None else changed
        return params

    async def request_received(self, request: RequestView) -> Mapping[str, Any] | None:
        """The body as plugins changed it, or None if none did. A RequestError of a plugin is re-raised, for the client;
        another failure leaves the body as it was, or refuses the request (PluginCallError) where the plugin has
        fails_closed = True."""
        hook = "plugserve_request_received"
        changed: Mapping[str, Any] | None = None
        for implementation in self._implementations[hook]:
            try:
                body = await self._call_for_request(hook, implementation, {"request": request})
                if not isinstance(body, Mapping | None):
                    raise TypeError(f"it must return a mapping or None, got {body!r}")
            except RequestError:
                raise
            except BaseException as error:
                self._leave_out(implementation, hook, error, request)
                if implementation.plugin_name in self._failing_closed:
                    raise PluginCallError(implementation.plugin_name, hook, one_line(error)) from error
                continue
            if body is not None:
                changed = body
                request = dataclasses.replace(request, body=body)
        return changed

    # ------------------------------------------------ strategies, and what hooks share with them

    def note_time(self, plugin: str, call: str, seconds: float) -> None:
        """Count the time of a hook or of a strategy's call."""
        self.seconds[plugin, call] += seconds
        self._listener.spent(plugin, call, seconds)

    def note_failure(self, plugin: str, call: str, error: BaseException, policy: FailurePolicy) -> None:
        """Count a failure, and log it if it is the first of its kind. Raises error if it is a shutdown."""
        if is_shutdown(error):
            raise error
        self.errors[plugin, call] += 1
        self._listener.failed(plugin, call)
        if policy in (FailurePolicy.LEAVE_OUT, FailurePolicy.SWITCH_OFF):
            self._count_quarantine(plugin, call)
        if self._is_new(plugin, call, (type(error), _raised_at(error))):
            logger.error(
                "plugin=%s hook=%s raised %s; it %s; further errors like this are only counted; correct the plugin or "
                "start without it",
                plugin,
                call,
                one_line(error),
                policy.value,
                exc_info=error,
            )

    def _count_quarantine(self, plugin: str, call: str) -> None:
        self.quarantines[plugin, call] += 1
        self._listener.set_aside(plugin, call)

    def _is_new(self, plugin: str, call: str, what: object) -> bool:
        """True if `what` was not logged before and fewer than _MOST_LOGGED errors were."""
        logged = self._logged[plugin, call]
        if what in logged or len(logged) >= _MOST_LOGGED:
            return False
        logged.add(what)
        return True

    # ------------------------------------------------ one call

    def _call(self, hook: str, implementation: HookImpl, arguments: Mapping[str, Any]) -> Any:
        """An implementation's result; the awaitable of an async one."""
        given = _given(implementation, arguments)
        plugin = implementation.plugin_name
        started = self._clock()
        self.calls[plugin, hook] += 1
        try:
            result = implementation.function(**given)
        except BaseException as error:
            self._trace_outcome(plugin, hook, given, raised(error))
            raise
        finally:
            self.note_time(plugin, hook, self._clock() - started)
        if self._trace and not inspect.isawaitable(result):
            self._trace_outcome(plugin, hook, given, returned(result))
        return result

    async def _call_for_request(self, hook: str, implementation: HookImpl, arguments: Mapping[str, Any]) -> Any:
        """An implementation's result, None where its plugin is left out of the request."""
        if implementation.plugin_name in self._set_aside.get(arguments["request"].key, ()):
            return None
        return await self._result(hook, implementation, arguments)

    async def _result(self, hook: str, implementation: HookImpl, arguments: Mapping[str, Any]) -> Any:
        """An implementation's result. Raises PluginCallError where an async one takes too long."""
        started = self._clock()
        result = self._call(hook, implementation, arguments)
        if not inspect.isawaitable(result):
            self._check_deadline(hook, implementation, self._clock() - started)
            return result
        return await self._await(hook, implementation, arguments, result)

    async def _await(
        self, hook: str, implementation: HookImpl, arguments: Mapping[str, Any], result: Awaitable[Any]
    ) -> Any:
        plugin = implementation.plugin_name
        given = _given(implementation, arguments)
        started = self._clock()
        limit = asyncio.timeout(self._async_deadline_s)
        try:
            async with limit:
                answer = await result
            self._trace_outcome(plugin, hook, given, returned(answer))
            return answer
        except BaseException as error:
            self._trace_outcome(plugin, hook, given, raised(error))
            if limit.expired() and not is_shutdown(error):
                self._count_timeout(hook, implementation)
                raise PluginCallError(plugin, hook, f"it took longer than {self._async_deadline_s:g} s") from None
            raise
        finally:
            self.note_time(plugin, hook, self._clock() - started)

    def _leave_out(self, implementation: HookImpl, hook: str, error: BaseException, request: RequestView) -> None:
        """Count a failure at a request, for the rest of which the plugin is not called."""
        self.note_failure(implementation.plugin_name, hook, error, HOOK_POLICIES[hook])
        self._set_aside.setdefault(request.key, set()).add(implementation.plugin_name)
        while len(self._set_aside) > _MOST_SET_ASIDE:
            self._set_aside.popitem(last=False)

    def _check_deadline(self, hook: str, implementation: HookImpl, duration_s: float) -> None:
        """Switch a synchronous hook off that held up the event loop; plugserve_authorize stays on, with a warning."""
        if duration_s <= self._deadline_s:
            return
        plugin = implementation.plugin_name
        blocked = f"plugin={plugin} hook={hook} blocked every request for {duration_s:.2f} s"
        if HOOK_POLICIES[hook] is FailurePolicy.REFUSE_REQUEST:
            if self._is_new(plugin, hook, "deadline"):
                logger.warning("%s; it stays on, because requests would pass unchecked; make it async", blocked)
            return
        self._switch_off(hook, implementation)
        logger.error("%s (limit %g s); it is off from the next request on; make it async", blocked, self._deadline_s)

    def _count_timeout(self, hook: str, implementation: HookImpl) -> None:
        """Switch an async hook off that took too long several times; hooks that may refuse requests stay on."""
        plugin = implementation.plugin_name
        self._timeouts[plugin, hook] += 1
        if self._timeouts[plugin, hook] < _MOST_TIMEOUTS or HOOK_POLICIES[hook] is FailurePolicy.REFUSE_REQUEST:
            return
        self._switch_off(hook, implementation)
        took = f"took longer than {self._async_deadline_s:g} s {_MOST_TIMEOUTS} times"
        logger.error("plugin=%s hook=%s %s; it is off from the next request on", plugin, hook, took)

    def _switch_off(self, hook: str, implementation: HookImpl) -> None:
        self._count_quarantine(implementation.plugin_name, hook)
        self._implementations[hook] = tuple(one for one in self._implementations[hook] if one is not implementation)

    def _trace_outcome(self, plugin: str, hook: str, given: Mapping[str, Any], outcome: str) -> None:
        if self._trace:
            trace_call(plugin, hook, given, outcome)


def _given(implementation: HookImpl, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that an implementation takes: those it needs, and those it has defaults for."""
    taken = (*implementation.argnames, *implementation.kwargnames)
    return {name: arguments[name] for name in taken if name in arguments}


def _raised_at(error: BaseException) -> tuple[str, int] | None:
    """The file and line that raised error."""
    traceback, place = error.__traceback__, None
    while traceback is not None:
        place = traceback.tb_frame.f_code.co_filename, traceback.tb_lineno
        traceback = traceback.tb_next
    return place
