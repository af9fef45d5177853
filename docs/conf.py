"""The documentation as a site: `make site` builds it offline, and fails on a broken link."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from plugserve import __version__

project = "plugserve"
author = "The plugserve authors"
version = release = __version__
extensions = ["myst_parser"]
exclude_patterns = ["site"]
html_theme = "furo"
html_title = f"plugserve {version}"
html_copy_source = False
myst_heading_anchors = 4
suppress_warnings = ["myst.header", "misc.highlighting_failure"]

_DOCS = Path(__file__).parent
_ROOT = _DOCS.parent
_README = "<!-- README -->"
_LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def _read_source(app: Any, name: str, source: list[str]) -> None:
    """The page name as Sphinx sees it: the README is the first page, and links that leave docs/ are paths to read."""
    folder = (_DOCS / name).parent
    if _README in source[0]:
        source[0] = source[0].replace(_README, _with_links((_ROOT / "README.md").read_text(), _ROOT, _DOCS))
    source[0] = _with_links(source[0], folder, folder)


def _with_links(text: str, folder: Path, page_folder: Path) -> str:
    """text, whose links are relative to folder, for a page in page_folder."""

    def link(found: re.Match[str]) -> str:
        label, target, anchor = found[1], found[2], found[3] or ""
        path = (folder / target).resolve()
        if ":" in target or not path.exists():
            return found[0]  # an address, or a broken link: Sphinx reports it
        if path.is_relative_to(_DOCS):
            return f"[{label}]({os.path.relpath(path, page_folder)}{anchor})"
        place = path.relative_to(_ROOT)
        return f"`{place}`" if label.strip("`") == str(place) else f"{label} (`{place}`)"

    return _LINK.sub(link, text)


def setup(app: Any) -> None:
    app.connect("source-read", _read_source)
