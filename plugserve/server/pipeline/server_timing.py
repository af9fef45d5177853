"""The Server-Timing header of an answer: where its time went, for a browser's developer tools and for clients.

https://www.w3.org/TR/server-timing/
"""

from __future__ import annotations

import time

from plugserve.server.pipeline.generation import Generation


def server_timing(generation: Generation) -> str:
    """Milliseconds of what is known now: all parts of a whole answer, those before the first token of a stream. Of
    several sequences, the longest of each part."""
    now_s = time.perf_counter()
    sent_s = generation.sent_s if generation.sent_s is not None else now_s
    parts = {"prepare": sent_s - generation.started_s, "queue": generation.queue_s}
    times = [one for one in generation.times if one is not None]
    if times and generation.is_finished:
        parts["prefill"] = max(one.prefill_s for one in times)
        parts["decode"] = max(one.decode_s for one in times)
    elif generation.first_token_s is not None:
        until_first_s = generation.started_s + generation.first_token_s - sent_s
        parts["prefill"] = max(0.0, until_first_s - generation.queue_s)
    parts["total"] = now_s - generation.started_s
    return ", ".join(f"{name};dur={seconds * 1e3:.1f}" for name, seconds in parts.items())
