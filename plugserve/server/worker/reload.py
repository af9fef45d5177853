"""Reads certificates and the keys file again at SIGHUP."""

from __future__ import annotations

import logging

from plugserve.core.errors import ConfigError
from plugserve.core.settings.key_file import all_keys
from plugserve.core.settings.settings import Settings
from plugserve.server.operations.access import Access
from plugserve.server.operations.tls import tls_context
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
