"""What systemd is told."""

import asyncio
import logging
import os
import socket

import pytest

from plugserve.server.operations.service_manager import ServiceManager


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    """(the address as NOTIFY_SOCKET has it, a function that gives the next datagram)."""
    name = f"plugserve-test-{os.getpid()}"
    address = str(tmp_path / "notify") if request.param == "path" else f"@{name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address if request.param == "path" else f"\0{name}")
        listener.settimeout(5)
        yield address, lambda: listener.recv(4096).decode()


def test_life_cycle(manager):
    address, read = manager
    service = ServiceManager.of({"NOTIFY_SOCKET": address})
    service.ready("serving")
    assert read() == "READY=1\nSTATUS=serving"
    service.reloading()
    state, since, _ = read().split("\n")
    assert state == "RELOADING=1"
    assert int(since.removeprefix("MONOTONIC_USEC=")) > 0
    service.stopping()
    assert read().startswith("STOPPING=1")


async def test_watchdog_is_fed_while_all_is_well(manager):
    address, read = manager
    service = ServiceManager.of({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "20000", "WATCHDOG_PID": str(os.getpid())})
    assert service.watchdog_s == 0.02
    answers = iter([True, False, True])
    task = asyncio.create_task(service.watch(lambda: next(answers)))
    with pytest.raises(RuntimeError):  # StopIteration: it asked a fourth time
        await task
    assert [read(), read()] == ["WATCHDOG=1", "WATCHDOG=1"]


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WATCHDOG_USEC": "1000"},
        {"NOTIFY_SOCKET": "/x"},
        {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"},
    ],
)
async def test_without_a_watchdog_of_its_own_there_are_no_signs(environment):
    await asyncio.wait_for(ServiceManager.of(environment).watch(lambda: pytest.fail("asked")), 5)


def test_manager_that_is_gone_is_one_line(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "plugserve"):
        ServiceManager(str(tmp_path / "nobody")).ready("serving")
        ServiceManager().ready("serving")
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("the service manager can't be told state='READY=1' error=")
