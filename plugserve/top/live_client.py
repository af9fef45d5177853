"""Reads a server's live feed, one snapshot a call."""

from __future__ import annotations

import http.client
import json
from typing import Any, Final

from plugserve.core.errors import ConfigError, PlugserveError, one_line
from plugserve.core.wire.server_address import ServerAddress, key_header

_TIMEOUT_S: Final = 5.0
_MOST_BYTES: Final = 1 << 24


class ServerAwayError(PlugserveError):
    """The server can't be reached, or can't answer now. The message is one line."""


class LiveClient:
    """url as Arguments has it."""

    def __init__(self, url: str, api_key: str) -> None:
        self.url = url
        self._address = ServerAddress.read(url)
        self._headers = key_header(api_key)

    def snapshot(self) -> dict[str, Any]:
        """Raises ServerAwayError, or ConfigError where asking again is of no use."""
        return self._get("/live?once=true")

    def requests(self, limit: int) -> list[dict[str, Any]]:
        """The last ones, the newest first. Raises as snapshot."""
        found: list[dict[str, Any]] = self._get(f"/live/requests?limit={limit}")["requests"]
        return found

    def _get(self, path: str) -> dict[str, Any]:
        connection = self._address.connection(_TIMEOUT_S)
        try:
            connection.request("GET", self._address.prefix + path, headers=self._headers)
            response = connection.getresponse()
            status, data = response.status, response.read(_MOST_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise ServerAwayError(f"{self.url} can't be reached: {one_line(error)}") from None
        finally:
            connection.close()
        if status in (401, 403):
            raise ConfigError(f"{self.url} answered {status}: give its key with PLUGSERVE_API_KEY or --api-key")
        if status == 404:
            raise ConfigError(f"{self.url} has no /live; is it a plugserve server of version 0.2 or newer?")
        try:
            answer = json.loads(data)
        except ValueError:
            raise ServerAwayError(f"{self.url} answered {status} without JSON") from None
        if status != 200 or not isinstance(answer, dict):
            raise ServerAwayError(f"{self.url} answered {status}")
        return answer
