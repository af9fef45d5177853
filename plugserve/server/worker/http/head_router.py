"""Answers HEAD on every route that answers GET, including plugins' routes."""

from __future__ import annotations

from typing import Any

from sanic.exceptions import MethodNotAllowed
from sanic.router import Router


class HeadRouter(Router):
    """Routes HEAD to GET's handler if the route has no handler for HEAD. HttpStream omits the body."""

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
