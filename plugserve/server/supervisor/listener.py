"""The socket that all workers accept on: a TCP port (--host, --port) or a Unix socket (--uds)."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from plugserve.core.errors import ConfigError
from plugserve.core.settings.settings import Settings

_BACKLOG: Final = 2048
_LONGEST_PATH: Final = 107  # bytes; sockaddr_un has 108 with the closing null
_PROBE_S: Final = 1.0


@contextmanager
def listening(settings: Settings) -> Iterator[socket.socket]:
    """The bound socket, closed at the end; a Unix socket's file is removed then. Raises ConfigError when the address
    can't be bound."""
    if settings.uds is None:
        with listen(settings.host, settings.port) as listener:
            yield listener
        return
    with listen_on_path(settings.uds, int(settings.uds_mode, 8)) as listener:
        path = listener.getsockname()
        own = os.stat(path)
        try:
            yield listener
        finally:
            with contextlib.suppress(OSError):
                if os.path.samestat(own, os.stat(path)):
                    os.unlink(path)


def listen(host: str, port: int) -> socket.socket:
    """A TCP socket. Raises ConfigError when the address can't be bound."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except (OSError, OverflowError, UnicodeError) as error:
        listener.close()
        code = getattr(error, "errno", None)
        if code == errno.EADDRINUSE:
            raise ConfigError(f"port {port} on {host} is in use; choose another with --port (0 takes any)") from error
        if code == errno.EACCES:
            raise ConfigError(f"port {port} needs more rights than this user has; use one above 1023") from error
        raise ConfigError(f"can't listen on --host {host} --port {port}: {error}") from error
    listener.setblocking(False)
    return listener


def listen_on_path(uds: str, mode: int) -> socket.socket:
    """A Unix socket whose file has mode. A socket file on which no process listens any more is replaced. Raises
    ConfigError."""
    path = Path(os.path.expanduser(uds)).absolute()
    length = len(os.fsencode(path))
    if length > _LONGEST_PATH:
        raise ConfigError(
            f"--uds {path} has {length} bytes, a socket's path at most {_LONGEST_PATH}; take a shorter one"
        )
    if not path.parent.is_dir():
        raise ConfigError(f"--uds {path}: there is no folder {path.parent}; make it first")
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)  # only the owner may connect until the mode is set
    try:
        listener.bind(str(path))
        os.chmod(path, mode)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(f"can't listen on --uds {path}: {error.strerror}; choose another path") from error
    finally:
        os.umask(before)
    listener.setblocking(False)
    return listener


def _remove_stale(path: Path) -> None:
    """Raises ConfigError for a file that is no socket, or one on which a process listens."""
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"can't listen on --uds {path}: {error.strerror}; choose another path") from error
    if not stat.S_ISSOCK(kind):
        raise ConfigError(f"--uds {path} is there and is no socket; choose another path, or remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_S)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            with contextlib.suppress(OSError):  # bind says why it can't have the path
                path.unlink()
            return
        except OSError as error:
            raise ConfigError(f"--uds {path} is there and can't be tried ({error.strerror}); remove it") from error
    raise ConfigError(f"--uds {path} is in use: another process listens on it; choose another path")
