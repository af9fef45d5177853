"""--log-format json: every line is one object, whoever writes it."""

import io
import json
import logging
import subprocess
import sys
import threading

import pytest

from plugserve.core.settings.json_log import JsonFormatter
from plugserve.core.settings.log_setup import set_up_logging
from plugserve.core.wire.trace_ids import TRACE_IDS, TraceIds


@pytest.fixture
def lines(monkeypatch):
    """lines() -> what was written to standard error so far, each line parsed."""
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    set_up_logging("info", "json")

    def parsed():
        return [json.loads(line) for line in written.getvalue().splitlines()]

    yield parsed
    set_up_logging("info")
    logging.captureWarnings(False)


LOG = logging.getLogger("plugserve.test")


def test_pairs_of_a_message_are_members_with_their_types(lines):
    LOG.info("engine died model=%s code=%d took_s=%.2f share=100%% flag=%s seen=%r", "a b", 3, 0.125, True, {"x": 1})
    (line,) = lines()
    assert line["time"].endswith("Z")
    assert (line["level"], line["logger"]) == ("INFO", "plugserve.test")
    assert line["message"] == "engine died model=a b code=3 took_s=0.12 share=100% flag=True seen={'x': 1}"
    assert (line["model"], line["code"], line["took_s"], line["flag"]) == ("a b", 3, 0.125, True)
    assert line["seen"] == "{'x': 1}"
    assert "trace_id" not in line


def test_pairs_never_replace_what_every_line_has(lines):
    LOG.info("level=%s message=%s time=%s model=%s", "x", "y", "z", '"quoted \\u00e9"')
    (line,) = lines()
    assert (line["level"], line["logger"], line["model"]) == ("INFO", "plugserve.test", "quoted é")


def test_exception_is_inside_the_line(lines):
    try:
        raise ValueError("first\nsecond \u2028")
    except ValueError:
        LOG.exception("failed id=%s", "7\n{}")
    (line,) = lines()
    assert (line["error_type"], line["id"]) == ("ValueError", "7\n{}")
    assert line["exception"].startswith("Traceback (most recent call last):")
    assert line["exception"].endswith("ValueError: first\\nsecond \\u2028")


def test_lines_of_libraries_are_objects(lines):
    logging.getLogger("asyncio").error("Task was destroyed")
    logging.getLogger("sanic.error").error("Exception occurred: %s", "x")
    assert [line["logger"] for line in lines()] == ["asyncio", "sanic.error"]


def test_wrong_arguments_lose_no_line(lines):
    own = logging.Logger("own")  # without pytest's handlers, which raise for such arguments
    own.addHandler(next(one for one in logging.getLogger().handlers if isinstance(one.formatter, JsonFormatter)))
    own.info("count=%d", "three")
    own.info("only %s")
    own.info("x=%s y=%s", float("nan"), 1)
    first, second, third = lines()
    assert "three" in first["message"]
    assert second["message"] == "only %s"
    assert third["x"] == "nan"


def test_line_of_a_request_has_its_trace(lines):
    token = TRACE_IDS.set(TraceIds("a" * 32, "b" * 16, True))
    LOG.info("x")
    TRACE_IDS.reset(token)
    LOG.info("y")
    first, second = lines()
    assert (first["trace_id"], first["span_id"]) == ("a" * 32, "b" * 16)
    assert "trace_id" not in second


def test_line_of_a_request_has_its_trace_as_text(monkeypatch):
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    set_up_logging("info")
    token = TRACE_IDS.set(TraceIds("a" * 32, "b" * 16, True))
    LOG.info("x=%d", 1)
    TRACE_IDS.reset(token)
    assert written.getvalue().endswith(f" INFO plugserve.test: x=1 trace_id={'a' * 32}\n")


PROGRAM = """
import logging, sys, threading, warnings
from plugserve.core.settings.log_setup import set_up_logging
set_up_logging("info", "json")
library = logging.getLogger("some_library")
library.addHandler(logging.StreamHandler())  # its own, as transformers has one
library.propagate = False
library.warning("of a library")
print("half a ", end="", file=sys.stderr)
print("line\\n\\r 50%\\r100%", file=sys.stderr)
warnings.warn("old")
thread = threading.Thread(target=lambda: 1 / 0, name="T")
thread.start()
thread.join()
print("plugserve: error: --port", file=sys.stderr)
raise SystemError("gone")
"""


def test_whatever_is_printed_is_an_object():
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    lines = [json.loads(line) for line in ran.stderr.splitlines()]
    assert [(line["logger"], line["message"].splitlines()[0]) for line in lines] == [
        ("stderr", "of a library"),
        ("stderr", "half a line"),
        ("stderr", "100%"),
        ("py.warnings", "<string>:11: UserWarning: old"),
        ("plugserve", "uncaught exception thread=T"),
        ("stderr", "plugserve: error: --port"),
        ("plugserve", "uncaught exception"),
    ]
    assert [line["error_type"] for line in lines if "error_type" in line] == ["ZeroDivisionError", "SystemError"]
