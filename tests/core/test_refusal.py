"""A Refusal has an HTTP status that refuses."""

from __future__ import annotations

import pytest

from plugserve import Refusal


@pytest.mark.parametrize("status", [400, 401, 429, 500, 599])
def test_status_that_refuses(status):
    assert Refusal(status, "no").status == status


@pytest.mark.parametrize("status", [0, 200, 302, 399, 600, True, "401", None])
def test_other_status_is_refused_by_value(status):
    with pytest.raises(ValueError, match="must be a number from 400 to 599") as caught:
        Refusal(status, "no")
    assert repr(status) in str(caught.value)
