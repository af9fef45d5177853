"""The request log: one line per request, with the client's status."""

import logging

import pytest

from plugserve import RequestError, RequestView
from plugserve.core.errors import (
    AdapterGoneError,
    EngineUnavailableError,
    GrammarError,
    QueueFullError,
    RequestFailedError,
    RequestTimeoutError,
)
from plugserve.plugins.observability import request_log

REQUEST = RequestView(id="r", path="/v1/completions", method="POST", headers={}, client="test", model="a b")


@pytest.mark.parametrize(
    ("error", "status", "level"),
    [
        (RequestError("no such model", status=404), 404, logging.INFO),
        (EngineUnavailableError("down"), 503, logging.ERROR),
        (RequestFailedError("kernel"), 500, logging.ERROR),
        (QueueFullError("full"), 503, logging.INFO),
        (AdapterGoneError("unloaded"), 404, logging.INFO),
        (GrammarError("bad"), 400, logging.INFO),
        (RequestTimeoutError("late"), 504, logging.ERROR),
        (ValueError("ours"), 500, logging.ERROR),
    ],
)
def test_failed_line_has_the_status_that_the_client_got(caplog, error, status, level):
    with caplog.at_level(logging.INFO, "plugserve.request"):
        request_log.plugserve_error(REQUEST, error)
    (record,) = caplog.records
    assert f" status={status} " in record.getMessage()
    assert record.levelno == level


def test_clients_cannot_forge_log_lines(caplog):
    with caplog.at_level(logging.INFO, "plugserve.request"):
        request_log.plugserve_error(REQUEST, RequestError("two\nlines"))
    assert "\n" not in caplog.records[0].getMessage()
    assert 'model="a b"' in caplog.records[0].getMessage()
