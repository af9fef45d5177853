"""Calls hooks one implementation at a time: a plugin that fails is counted and logged, and hurts nobody else.

Implementations are looked up once, when the process starts; a hook that nobody implements costs one dictionary look-up.
Knows nothing of how plugins are found.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plugserve.core.contracts import Refusal, RequestView
from plugserve.core.errors import PluginError, RequestError, UserError
from plugserve.core.plugin_loading import IMPL_MARK, SPECS, Plugin, one_line

logger = logging.getLogger(__name__)

REQUEST_DEADLINE_S = 0.5


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

    errors counts raises, seconds sums the time spent (waiting included where a hook is async); both are keyed by
    (plugin, hook). A synchronous request hook that takes longer than deadline_s is switched off from the next request
    on, except plugserve_authorize: switching that off would let everybody in.
    """

    def __init__(
        self,
        plugins: Sequence[Plugin],
        *,
        trace: bool = False,
        deadline_s: float = REQUEST_DEADLINE_S,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.errors: Counter[tuple[str, str]] = Counter()
        self.seconds: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._implementations = {hook: _implementations(hook, plugins) for hook in SPECS}
        self._trace = trace
        self._deadline_s = deadline_s
        self._clock = clock
        self._reported: set[tuple[str, str, str]] = set()

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
                self._count(implementation, error)

    # ------------------------------------------------ hooks that decide

    async def authorize(self, request: RequestView) -> Refusal | None:
        """The first refusal of plugserve_authorize, or None. A raise, or what is no answer, refuses with 500."""
        for implementation in self._implementations["plugserve_authorize"]:
            try:
                answer = await self._call_request_hook(implementation, {"request": request})
                if not isinstance(answer, Refusal | None):
                    raise TypeError(f"it must return a Refusal or None, got {answer!r}")
            except Exception as error:
                self._count(implementation, error)
                return Refusal(500, f"plugin {implementation.plugin!r} failed to authorize the request")
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
                self._count(implementation, error)
                continue
            if body is not None:
                changed = body
                request = dataclasses.replace(request, body=body)
        return changed

    # ------------------------------------------------ one call

    def _call(self, implementation: Implementation, arguments: Mapping[str, Any]) -> Any:
        started = self._clock()
        result: Any = None
        try:
            result = implementation.function(**{name: arguments[name] for name in implementation.arguments})
            return result
        finally:
            self.seconds[implementation.key] += self._clock() - started
            if self._trace:
                _print_call(implementation, arguments, result)

    async def _call_request_hook(self, implementation: Implementation, arguments: Mapping[str, Any]) -> Any:
        started = self._clock()
        result = self._call(implementation, arguments)
        if not inspect.isawaitable(result):
            self._check_deadline(implementation, self._clock() - started)
            return result
        started = self._clock()
        try:
            return await result
        finally:
            self.seconds[implementation.key] += self._clock() - started

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
        others = (one for one in self._implementations[implementation.hook] if one is not implementation)
        self._implementations[implementation.hook] = tuple(others)
        logger.error("%s (limit %g s); it is off from the next request on; make it async", blocked, self._deadline_s)

    def note_error(self, plugin: str, hook: str, error: BaseException) -> None:
        """Something of plugin, called or provided by hook, failed at one request."""
        self.errors[plugin, hook] += 1
        if self._is_first((plugin, hook), "raise"):
            logger.error(
                "plugin=%s hook=%s raised %s; further raises are only counted",
                plugin,
                hook,
                one_line(error),
                exc_info=error,
            )

    def _count(self, implementation: Implementation, error: Exception) -> None:
        self.note_error(*implementation.key, error)

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


def _print_call(implementation: Implementation, arguments: Mapping[str, Any], result: Any) -> None:
    given = ", ".join(f"{name}={arguments[name]!r}" for name in implementation.arguments)
    print(f"plugserve-trace {implementation.plugin}: {implementation.hook}({given}) -> {result!r}", file=sys.stderr)
