"""One server of the embedded model for all tests that don't break it."""

import pytest

from tests.e2e.live_server import LiveServer


@pytest.fixture(scope="session")
def server(smollm2_gguf):
    with LiveServer() as live:
        yield live
