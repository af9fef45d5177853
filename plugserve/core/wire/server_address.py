"""The address of a running server, as --url of several commands takes it, and connections to it."""

from __future__ import annotations

import http.client
from dataclasses import dataclass
from urllib.parse import urlsplit

from plugserve.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """netloc is host and port as given; prefix is the path before the server's own routes, without /v1."""

    scheme: str
    netloc: str
    host: str
    port: int | None
    prefix: str

    @classmethod
    def read(cls, text: str) -> ServerAddress:
        """http:// may be left out, and /v1 at the end may be given. Raises ConfigError."""
        try:
            parts = urlsplit(text if "://" in text else f"http://{text}")
            port, host = parts.port, parts.hostname
        except ValueError:
            port, host = 0, None
        if port == 0 or not host or parts.scheme not in ("http", "https"):
            raise ConfigError(f"--url must be a server's address such as http://localhost:8000, got {text!r}")
        return cls(parts.scheme, parts.netloc, host, port, parts.path.rstrip("/").removesuffix("/v1"))

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}{self.prefix}"

    def connection(self, timeout_s: float) -> http.client.HTTPConnection:
        """One that is not open yet."""
        make = http.client.HTTPSConnection if self.scheme == "https" else http.client.HTTPConnection
        return make(self.host, self.port, timeout=timeout_s)


def key_header(api_key: str) -> dict[str, str]:
    """The header of a request with api_key; "" is no key."""
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}
