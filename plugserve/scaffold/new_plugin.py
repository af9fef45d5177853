"""Writes a plugin package that works and passes its own tests: `plugserve plugin new NAME --kind KIND`.

templates/ holds a complete small plugin of each kind, with @WORDS@ in place of names. Independent of the plugin host.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from plugserve.core.errors import ConfigError, did_you_mean
from plugserve.core.plugin_system.hookspecs import PLUGSERVE_API

USAGE = "usage: plugserve plugin new NAME --kind KIND [--into FOLDER]"
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of plugin: its folder of templates, a short description, how it is used, and the attribute of the
    module that the entry point names."""

    folder: str
    does: str
    used_by: str
    attribute: str = ""


KINDS: Mapping[str, Kind] = {
    "scheduler": Kind("scheduler", "a scheduler in order of arrival", "plugserve --scheduler @NAME@"),
    "attention": Kind("attention", "an eager attention backend over torch", "plugserve --attention @NAME@"),
    "prefix-cache": Kind(
        "prefix_cache", "a prefix cache that evicts in the order of release", "plugserve --plugin @NAME@"
    ),
    "runner": Kind("runner", "a model runner that repeats its prompt", "plugserve --runner @NAME@"),
    "lora": Kind(
        "lora", "LoRA adapters, one row after another", "plugserve --plugin @NAME@ --lora-modules style=./my-adapter"
    ),
    "proposer": Kind(
        "proposer",
        "drafts from earlier occurrences of the last token",
        "plugserve --plugin @NAME@ --num-speculative-tokens 4",
    ),
    "tool-parser": Kind(
        "tool_parser",
        "tool calls between <call> and </call>",
        "plugserve --plugin @NAME@ --enable-auto-tool-choice --tool-call-parser @NAME@",
    ),
    "reasoning-parser": Kind(
        "reasoning_parser",
        "thinking between <thought> and </thought>",
        "plugserve --plugin @NAME@ --reasoning-parser @NAME@",
    ),
    "server": Kind(
        "server", "a limit on the tokens of a request", "plugserve --plugin @NAME@ --@NAME@.max-tokens 500", ":plugin"
    ),
}


@dataclass(frozen=True, slots=True)
class _Order:
    name: str
    kind: str
    into: Path


def new_plugin(words: Sequence[str], taken: Mapping[str, object]) -> Path:
    """Write the package that the command line asks for; returns its folder. taken are plugin names that are in use.

    Raises ConfigError for a name, kind or folder that can't be used; nothing is written then.
    """
    order = _read(words)
    if order.name in taken:
        raise ConfigError(f"a plugin named {order.name!r} is installed already; take another name")
    folder = order.into / f"plugserve-{order.name}"
    if folder.exists():
        raise ConfigError(f"{folder} exists already; take another name, or another folder with --into")
    if not order.into.is_dir():
        raise ConfigError(f"--into {order.into}: no such folder")
    kind = KINDS[order.kind]
    names = _names(order.name, kind)
    templates = files("plugserve.scaffold") / "templates"
    try:
        _write(templates / "common", folder, names)
        _write(templates / kind.folder, folder, names)
    except OSError as error:
        raise ConfigError(f"{folder} can't be written: {error}") from error
    return folder


def _read(words: Sequence[str]) -> _Order:
    given: dict[str, str] = {}
    names: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            names.append(word)
            continue
        flag, has_value, value = word.partition("=")
        if flag not in ("--kind", "--into"):
            raise ConfigError(f"unknown flag {flag!r}.{did_you_mean(flag, ['--kind', '--into'])} {USAGE}")
        if not has_value and not rest:
            raise ConfigError(f"{flag} needs a value. {USAGE}")
        given[flag] = value if has_value else rest.pop(0)
    if len(names) != 1:
        raise ConfigError(f"plugserve plugin new needs one name, got {' '.join(names) or 'none'}. {USAGE}")
    kind = given.get("--kind", "")
    if kind not in KINDS:
        problem = f"--kind {kind}: no such kind.{did_you_mean(kind, KINDS)}" if kind else "--kind is needed."
        raise ConfigError(f"{problem} Kinds: {', '.join(KINDS)}")
    name = names[0].removeprefix("plugserve-")
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{names[0]!r} can't be a plugin's name: use lower-case letters, digits and hyphens, such as my-{kind}"
        )
    return _Order(name, kind, Path(given.get("--into", ".")))


def _names(name: str, kind: Kind) -> dict[str, str]:
    module = "plugserve_" + name.replace("-", "_")
    words = {
        "@NAME@": name,
        "@MODULE@": module,
        "@METRICS@": name.replace("-", "_"),
        "@TARGET@": module + kind.attribute,
        "@CLASS@": "".join(part.capitalize() for part in name.split("-")),
        "@API@": str(PLUGSERVE_API),
        "@DOES@": kind.does,
    }
    return {**words, "@USED_BY@": _filled(kind.used_by, words)}


def _filled(text: str, names: Mapping[str, str]) -> str:
    for word, value in names.items():
        text = text.replace(word, value)
    return text


def _write(source: Traversable, target: Path, names: Mapping[str, str]) -> None:
    """Copy a folder of templates, which all end in .txt, filling names in. "dot." becomes a leading dot."""
    for entry in source.iterdir():
        name = _filled(entry.name, names)
        if entry.is_dir():
            _write(entry, target / name, names)
        elif name.endswith(".txt"):
            target.mkdir(parents=True, exist_ok=True)
            (target / name.removesuffix(".txt").removeprefix("dot")).write_text(
                _filled(entry.read_text("utf-8"), names), "utf-8"
            )
