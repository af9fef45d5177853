"""Takes --root-path off the targets of requests: a proxy may send them with or without it."""

from __future__ import annotations


def without_root_path(target: str, root_path: str) -> str:
    """target without root_path at the begin of its path; unchanged where its path begins otherwise."""
    if not root_path:
        return target
    begin = 0 if target.startswith("/") else target.find("/", target.find("://") + 3)
    path = target[begin:]
    if begin < 0 or not path.startswith(root_path):
        return target
    rest = path[len(root_path) :]
    if rest.startswith("/"):
        return target[:begin] + rest
    return f"{target[:begin]}/{rest}" if not rest or rest.startswith("?") else target
