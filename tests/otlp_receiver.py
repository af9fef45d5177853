"""A collector: takes spans over OTLP (HTTP and gRPC), keeps them, and answers Jaeger's query API.

    python -m tests.otlp_receiver [--http PORT] [--grpc PORT]

GET /api/services and /api/traces?service=NAME have the shapes of Jaeger's JSON API, which its page reads.
"""

from __future__ import annotations

import argparse
import gzip
import json
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


@dataclass
class Span:
    """A span as it came; attributes and those of its resource as Python values."""

    name: str
    kind: str
    trace_id: str
    id: str
    parent_id: str
    state: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    events: list[tuple[str, int, dict[str, Any]]]
    status: str
    message: str
    resource: dict[str, Any]
    children: list[Span] = field(default_factory=list)

    @property
    def service(self):
        return self.resource.get("service.name", "")

    def child(self, name):
        """The one child called name."""
        (found,) = [child for child in self.children if child.name == name]
        return found

    @property
    def event_names(self):
        return [name for name, _, _ in self.events]

    def is_inside(self, other):
        return other.start_ns <= self.start_ns and self.end_ns <= other.end_ns


def value_of(any_value):
    kind = any_value.WhichOneof("value")
    value = getattr(any_value, kind)
    return [value_of(item) for item in value.values] if kind == "array_value" else value


def values_of(pairs):
    return {pair.key: value_of(pair.value) for pair in pairs}


class Store:
    """Spans in the order of arrival."""

    def __init__(self):
        self.spans: list[Span] = []
        self.headers: list[dict[str, str]] = []
        self.num_requests = 0
        self._lock = threading.Condition()

    def take(self, request, headers):
        taken = []
        for group in request.resource_spans:
            resource = values_of(group.resource.attributes)
            for scope in group.scope_spans:
                taken += [_span(span, resource) for span in scope.spans]
        with self._lock:
            self.num_requests += 1
            self.spans += taken
            self.headers.append(headers)
            self._lock.notify_all()

    def wait(self, is_enough, timeout_s=20.0):
        """Wait until is_enough(spans) holds; returns the spans."""
        with self._lock:
            held = self._lock.wait_for(lambda: is_enough(self.spans), timeout_s)
            assert held, [span.name for span in self.spans]
            return list(self.spans)

    def trees(self):
        """The topmost spans, each with its children, in the order of their begin."""
        by_id = {span.id: span for span in self.spans}
        tops = []
        for span in self.spans:
            span.children = []
        for span in sorted(self.spans, key=lambda span: span.start_ns):
            parent = by_id.get(span.parent_id)
            (tops if parent is None else parent.children).append(span)
        return tops

    def jaeger(self, service):
        """The body of /api/traces?service=SERVICE."""
        traces = defaultdict(list)
        for span in list(self.spans):
            traces[span.trace_id].append(span)
        shown = [_jaeger_trace(id, spans) for id, spans in traces.items() if any(s.service == service for s in spans)]
        return {"data": shown, "total": len(shown), "limit": 0, "offset": 0, "errors": None}

    def services(self):
        names = sorted({span.service for span in list(self.spans)})
        return {"data": names, "total": len(names), "limit": 0, "offset": 0, "errors": None}


def _span(span, resource):
    kinds, codes = type(span).SpanKind.Name, type(span.status).StatusCode.Name
    return Span(
        name=span.name,
        kind=kinds(span.kind).removeprefix("SPAN_KIND_"),
        trace_id=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        state=span.trace_state,
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        attributes=values_of(span.attributes),
        events=[(event.name, event.time_unix_nano, values_of(event.attributes)) for event in span.events],
        status=codes(span.status.code).removeprefix("STATUS_CODE_"),
        message=span.status.message,
        resource=resource,
    )


def _jaeger_trace(trace_id, spans):
    processes = {}
    shown = []
    for span in spans:
        process = {"serviceName": span.service, "tags": _tags(span.resource)}
        key = next((key for key, known in processes.items() if known == process), f"p{len(processes) + 1}")
        processes[key] = process
        tags = span.attributes | {"span.kind": span.kind.lower()}
        if span.status != "UNSET":
            tags |= {"otel.status_code": span.status} | ({"error": True} if span.status == "ERROR" else {})
        parents = [{"refType": "CHILD_OF", "traceID": trace_id, "spanID": span.parent_id}] if span.parent_id else []
        shown.append(
            {
                "traceID": trace_id,
                "spanID": span.id,
                "operationName": span.name,
                "references": parents,
                "startTime": span.start_ns // 1000,
                "duration": (span.end_ns - span.start_ns) // 1000,
                "tags": _tags(tags),
                "logs": [
                    {"timestamp": at_ns // 1000, "fields": _tags({"event": name} | values)}
                    for name, at_ns, values in span.events
                ],
                "processID": key,
                "warnings": None,
            }
        )
    return {"traceID": trace_id, "spans": shown, "processes": processes, "warnings": None}


def _tags(values):
    kinds = {bool: "bool", int: "int64", float: "float64"}
    return [
        {"key": key, "type": kinds.get(type(value), "string"), "value": value if type(value) in kinds else str(value)}
        for key, value in values.items()
    ]


class OtlpReceiver(Store):
    """Listens on both protocols while it is open. answers: what a request gets, a status of HTTP; hangs: it gets
    nothing for a minute."""

    def __init__(self, http_port=0, grpc_port=None):
        super().__init__()
        self.status = 200
        self._http = ThreadingHTTPServer(("127.0.0.1", http_port), self._handler())
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._grpc = None
        if grpc_port is not None:
            self._grpc, port = self._grpc_server(grpc_port)
            self.grpc_url = f"grpc://127.0.0.1:{port}"

    def __enter__(self):
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        if self._grpc is not None:
            self._grpc.start()
        return self

    def __exit__(self, *exc):
        self._http.shutdown()
        self._http.server_close()
        if self._grpc is not None:
            self._grpc.stop(None)

    def _grpc_server(self, port):
        import grpc
        from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc

        store = self

        class Service(trace_service_pb2_grpc.TraceServiceServicer):
            def Export(self, request, context):
                store.take(request, dict(context.invocation_metadata()))
                return ExportTraceServiceResponse()

        server = grpc.server(ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Service(), server)
        return server, server.add_insecure_port(f"127.0.0.1:{port}")

    def _handler(store):
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                if store.status == 200 and self.path.endswith("/v1/traces"):
                    headers = {name.lower(): value for name, value in self.headers.items()}
                    store.take(ExportTraceServiceRequest.FromString(body), headers | {":path": self.path})
                self._answer(store.status, b"", "application/x-protobuf")

            def do_GET(self):
                url = urlsplit(self.path)
                query = parse_qs(url.query)
                known = {
                    "/api/services": store.services,
                    "/api/traces": lambda: store.jaeger(query.get("service", [""])[0]),
                }
                if url.path in known:
                    self._answer(200, json.dumps(known[url.path]()).encode(), "application/json")
                else:
                    self._answer(404, b"", "text/plain")

            def _answer(self, status, body, kind):
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        return Handler


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--http", type=int, default=4318)
    parser.add_argument("--grpc", type=int)
    given = parser.parse_args()
    with OtlpReceiver(given.http, given.grpc) as receiver:
        print(receiver.url, flush=True)
        while True:
            time.sleep(60)
