"""Where spans are sent: --otlp-traces-endpoint, else OpenTelemetry's own variables, else nowhere.

https://opentelemetry.io/docs/specs/otel/protocol/exporter/
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final
from urllib.parse import SplitResult, urlsplit

from plugserve.core.errors import ConfigError

logger = logging.getLogger(__name__)

GRPC: Final = "grpc"
HTTP: Final = "http/protobuf"
_GRPC_PORT: Final = 4317
_TRACES_PATH: Final = "/v1/traces"
_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_EXPORTER: Final = "OTEL_TRACES_EXPORTER"
_SCHEMES: Final = {"grpc": "http", "grpcs": "https"}


@dataclass(frozen=True, slots=True)
class Destination:
    """A collector. url is None where the SDK reads it from the environment; shown is it without a user's name and
    password."""

    protocol: str
    url: str | None
    shown: str


def destination(endpoint: str | None, environment: Mapping[str, str]) -> Destination | None:
    """endpoint is the setting. Raises ConfigError for what can't be used."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        if endpoint:
            logger.warning("OTEL_SDK_DISABLED=true: no spans are sent, in spite of --otlp-traces-endpoint")
        return None
    exporter = environment.get(_EXPORTER, "").strip()
    variable = next((name for name in _ENDPOINTS if environment.get(name)), None)
    if not endpoint:
        if exporter not in ("", "otlp", "none"):
            raise ConfigError(f"{_EXPORTER} must be otlp or none, got {exporter!r}")
        if exporter == "none" or (not exporter and variable is None):
            return None
    given = endpoint or (environment[variable] if variable is not None else "")
    parts = urlsplit(given if "//" in given else f"//{given}")
    protocol = _protocol(parts, environment)
    if protocol == GRPC and find_spec("opentelemetry.exporter.otlp.proto.grpc") is None:
        raise ConfigError("OTLP over gRPC needs a further package: pip install 'plugserve[grpc]'")
    url = _url(parts, protocol) if endpoint else None
    return Destination(protocol, url, _shown(parts, protocol, variable))


def _protocol(parts: SplitResult, environment: Mapping[str, str]) -> str:
    """The variables' protocol, else that of the URL's scheme or of gRPC's own port, else HTTP."""
    for name in _PROTOCOLS:
        if protocol := environment.get(name, "").strip():
            if protocol not in (GRPC, HTTP):
                raise ConfigError(f"{name} must be {GRPC} or {HTTP}, got {protocol!r}")
            return protocol
    has_path = bool(parts.path.strip("/"))
    return GRPC if parts.scheme in _SCHEMES or (parts.port == _GRPC_PORT and not has_path) else HTTP


def _url(parts: SplitResult, protocol: str) -> str:
    """For HTTP a URL without a path gets /v1/traces."""
    scheme = _SCHEMES.get(parts.scheme, parts.scheme) or "http"
    path = "" if protocol == GRPC else parts.path if parts.path.strip("/") else _TRACES_PATH
    return parts._replace(scheme=scheme, path=path).geturl()


def _shown(parts: SplitResult, protocol: str, variable: str | None) -> str:
    if not parts.netloc:
        return f"localhost:{_GRPC_PORT}" if protocol == GRPC else f"http://localhost:4318{_TRACES_PATH}"
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2])
    shown = _url(bare, protocol)
    return bare.geturl() if variable == _ENDPOINTS[0] and protocol == HTTP else shown
