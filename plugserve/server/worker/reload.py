"""Reads certificates and the keys file again at SIGHUP."""

from __future__ import annotations

import logging
import ssl

from plugserve.core.errors import ConfigError
from plugserve.core.settings.key_file import all_keys
from plugserve.core.settings.settings import Settings
from plugserve.server.operations.access import Access
from plugserve.server.worker.http.http_server import HttpServer

logger = logging.getLogger(__name__)


def reload_files(settings: Settings, access: Access, server: HttpServer) -> None:
    """Read keys and certificates again, for new requests and connections. If either file is invalid, both stay as they
    were, and one line is logged."""
    try:
        keys = all_keys(settings.api_key, settings.api_key_file)
        tls = tls_context(settings)
    except ConfigError as error:
        logger.error("reload failed; keys and certificates stay as they were: %s", error)
        return
    access.replace_keys(keys)
    server.tls = tls
    logger.info("reloaded num_keys=%d https=%s", len(keys), "on" if tls is not None else "off")


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """None without --ssl-certfile. Raises ConfigError."""
    if not settings.ssl_certfile:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(settings.ssl_certfile, settings.ssl_keyfile)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"--ssl-certfile {settings.ssl_certfile} with --ssl-keyfile {settings.ssl_keyfile}: {error}"
        ) from None
    return context
