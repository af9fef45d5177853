"""The log lines of a server that is ready: its address, its documentation and a first request."""

from __future__ import annotations

import ipaddress
import json
import logging
import shlex
from dataclasses import dataclass
from typing import Any, Final, Literal

from plugserve.core.settings.settings import Settings

log = logging.getLogger("plugserve")

Example = Literal["chat", "completions", "embeddings", "models"]
_REQUESTS: Final[dict[Example, tuple[str, dict[str, Any]]]] = {
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 50}),
    "completions": ("/v1/completions", {"prompt": "Once upon a time", "max_tokens": 50}),
    "embeddings": ("/v1/embeddings", {"input": "Hello!"}),
}


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where a server listens. uds is the path of its Unix socket, else "". needs_key: requests need an API key."""

    host: str
    port: int
    uds: str = ""
    is_https: bool = False
    root_path: str = ""
    needs_key: bool = False

    @classmethod
    def of(cls, settings: Settings, name: Any, *, needs_key: bool) -> ServerAddress:
        """name is what the listening socket's getsockname returns."""
        host, port, uds = ("localhost", 0, str(name)) if settings.uds is not None else (*name[:2], "")
        return cls(host, port, uds, settings.ssl_certfile is not None, settings.root_path, needs_key)

    @property
    def url(self) -> str:
        """The address that is listened on."""
        return f"unix:{self.uds}" if self.uds else self._url(self.host)

    @property
    def local_url(self) -> str:
        """A URL for clients on this machine."""
        return self._url(_LOCAL.get(self.host, self.host))

    def _url(self, host: str) -> str:
        shown = f"[{host}]" if ":" in host else host
        port = f":{self.port}" if self.port else ""
        return f"http{'s' * self.is_https}://{shown}{port}{self.root_path}"

    @property
    def is_reachable(self) -> bool:
        """Other machines may reach it."""
        if self.uds or self.host == "localhost":
            return False
        try:
            return not ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return True

    def curl(self, model: str, example: Example) -> str:
        """A command that sends a first request, for a POSIX shell."""
        words = ["curl"]
        words += ["--unix-socket", shlex.quote(self.uds)] if self.uds else []
        words += ["-k"] if self.is_https else []  # the certificate is for another name than this machine's
        key = ["-H", '"Authorization: Bearer $PLUGSERVE_API_KEY"'] if self.needs_key else []
        if example == "models":
            return " ".join([*words, f"{self.local_url}/v1/models", *key])
        path, body = _REQUESTS[example]
        content = ["-H", "'Content-Type: application/json'", "-d", shlex.quote(json.dumps({"model": model, **body}))]
        return " ".join([*words, self.local_url + path, *key, *content])


_LOCAL: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def warn_of_open_server(address: ServerAddress) -> None:
    """One line for a server without a key that other machines may reach."""
    if address.is_reachable and not address.needs_key:
        log.warning(
            "no API key is set: whoever reaches %s:%d can use the models; set PLUGSERVE_API_KEY, or listen on "
            "--host 127.0.0.1",
            address.host,
            address.port,
        )


def announce_ready(
    address: ServerAddress,
    seconds: float,
    *,
    model: str = "",
    example: Example = "models",
    has_page: bool = False,
    has_open_docs: bool = False,
) -> None:
    """The last lines of a start. has_page: / is a page; has_open_docs: /docs needs no key."""
    note = ", with a key of this server in PLUGSERVE_API_KEY" if address.needs_key else ""
    if has_page and not address.uds:
        log.info("page: %s/", address.local_url)
    if not address.uds:
        needs_key = address.needs_key and not has_open_docs
        log.info("documentation%s: %s/docs", ", for requests with a key" if needs_key else "", address.local_url)
    log.info("first request%s: %s", note, address.curl(model, example))
    log.info("ready on %s after %.2f s (stop with Ctrl-C)", address.url, seconds)
