"""HEAD wherever GET is answered, on plugins' routes too."""

from __future__ import annotations

from typing import Any

from sanic.exceptions import MethodNotAllowed
from sanic.router import Router


class HeadRouter(Router):
    """Sends HEAD to the handler of GET where a route has none of its own. The connection leaves the body out."""

    def _get(self, path: str, method: str, host: str | None) -> tuple[Any, Any, dict[str, Any]]:
        try:
            return super()._get(path, method, host)
        except MethodNotAllowed as refused:
            if method != "HEAD":
                raise
            try:
                return super()._get(path, "GET", host)
            except MethodNotAllowed:
                raise refused from None
