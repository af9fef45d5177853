"""A collector that is away is one line a minute."""

import logging

from plugserve.core.settings.log_setup import LineFormatter
from plugserve.core.wire.trace_ids import TRACE_IDS, TraceIds
from plugserve.server.operations.tracing.export_log import PERIOD_S, ExportLog


def test_first_message_of_a_minute_is_logged_with_the_number_of_those_before(caplog):
    now_s = 0.0
    log = ExportLog(clock=lambda: now_s)
    caplog.handler.setFormatter(LineFormatter("%(message)s"))
    token = TRACE_IDS.set(TraceIds("a" * 32, "b" * 16, True))
    with caplog.at_level(logging.WARNING, "plugserve"):
        for text in ("first\nline", "second", "third"):
            log.emit(logging.LogRecord("opentelemetry.x", logging.WARNING, "", 0, "%s", (text,), None))
        now_s = PERIOD_S + 1
        error = (OSError, OSError("gone"), None)
        log.emit(logging.LogRecord("opentelemetry.x", logging.ERROR, "", 0, "x", (), error))
    TRACE_IDS.reset(token)
    assert caplog.text.splitlines() == [
        "spans are not sent: first line (further messages=0)",
        "spans are not sent: OSError: gone (further messages=2)",
    ]
