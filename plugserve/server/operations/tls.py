"""HTTPS: the context of a certificate and its key, and one line for files that can't be used."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import NoReturn

from plugserve.core.errors import ConfigError, one_line
from plugserve.core.settings.settings import Settings


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """None without --ssl-certfile. Raises ConfigError."""
    certfile, keyfile = settings.ssl_certfile, settings.ssl_keyfile
    if not certfile or not keyfile:
        return None

    def refuse_passphrase() -> NoReturn:
        raise ConfigError(
            f"--ssl-keyfile {keyfile} is encrypted; save it without a passphrase: openssl pkey -in {keyfile} -out NEW"
        )

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certfile, keyfile, password=refuse_passphrase)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(_fault(certfile, keyfile, error)) from None
    return context


def _fault(certfile: str, keyfile: str, error: OSError) -> str:
    """Which file is wrong, and why."""
    for flag, path, mark, kind in (
        ("--ssl-certfile", certfile, b"-----BEGIN CERTIFICATE-----", "certificate"),
        ("--ssl-keyfile", keyfile, b"PRIVATE KEY-----", "private key"),
    ):
        try:
            content = Path(path).read_bytes()
        except OSError as unread:
            return f"{flag} {path} can't be read: {unread.strerror}"
        if mark not in content:
            return f"{flag} {path} holds no {kind} in PEM form"
    if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
        return f"--ssl-keyfile {keyfile} is not the key of the certificate in --ssl-certfile {certfile}"
    return f"--ssl-certfile {certfile} with --ssl-keyfile {keyfile}: {one_line(error)}"
