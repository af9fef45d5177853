"""A request with every optional feature off runs no code of these features."""

from __future__ import annotations

import sys

from tests.core.engine.test_engine import Client, make_engine

OPTIONAL = {
    "acceptance",
    "adapter_loading",
    "adapter_pool",
    "cached_prefix",
    "caching_kv_manager",
    "grammar_closing",
    "guarded_prefix_cache",
    "host_cache_index",
    "host_slots",
    "shared_prefixes",
    "speculation",
    "step_log",
    "structured_output",
    "swapped_blocks",
    "swapping_kv_manager",
}


def entered_modules(work):
    """Names of the modules of plugserve whose functions work() calls."""
    names = set()

    def note(frame, event, argument):
        _, package, path = frame.f_code.co_filename.rpartition("/plugserve/")
        if event == "call" and package:
            names.add(path.rpartition("/")[2].removesuffix(".py"))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
    return names


def test_plain_request_enters_no_module_of_an_optional_feature():
    engine, _ = make_engine()
    client = Client(engine)

    def one_request():
        client.send(0, list(range(40)), 20)
        client.run()
        engine.snapshot()

    entered = entered_modules(one_request)
    assert len(client.tokens[0]) == 20
    assert "engine" in entered
    assert not entered & OPTIONAL
