"""One server of the embedded model, shared by the tests that don't kill its processes; tests/scheduling.py keeps their
files in one process."""

import pytest

from tests.e2e.live_server import LiveServer


@pytest.fixture(scope="session")
def server(smollm2_gguf):
    with LiveServer("--max-num-seqs", "16") as live:  # fewer than test_disconnects has clients: some wait
        yield live
