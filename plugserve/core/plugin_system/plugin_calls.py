"""Calls hooks one implementation at a time: a plugin that fails is counted and logged, and hurts nobody else.

Implementations are looked up once, when the process starts; a hook that nobody implements costs one dictionary look-up.
Knows nothing of how plugins are found.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import logging
import time
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from plugserve.core.contracts.requests import Refusal, RequestView
from plugserve.core.errors import PluginCallError, PluginError, RequestError, UserError
from plugserve.core.plugin_system.plugin_loading import IMPL_MARK, SPECS, Plugin, one_line
from plugserve.core.plugin_system.plugin_trace import raised, returned, trace_call

logger = logging.getLogger(__name__)

REQUEST_DEADLINE_S = 0.5
ASYNC_DEADLINE_S = 10.0
_MOST_SET_ASIDE = 4096  # requests
_LAST_HOOKS = frozenset({"plugserve_request_finished", "plugserve_error"})


class Listener(Protocol):
    """Hears of every hook call as it ends, to count it elsewhere too."""

    def spent(self, plugin: str, hook: str, seconds: float) -> None: ...

    def failed(self, plugin: str, hook: str) -> None: ...

    def set_aside(self, plugin: str, hook: str) -> None: ...


class _Nobody:
    def spent(self, plugin: str, hook: str, seconds: float) -> None: ...

    def failed(self, plugin: str, hook: str) -> None: ...

    def set_aside(self, plugin: str, hook: str) -> None: ...


@dataclass(frozen=True, slots=True, eq=False)
class Implementation:
    """One plugin's function for one hook, and which of the hook's arguments it takes."""

    plugin: str
    hook: str
    function: Callable[..., Any]
    arguments: tuple[str, ...]

    @property
    def key(self) -> tuple[str, str]:
        return self.plugin, self.hook


class HookCalls:
    """All hook implementations of a process's active plugins, ready to call.

    errors counts raises, seconds sums the time spent (waiting included where a hook is async), quarantines says how
    often a plugin was set aside; all are keyed by (plugin, hook).

    A plugin that fails in a hook of a request (it raises, answers nonsense, or an async one takes longer than
    async_deadline_s) is set aside for the rest of that request: none of its other hooks is called for it. A synchronous
    request hook that takes longer than deadline_s is switched off from the next request on, except
    plugserve_authorize: switching that off would let everybody in.
    """

    def __init__(
        self,
        plugins: Sequence[Plugin],
        *,
        trace: bool = False,
        deadline_s: float = REQUEST_DEADLINE_S,
        async_deadline_s: float = ASYNC_DEADLINE_S,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.errors: Counter[tuple[str, str]] = Counter()
        self.seconds: defaultdict[tuple[str, str], float] = defaultdict(float)
        self.quarantines: Counter[tuple[str, str]] = Counter()
        self._implementations = {hook: _implementations(hook, plugins) for hook in SPECS}
        self._trace = trace
        self._deadline_s = deadline_s
        self._async_deadline_s = async_deadline_s
        self._set_aside: OrderedDict[str, set[str]] = OrderedDict()  # plugins by request id
        self._listener: Listener = _Nobody()
        self._clock = clock
        self._reported: set[tuple[str, str, str]] = set()

    def watch(self, listener: Listener) -> None:
        """Tell listener of every call from now on."""
        self._listener = listener

    # ------------------------------------------------ start-up hooks: a raise stops the start

    def start(self, hook: str, **arguments: Any) -> None:
        """Call every implementation of a start-up hook. A raise becomes a PluginError that names the plugin; errors
        that tell the user what to mend keep their own type and text."""
        for implementation in self._implementations[hook]:
            try:
                self._call(implementation, arguments)
            except UserError as error:
                raise type(error)(f"plugin {implementation.plugin!r}: {error}") from error
            except Exception as error:
                raise PluginError(f"plugin {implementation.plugin!r}: {hook} raised {one_line(error)}") from error

    # ------------------------------------------------ observing hooks: a raise is counted

    def observe(self, hook: str, **arguments: Any) -> None:
        """Call every implementation of a synchronous observing hook."""
        for implementation in self._implementations[hook]:
            try:
                self._call(implementation, arguments)
            except Exception as error:
                self._count(implementation, error)

    async def observe_async(self, hook: str, **arguments: Any) -> None:
        """Call every implementation of an observing request hook, awaiting those that are async."""
        for implementation in self._implementations[hook]:
            try:
                await self._call_request_hook(implementation, arguments)
            except Exception as error:
                self._count(implementation, error, arguments["request"])
        if hook in _LAST_HOOKS and self._set_aside:
            self._set_aside.pop(arguments["request"].id, None)

    # ------------------------------------------------ hooks that decide

    async def authorize(self, request: RequestView) -> Refusal | None:
        """The first refusal of plugserve_authorize, or None. A raise, or what is no answer, refuses with 500."""
        for implementation in self._implementations["plugserve_authorize"]:
            try:
                answer = await self._call_request_hook(implementation, {"request": request})
                if not isinstance(answer, Refusal | None):
                    raise TypeError(f"it must return a Refusal or None, got {answer!r}")
            except Exception as error:
                self._count(implementation, error, request)
                message = f"plugin {implementation.plugin!r} failed to authorize the request"
                return Refusal(500, message, code="plugin_failed")
            if answer is not None:
                return answer
        return None

    async def request_received(self, request: RequestView) -> Mapping[str, Any] | None:
        """The body as plugins want it, or None if none changed it. A RequestError of a plugin goes to the client; any
        other raise is counted and leaves the body as it was."""
        changed: Mapping[str, Any] | None = None
        for implementation in self._implementations["plugserve_request_received"]:
            try:
                body = await self._call_request_hook(implementation, {"request": request})
                if not isinstance(body, Mapping | None):
                    raise TypeError(f"it must return a mapping or None, got {body!r}")
            except RequestError:
                raise
            except Exception as error:
                self._count(implementation, error, request)
                continue
            if body is not None:
                changed = body
                request = dataclasses.replace(request, body=body)
        return changed

    # ------------------------------------------------ one call

    def _call(self, implementation: Implementation, arguments: Mapping[str, Any]) -> Any:
        """What an implementation returns; of an async one, what is to be awaited."""
        given = {name: arguments[name] for name in implementation.arguments}
        started = self._clock()
        try:
            result = implementation.function(**given)
        except BaseException as error:
            self._trace_outcome(implementation, given, raised(error))
            raise
        finally:
            self.note_time(*implementation.key, self._clock() - started)
        if self._trace and not inspect.isawaitable(result):
            self._trace_outcome(implementation, given, returned(result))
        return result

    async def _call_request_hook(self, implementation: Implementation, arguments: Mapping[str, Any]) -> Any:
        """What an implementation says of a request, None where its plugin is set aside. Raises PluginCallError where an
        async one takes too long."""
        if self._set_aside and implementation.plugin in self._set_aside.get(arguments["request"].id, ()):
            return None
        started = self._clock()
        result = self._call(implementation, arguments)
        if not inspect.isawaitable(result):
            self._check_deadline(implementation, self._clock() - started)
            return result
        return await self._await(implementation, arguments, result)

    async def _await(self, implementation: Implementation, arguments: Mapping[str, Any], result: Awaitable[Any]) -> Any:
        given = {name: arguments[name] for name in implementation.arguments}
        started = self._clock()
        limit = asyncio.timeout(self._async_deadline_s)
        try:
            async with limit:
                answer = await result
            self._trace_outcome(implementation, given, returned(answer))
            return answer
        except Exception as error:
            self._trace_outcome(implementation, given, raised(error))
            if limit.expired():
                late = f"it took longer than {self._async_deadline_s:g} s"
                raise PluginCallError(*implementation.key, late) from None
            raise
        finally:
            self.note_time(*implementation.key, self._clock() - started)

    def note_time(self, plugin: str, hook: str, seconds: float) -> None:
        """Something of plugin, called or provided by hook, took so long."""
        self.seconds[plugin, hook] += seconds
        self._listener.spent(plugin, hook, seconds)

    def _trace_outcome(self, implementation: Implementation, given: Mapping[str, Any], outcome: str) -> None:
        if self._trace:
            trace_call(*implementation.key, given, outcome)

    def _check_deadline(self, implementation: Implementation, duration_s: float) -> None:
        if duration_s <= self._deadline_s:
            return
        blocked = (
            f"plugin={implementation.plugin} hook={implementation.hook} blocked every request for {duration_s:.2f} s"
        )
        if implementation.hook == "plugserve_authorize":
            if self._is_first(implementation.key, "deadline"):
                logger.warning("%s; it stays on, because it guards the door; make it async", blocked)
            return
        self.quarantines[implementation.key] += 1
        self._listener.set_aside(*implementation.key)
        others = (one for one in self._implementations[implementation.hook] if one is not implementation)
        self._implementations[implementation.hook] = tuple(others)
        logger.error("%s (limit %g s); it is off from the next request on; make it async", blocked, self._deadline_s)

    def note_error(self, plugin: str, hook: str, error: BaseException) -> None:
        """Something of plugin, called or provided by hook, failed at one request."""
        self.errors[plugin, hook] += 1
        self._listener.failed(plugin, hook)
        if self._is_first((plugin, hook), "raise"):
            logger.error(
                "plugin=%s hook=%s raised %s; further raises are only counted",
                plugin,
                hook,
                one_line(error),
                exc_info=error,
            )

    def _count(self, implementation: Implementation, error: Exception, request: RequestView | None = None) -> None:
        """Count a raise; at a request, set its plugin aside for the rest of that request."""
        self.note_error(*implementation.key, error)
        if request is None:
            return
        self.quarantines[implementation.key] += 1
        self._listener.set_aside(*implementation.key)
        self._set_aside.setdefault(request.id, set()).add(implementation.plugin)
        while len(self._set_aside) > _MOST_SET_ASIDE:
            self._set_aside.popitem(last=False)

    def _is_first(self, implementation_key: tuple[str, str], what: str) -> bool:
        key = (*implementation_key, what)
        is_first = key not in self._reported
        self._reported.add(key)
        return is_first


def _implementations(hook: str, plugins: Sequence[Plugin]) -> tuple[Implementation, ...]:
    """In order of activation, but tryfirst before and trylast behind the others."""
    found: list[tuple[int, Implementation]] = []
    for plugin in plugins:
        function = plugin.hooks.get(hook)
        if function is None:
            continue
        marks = getattr(function, IMPL_MARK)
        rank = -1 if marks.get("tryfirst") else 1 if marks.get("trylast") else 0
        arguments = tuple(name for name in inspect.signature(function).parameters if name in SPECS[hook].parameters)
        found.append((rank, Implementation(plugin.name, hook, function, arguments)))
    return tuple(implementation for _, implementation in sorted(found, key=lambda pair: pair[0]))
