"""Pytest cases for server plugins: subclass ServerPluginConformance and override make_plugin.

The cases call hooks as a server worker does, with valid and malformed requests.
"""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from plugserve.core.contracts.requests import (
    Identity,
    Refusal,
    RequestOutcome,
    RequestTimings,
    RequestUsage,
    RequestView,
)
from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.errors import EngineUnavailableError, RequestError
from plugserve.core.metrics.metric_store import MetricStore
from plugserve.core.metrics.plugin_registry import PluginRegistry
from plugserve.core.plugin_system.plugin_guard import PluginGuard
from plugserve.core.plugin_system.plugin_loading import Plugin, load_object
from plugserve.core.settings.settings import Settings

BODIES: tuple[Mapping[str, Any] | None, ...] = (
    None,
    {},
    {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "stream": True},
    {"model": "m", "prompt": ["a", "b"], "max_tokens": None, "user": "ada"},
    {"input": [1, 2, 3], "max_tokens": "many", "messages": "none", "user": 7, "stop": [[]]},
    {"prompt": "\N{GRINNING FACE}" * 2000, "metadata": {"deep": [{"er": None}] * 50}},
)
HEADERS: tuple[Mapping[str, str], ...] = (
    {},
    {"authorization": "Bearer some-key", "content-type": "application/json"},
    {"authorization": "", "x-api-key": "\xe9\xe8"},
    {"authorization": "Basic YTpi", "cookie": "a=b"},
)
PARAMS = (
    SamplingParams(max_tokens=1, seed=0),
    SamplingParams(max_tokens=100_000, seed=1, temperature=0.0, logit_bias={5: -100.0}),
    SamplingParams(max_tokens=17, seed=-3, top_k=4, top_p=0.5, min_p=0.1, stop_token_ids=(1, 2), num_logprobs=3),
)
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/nowhere")
_numbers = itertools.count()


def load_plugin(plugin: Any) -> Plugin:
    """Load and check a plugin's module, object or class, as plugserve does at start. The result has the attributes
    provides, options and hooks. Raises PluginError with plugserve's message."""
    return load_object("under-test", plugin)


def sample_requests() -> list[RequestView]:
    """Requests with and without a body or key, valid and malformed."""
    return [
        RequestView(
            id=f"request-{n}",
            path=path,
            method="POST" if body is not None else "GET",
            headers=headers,
            client="127.0.0.1",
            model=body.get("model") if body else None,
            body=copy.deepcopy(body),
        )
        for n, (path, headers, body) in enumerate(itertools.product(PATHS, HEADERS, BODIES))
    ]


class ServerPluginConformance:
    """Subclass it, name the subclass Test..., and override make_plugin."""

    def make_plugin(self) -> Any:
        """Returns a new plugin: the module or object that its entry point names."""
        raise NotImplementedError("override make_plugin: return the plugin's module, or a new plugin object")

    def config(self) -> Settings:
        """The settings, of which plugserve_configure gets the view."""
        return Settings()

    def test_hooks_are_valid(self) -> None:
        assert load_plugin(self.make_plugin()).hooks

    def test_every_request_is_accepted_or_refused_in_one_line(self) -> None:
        guard = self._guard()
        for request in sample_requests():
            answer = asyncio.run(guard.authorize(request))
            self._assert_no_raise(guard, request)
            if isinstance(answer, Refusal):
                self._check_refusal(answer, request)

    def test_bodies_stay_json_and_the_clients_body_is_unchanged(self) -> None:
        guard = self._guard()
        for request in sample_requests():
            before = copy.deepcopy(request.body)
            try:
                body = asyncio.run(guard.request_received(request))
            except RequestError as error:
                body, status = None, error.status
            else:
                status = 400
            assert 400 <= status < 500, f"a RequestError is the client's fault: 4xx, got {status}"
            self._assert_no_raise(guard, request)
            assert request.body == before, f"plugserve_request_received changed the body in place ({before!r:.200})"
            if body is not None:
                json.dumps(dict(body))

    def test_every_outcome_of_a_request_is_accepted(self) -> None:
        guard = self._guard()
        usages = (RequestUsage(0, 0), RequestUsage(7, 3, 2), RequestUsage(100_000, 1))
        timings = (
            RequestTimings(total_s=0.0, finish_reason="abort"),
            RequestTimings(total_s=1.5, queue_s=0.1, first_token_s=0.4, finish_reason="stop"),
            RequestTimings(total_s=2.0, finish_reason=None),
        )
        errors = (RequestError("no such model", status=404), EngineUnavailableError("loading"), ValueError("ours"))
        for request, answer in self._asked(guard):
            if isinstance(answer, Refusal):
                continue  # nothing of it is served: only plugserve_request_ended is called
            for usage, timing in zip(usages, timings, strict=True):
                asyncio.run(
                    guard.observe_async("plugserve_request_finished", request=request, usage=usage, timings=timing)
                )
            for error in errors:
                asyncio.run(guard.observe_async("plugserve_error", request=request, error=error))
            self._assert_no_raise(guard, request)

    def test_every_end_of_a_request_is_accepted(self) -> None:
        """Also of one that was refused, had no body, or was left by its client before anything was sent."""
        guard = self._guard()
        usage, timings = RequestUsage(7, 3), RequestTimings(total_s=1.5, finish_reason="stop")
        outcomes = (
            RequestOutcome(200, is_complete=True, usage=usage, timings=timings),
            RequestOutcome(401, is_complete=True),
            RequestOutcome(405, is_complete=True),
            RequestOutcome(None, is_complete=False, error=asyncio.CancelledError()),
            RequestOutcome(200, is_complete=False, error=ValueError("ours"), usage=usage, timings=timings),
        )
        for outcome in outcomes:
            for request, _ in self._asked(guard):
                asyncio.run(guard.request_ended(request, outcome))
                self._assert_no_raise(guard, request)

    def test_sampling_parameters_stay_valid(self) -> None:
        guard = self._guard()
        bounds = {"temperature": (0, 2), "top_p": (0, 1), "min_p": (0, 1)}
        for request, answer in self._asked(guard):
            for params, counts in itertools.product(PARAMS, ((1, 1), (5, 1), (128, 16))):
                if isinstance(answer, Refusal):
                    continue
                try:
                    changed, status = asyncio.run(guard.sampling_params(request, params, *counts)), 400
                except RequestError as error:
                    changed, status = params, error.status
                assert 400 <= status < 500, f"a RequestError is the client's fault: 4xx, got {status}"
                self._assert_no_raise(guard, request)
                assert 1 <= changed.max_tokens <= params.max_tokens, "a plugin may only lower max_tokens, to 1 at least"
                for name, (least, most) in bounds.items():
                    assert least <= getattr(changed, name) <= most, f"{name} must be from {least} to {most}"

    def test_requests_may_overlap(self) -> None:
        """Many requests run at once and end in another order."""
        guard, requests = self._guard(), sample_requests()
        usage, timings = RequestUsage(5, 5), RequestTimings(total_s=1.0, finish_reason="stop")

        async def one(request: RequestView, delay: int) -> None:
            answer = await guard.authorize(request)
            for _ in range(delay):
                await asyncio.sleep(0)
            if isinstance(answer, Refusal):
                await guard.request_ended(request, RequestOutcome(answer.status, is_complete=True))
                return
            request = dataclasses.replace(request, identity=answer)
            await guard.observe_async("plugserve_request_finished", request=request, usage=usage, timings=timings)
            await guard.request_ended(request, RequestOutcome(200, is_complete=True, usage=usage, timings=timings))

        async def everyone() -> None:
            await asyncio.gather(*(one(request, 7 * n % 5) for n, request in enumerate(requests)))

        asyncio.run(everyone())
        self._assert_no_raise(guard, requests[0])

    def test_routes_are_added_to_an_app(self) -> None:
        plugin = load_plugin(self.make_plugin())
        if "plugserve_register_routes" not in plugin.hooks:
            return
        from sanic import Sanic

        app: Sanic[Any, Any] = Sanic(f"conformance-{next(_numbers)}", configure_logging=False)
        PluginGuard([plugin]).start("plugserve_register_routes", app=app, engines={})
        assert app.router.routes, "plugserve_register_routes added no route"

    def _asked(self, guard: PluginGuard) -> Iterator[tuple[RequestView, Refusal | Identity | None]]:
        """Sample requests with what plugserve_authorize says of them, and the identity that it gives."""
        for request in sample_requests():
            answer = asyncio.run(guard.authorize(request))
            identity = answer if isinstance(answer, Identity) else None
            yield dataclasses.replace(request, identity=identity), answer

    def _guard(self) -> PluginGuard:
        """The plugin's hooks, configured. An exception in plugserve_configure or plugserve_metrics fails the case: it
        stops plugserve."""
        guard = PluginGuard([load_plugin(self.make_plugin())])
        guard.start("plugserve_configure", config=self.config().view())
        guard.start("plugserve_metrics", metrics=PluginRegistry("", MetricStore()))
        return guard

    @staticmethod
    def _check_refusal(refusal: Refusal, request: RequestView) -> None:
        assert refusal.status != 500 or "failed to authorize" not in refusal.message, (
            f"plugserve_authorize raised (see the log), or returned neither a Refusal nor None, for {request!r:.300}"
        )
        assert refusal.message.strip(), "a Refusal needs a message for the client"
        assert "\n" not in refusal.message, f"a Refusal's message is one line, got {refusal.message!r}"

    @staticmethod
    def _assert_no_raise(guard: PluginGuard, request: RequestView) -> None:
        hooks = ", ".join(hook for _, hook in guard.errors)
        assert not guard.errors, f"{hooks} raised (see the log) for a request like {request!r:.300}"
