"""The addresses and keys of upstreams, as the settings give them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from plugserve.core.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:\[\]-]{0,99}")
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class UpstreamAddress:
    """Where an upstream listens. path comes before every request's path; it is empty or begins with a slash."""

    name: str
    host: str
    port: int
    path: str = ""
    is_tls: bool = False
    key: str | None = None

    @property
    def host_field(self) -> str:
        """The value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS["https" if self.is_tls else "http"] else f"{host}:{self.port}"

    @property
    def probe_fields(self) -> list[tuple[bytes, bytes]]:
        """The header fields of the router's own requests."""
        fields = [(b"accept", b"application/json"), (b"user-agent", b"plugserve-route")]
        return fields if self.key is None else [*fields, (b"authorization", b"Bearer " + self.key.encode())]

    @property
    def url(self) -> str:
        return f"{'https' if self.is_tls else 'http'}://{self.host_field}{self.path}"


def read_addresses(upstreams: Sequence[str], keys: Sequence[str]) -> list[UpstreamAddress]:
    """The upstreams of --upstream [NAME=]URL with the keys of --upstream-key [NAME=]KEY. Raises ConfigError."""
    if not upstreams:
        raise ConfigError("plugserve route needs a server to send requests to: --upstream http://HOST:PORT")
    parts = [_name_and_url(text) for text in upstreams]
    names = [name for name, _, _ in parts]
    for name, _, _ in parts:
        if names.count(name) > 1:
            raise ConfigError(f"--upstream: two upstreams are named {name!r}; name one of them as NAME=URL")
    by_name = _keys_by_name(keys, [name for name, _, is_named in parts if is_named])
    return [_address(name, url, by_name.get(name, by_name.get(None))) for name, url, _ in parts]


def _name_and_url(text: str) -> tuple[str, str, bool]:
    """(name, URL, whether the name was given); without one, an upstream is named after its host and port."""
    before, equals, after = text.strip().partition("=")
    if equals and "/" not in before:
        if not _NAME.fullmatch(before):
            raise ConfigError(f"--upstream {text}: the name may hold letters, digits and . _ - :, got {before!r}")
        return before, after.strip(), True
    url = text.strip()
    return urlsplit(url).netloc.rpartition("@")[2] or url, url, False


def _address(name: str, url: str, key: str | None) -> UpstreamAddress:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname or port in (0, -1):
        raise ConfigError(f"--upstream must be http://HOST:PORT or https://HOST:PORT, got {url!r}")
    if parts.query or parts.fragment or parts.username or parts.password:
        raise ConfigError(
            f"--upstream {name}: the URL may hold scheme, host, port and path only; a key goes into --upstream-key"
        )
    path = parts.path.rstrip("/")
    return UpstreamAddress(
        name=name,
        host=parts.hostname,
        port=port or _DEFAULT_PORTS[parts.scheme],
        path=path.removesuffix("/v1"),  # a client library's base URL ends with /v1, which requests bring themselves
        is_tls=parts.scheme == "https",
        key=key,
    )


def _keys_by_name(keys: Sequence[str], names: Sequence[str]) -> dict[str | None, str]:
    """A key for each name, under None the key of all others. Only a given upstream's name is read as one, because keys
    may contain an equals sign."""
    found: dict[str | None, str] = {}
    for text in keys:
        before, equals, after = text.strip().partition("=")
        is_named = bool(equals) and before in names
        name, key = (before, after.strip()) if is_named else (None, text.strip())
        if not key or not key.isprintable() or not key.isascii() or " " in key:
            raise ConfigError("--upstream-key must be a key, or NAME=KEY with the name of an upstream")
        if name in found:
            raise ConfigError(f"--upstream-key is given twice for {name or 'every upstream'}; give it once")
        found[name] = key
    return found
