"""The conformance kit fails each server plugin that has a planted bug."""

from __future__ import annotations

import textwrap
import types
from pathlib import Path

import pytest

from plugserve.testing import ServerPluginConformance
from tests.testing.kit_runner import catches, failures


def server_plugin(source):
    module = types.ModuleType("house_rules")
    exec("from plugserve import Refusal, RequestError, hookimpl\n" + textwrap.dedent(source), vars(module))
    return module


SERVER_BUGS = [
    ("@hookimpl\ndef plugserve_authorize(request): return request.headers['authorization'] and None", "raised"),
    ("@hookimpl\ndef plugserve_authorize(request): return True", "raised"),
    ("@hookimpl\ndef plugserve_authorize(request): return Refusal(200, 'no')", "plugserve_authorize raised"),
    ("@hookimpl\ndef plugserve_authorize(request): return Refusal(403, 'no\\nway')", "one line"),
    ("@hookimpl\nasync def plugserve_authorize(request): return Refusal(403, '')", "needs a message"),
    ("@hookimpl\ndef plugserve_request_received(request): return {**request.body, 'n': 1}", "raised"),
    ("@hookimpl\ndef plugserve_request_received(request): (request.body or {}).pop('model', 0)", "in place"),
    ("@hookimpl\ndef plugserve_request_received(request): return {'x': {1, 2}}", "TypeError"),
    ("@hookimpl\ndef plugserve_request_received(request): raise RequestError('x', status=500)", "4xx"),
    ("@hookimpl\ndef plugserve_request_finished(usage, timings): timings.first_token_s / 2", "raised"),
    ("@hookimpl\ndef plugserve_request_finished(request, usage): usage.total / 2", "raised"),
    ("@hookimpl\ndef plugserve_error(error): error.status", "raised"),
    ("@hookimpl\ndef plugserve_register_routes(app): pass", "no route"),
    ("@hookimpl\ndef plugserve_metrics(metrics): metrics.counter('hits_total', 'Hits.')", "must not end with"),
    ("@hookimpl\ndef plugserve_requests_finished(usage): pass", "no hook"),
]


@pytest.mark.parametrize(("source", "word"), SERVER_BUGS)
def test_server_plugin_bug_is_caught(source, word):
    class Case(ServerPluginConformance):
        def make_plugin(self):
            return server_plugin(source)

    assert catches(Case, word)


def test_one_file_example_passes():
    path = Path(__file__).parents[2] / "examples" / "one_file" / "engine_events.py"

    class Case(ServerPluginConformance):
        def make_plugin(self):
            return server_plugin(path.read_text())

    assert failures(Case) == {}
