"""Readiness, reloads, stops and the watchdog for systemd (sd_notify): datagrams to the socket in NOTIFY_SOCKET.

https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping

logger = logging.getLogger(__name__)


class ServiceManager:
    """address is a path, or "@" and a name in Linux's abstract namespace; "" where no service manager listens.
    watchdog_s: it ends the service after so long without a sign of life; 0 where it doesn't."""

    def __init__(self, address: str = "", watchdog_s: float = 0.0) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_s = watchdog_s

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> ServiceManager:
        """That of this process, whose children have no say. A watchdog that is another process's is left to it."""
        micros, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
        is_ours = pid in ("", str(os.getpid()))
        return cls(environment.get("NOTIFY_SOCKET", ""), int(micros) / 1e6 if micros.isdigit() and is_ours else 0.0)

    def ready(self, status: str) -> None:
        self._send(f"READY=1\nSTATUS={status}")

    def reloading(self) -> None:
        """ready follows."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}\nSTATUS=reloading")

    def stopping(self) -> None:
        self._send("STOPPING=1\nSTATUS=stopping")

    async def watch(self, is_well: Callable[[], bool]) -> None:
        """Give signs of life, twice in the watchdog's time, while is_well. Ends at once where there is no watchdog."""
        while self._address and self.watchdog_s:
            if is_well():
                self._send("WATCHDOG=1")
            await asyncio.sleep(self.watchdog_s / 2)

    def _send(self, text: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as found:
                found.sendto(text.encode(), self._address)
        except OSError as error:
            logger.warning("the service manager can't be told state=%r error=%s", text.split("\n")[0], error)
