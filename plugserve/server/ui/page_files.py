"""The files of the page, read into memory once: bytes, gzip-compressed bytes, tags for caches."""

from __future__ import annotations

import functools
import gzip
import hashlib
import html
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Final

from sanic import Request
from sanic.response import HTTPResponse

_TYPES: Final[Mapping[str, str]] = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
SECURITY_HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'self'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_LEAST_COMPRESSED: Final = 512  # bytes


@dataclass(frozen=True, slots=True)
class PageFile:
    """A file that never changes while the server runs. packed is empty where compression gains nothing."""

    content_type: str
    plain: bytes
    packed: bytes
    tag: str

    def response(self, request: Request) -> HTTPResponse:
        """The file, compressed where the client takes gzip; 304 where it has it already. Browsers keep it and ask each
        time, so that a new version of the server is seen at once."""
        takes_gzip = bool(self.packed) and "gzip" in (request.headers.get("accept-encoding") or "")
        tag = f'"{self.tag}-gzip"' if takes_gzip else f'"{self.tag}"'
        headers = {"ETag": tag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding", **SECURITY_HEADERS}
        if tag in (request.headers.get("if-none-match") or ""):
            return HTTPResponse(status=304, headers=headers)
        if takes_gzip:
            headers["Content-Encoding"] = "gzip"
        return HTTPResponse(self.packed if takes_gzip else self.plain, headers=headers, content_type=self.content_type)


def make_file(name: str, content: bytes) -> PageFile:
    """name says the type by its ending. Raises KeyError for an ending without a type."""
    content_type = _TYPES[name.rpartition(".")[2]]
    packed = gzip.compress(content, mtime=0) if len(content) >= _LEAST_COMPRESSED else b""
    return PageFile(content_type, content, packed, hashlib.sha256(content).hexdigest()[:20])


@functools.cache
def page_files(root_path: str = "") -> Mapping[str, PageFile]:
    """Every file by its name. root_path is the path that a proxy serves this server below: the page's own addresses are
    relative to it."""
    files = {}
    for entry in resources.files(__package__).joinpath("static").iterdir():
        content = entry.read_bytes()
        if entry.name == "index.html":
            content = with_base(content, root_path)
        files[entry.name] = make_file(entry.name, content)
    return files


def with_base(page: bytes, root_path: str) -> bytes:
    """A page whose relative addresses begin at root_path, also where its own address lacks the slash at the end."""
    if not root_path:
        return page
    return page.replace(b"<head>", f'<head>\n<base href="{html.escape(root_path)}/">'.encode(), 1)
