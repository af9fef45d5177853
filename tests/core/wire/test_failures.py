"""Every failure has one row that says how it travels and what a client reads."""

import pytest

from plugserve.core import errors
from plugserve.core.wire import messages
from plugserve.core.wire.failures import FAILURES, FAILURES_BY_FINISH, FINISH_REASONS, failure_of
from plugserve.server.api.error_responses import describe


def codes():
    return {value for name, value in vars(messages).items() if name.startswith("FINISH_")}


def test_every_code_of_the_engine_has_a_reason_or_a_failure():
    assert FINISH_REASONS.keys() == codes()
    assert {code for code, reason in FINISH_REASONS.items() if reason == "error"} == FAILURES_BY_FINISH.keys()


def test_rows_are_unique():
    assert len({failure.error for failure in FAILURES}) == len(FAILURES)
    finishes = [failure.finish for failure in FAILURES if failure.finish is not None]
    assert len(set(finishes)) == len(finishes)
    assert all(failure.message for failure in FAILURES if failure.finish is not None)


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.error.__name__)
def test_client_reads_status_code_and_message_of_the_row(failure):
    error = failure.error("p", "h", "r") if failure.error is errors.PluginCallError else failure.error("why")
    status, body = describe(error)
    assert (status, body["error"]["code"], body["error"]["param"]) == (failure.status, failure.code, failure.param)
    assert body["error"]["message"] == str(error)


def test_class_without_a_row_has_that_of_its_nearest_base():
    class Worse(errors.QueueFullError):
        pass

    assert failure_of(Worse("x")).code == "queue_full"
    assert failure_of(errors.PlanError("x")).code == "engine_error"
