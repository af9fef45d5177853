"""Tracing: W3C contexts, the trace of a request, its spans, and their export over OTLP."""
