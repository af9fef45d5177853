"""Reads raw values from the three places of settings: command line, environment, file; and how each was spelt.

Names are resolved by setting_names; values are validated by settings_reader.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from plugserve.core.errors import ConfigError
from plugserve.core.settings.setting_names import KnownNames, Name, flag
from plugserve.core.settings.unset_values import is_none_word, is_unset, without_nulls
from plugserve.core.settings.vllm_names.json_value import with_entry
from plugserve.core.settings.vllm_names.vllm_settings import SHORT_FLAGS, VLLM_VARIABLES

PREFIX = "PLUGSERVE_"
NOT_SETTINGS = frozenset({"PLUGSERVE_TRACE_PLUGINS"})
_SERVICE_HOST = "_SERVICE_HOST"
_LINK = re.compile(r"(tcp|udp|sctp)://")
"""Environment variables that are not settings: PLUGSERVE_TRACE_PLUGINS=1 prints every hook call."""

_MOST_NAMED = 8
_BOOLEAN: TypeAdapter[bool] = TypeAdapter(bool)


@dataclass(slots=True)
class Given:
    """The values of one place. values is keyed by setting, options by plugin and option, vllm by the name of a setting
    that only vLLM has, places by Name.key: the user's spelling ("--port", "PLUGSERVE_PORT", "port in serve.yaml").
    source: the place itself. aliases: those keys of places that were given under another name."""

    values: dict[str, Any] = field(default_factory=dict)
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    vllm: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    source: str = "command line"
    aliases: set[str] = field(default_factory=set)

    def put(self, name: Name, value: Any, place: str) -> None:
        """Remember a value; a later one replaces it."""
        self.table(name)[name.setting] = _inverted(value) if name.inverted else value
        self.places[name.key] = place

    def table(self, name: Name) -> dict[str, Any]:
        """The values among which name's is."""
        if name.plugin:
            return self.options.setdefault(name.plugin, {})
        return self.vllm if name.vllm else self.values

    def warn_of_old_name(self, name: Name, old: str, new: str) -> None:
        """One line for another server's name of a setting."""
        if name.old_name_of:
            self.warnings.append(f"{old} is taken as {new}")
            self.aliases.add(name.key)


@dataclass(slots=True)
class CommandLine(Given):
    """positional: the words that belong to no flag. switches: those flags of the command itself that were given.
    names_model: the model is named with --model, so no word after a list's flag can be MODEL."""

    names_model: bool = False
    positional: list[str] = field(default_factory=list)
    switches: set[str] = field(default_factory=set)

    @property
    def takes_many_words(self) -> bool:
        """True once the model is named: a list's flag then takes all words up to the next flag."""
        return self.names_model or bool(self.positional)


# ---------------------------------------------------------------- command line


def read_command_line(
    arguments: Sequence[str], names: KnownNames, switches: frozenset[str] = frozenset()
) -> CommandLine:
    """Read flags and words. switches are flags without a value that are no settings, such as --json."""
    words = list(arguments)
    given = CommandLine(names_model=any(word == "--model" or word.startswith("--model=") for word in words))
    while words:
        word = words.pop(0)
        if word == "--":
            given.positional += words
            break
        if word in switches:
            given.switches.add(word)
        elif not word.startswith("-") or word == "-":
            given.positional.append(word)
        else:
            _read_flag(given, word, words, names)
    return given


def _read_flag(given: CommandLine, word: str, rest: list[str], names: KnownNames) -> None:
    """Read one flag, and its value from rest."""
    spelt, has_value, text = _split_flag(word)
    if "." in spelt and (dotted := names.find_json(spelt)):
        _read_key(given, spelt, dotted, text if has_value else None, rest, names)
        return
    found = names.find_flag(spelt)
    if found is None:
        return
    name, switched_value = found
    if name.kind == "flag":
        given_value: Any = _switch_value(spelt, switched_value, text if has_value else None, rest, name)
    elif has_value:
        given_value = text
    elif not rest or _is_flag(rest[0]):
        if not names.is_strict:
            return
        raise ConfigError(f"{spelt} needs a value")
    else:
        given_value = rest.pop(0)
    if is_none_word(given_value, name):
        given_value = None
    if name.kind == "list":
        given_value = [*_list_so_far(given, name), given_value]
        while (name.takes_many or given.takes_many_words) and rest and not _is_flag(rest[0]):
            given_value.append(rest.pop(0))
    _put_flag(given, name, given_value, spelt)


def _read_key(
    given: CommandLine,
    spelt: str,
    found: tuple[Name, list[str]],
    text: str | None,
    rest: list[str],
    names: KnownNames,
) -> None:
    """Read --NAME.KEY VALUE into the table of a setting."""
    if text is None and (not rest or _is_flag(rest[0])):
        if names.is_strict:
            raise ConfigError(f"{spelt} needs a value")
        return
    name, keys = found
    base = spelt.partition(".")[0]
    earlier = given.table(name).get(name.setting)
    _put_flag(given, name, with_entry(earlier, keys, rest.pop(0) if text is None else text, base), base)


def _split_flag(word: str) -> tuple[str, str, str]:
    """A flag, "=" and its value where it has one in the same word; -O3 is -O=3."""
    if len(word) > 2 and word.startswith("-O") and word[2:].isdigit():
        return "-O", "=", word[2:]
    return word.partition("=")


def _is_flag(word: str) -> bool:
    return word.startswith("--") or word.partition("=")[0] in SHORT_FLAGS


def _put_flag(given: CommandLine, name: Name, value: Any, spelt: str) -> None:
    given.table(name)[name.setting] = value
    given.places[name.key] = spelt
    is_negated = name.inverted and value is False
    given.warn_of_old_name(name, spelt, flag("no_" + name.setting if is_negated else name.setting))


def _list_so_far(given: CommandLine, name: Name) -> list[str]:
    return list(given.table(name).get(name.setting) or [])


def _switch_value(spelt: str, switched_value: bool, text: str | None, rest: list[str], name: Name) -> Any:
    """The boolean of a flag: by its presence, or as --flag=true."""
    if text is not None:
        is_negated = spelt.startswith(("--no-", "--no_"))
        return _inverted(text) if is_negated != name.inverted else text
    if rest and rest[0].lower() in ("true", "false"):
        if name.vllm:  # older versions of vLLM take a value
            return rest.pop(0)
        off = spelt.replace("--", "--no-", 1)
        raise ConfigError(f"{spelt} takes no value, got {rest[0]!r}; use {spelt} or {off}")
    return switched_value


# ---------------------------------------------------------------- environment


def read_environment(environ: Mapping[str, str], names: KnownNames) -> Given:
    """Read PLUGSERVE_* variables. Lists are comma separated or JSON; an empty variable counts as not set."""
    given = Given(source="environment")
    links = service_links(environ)
    for spelt in sorted(environ):
        if not spelt.startswith(PREFIX) or spelt in NOT_SETTINGS or spelt in links or not environ[spelt].strip():
            continue
        text = environ[spelt]
        if spelt == "PLUGSERVE_PLUGINS":
            _put_tables(given, _json_object(text, spelt), names, spelt, "in the environment")
            continue
        name = _variable(spelt, names)
        if name is not None:
            given.put(name, _variable_value(text, name), spelt)
            given.warn_of_old_name(name, spelt, PREFIX + name.setting.upper() + _opposite(name))
    return given


def service_links(environ: Mapping[str, str]) -> set[str]:
    """The variables that a container gets for each Kubernetes Service: for one called plugserve PLUGSERVE_SERVICE_HOST,
    PLUGSERVE_PORT=tcp://10.0.0.1:8000 and others. They are no settings, though some have a setting's name."""
    services = [name.removesuffix(_SERVICE_HOST) for name in environ if name.endswith(_SERVICE_HOST)]
    return {
        name
        for service in services
        for name in environ
        if name.startswith(service) and _is_link(name.removeprefix(service), environ[name])
    }


def _is_link(rest: str, value: str) -> bool:
    return rest.startswith(("_SERVICE_HOST", "_SERVICE_PORT")) or (
        rest.startswith("_PORT") and (rest != "_PORT" or _LINK.match(value) is not None)
    )


def read_vllm_environment(environ: Mapping[str, str], names: KnownNames, others: Sequence[Given]) -> Given:
    """Read vLLM's variables that have a meaning here; all others are named in one warning. others: the places that
    count more."""
    given = Given(source="environment")
    for spelt, setting in VLLM_VARIABLES.items():
        text = environ.get(spelt, "").strip()
        name = names.find(setting, spelt, "in the environment")
        if not text or name is None:
            continue
        winner = next((place.places[setting] for place in others if setting in place.values), None)
        if winner is not None:
            given.warnings.append(f"{spelt} has no effect: {winner} is given")
            continue
        given.put(name, [text] if name.kind == "list" else text, spelt)
        given.warnings.append(f"{spelt} is taken as {PREFIX}{setting.upper()}")
        given.aliases.add(name.key)
    idle = [spelt for spelt in sorted(environ) if spelt.startswith("VLLM_") and spelt not in VLLM_VARIABLES]
    if idle:
        more = f" and {len(idle) - _MOST_NAMED} more" if len(idle) > _MOST_NAMED else ""
        given.warnings.append(f"{', '.join(idle[:_MOST_NAMED])}{more}: vLLM's variables have no effect here")
    return given


def _variable(spelt: str, names: KnownNames) -> Name | None:
    name = spelt.removeprefix(PREFIX).lower()
    if name.startswith("plugins__"):
        plugin, _, option = name.removeprefix("plugins__").partition("__")
        return names.find_option(plugin, option, spelt, "in the environment")
    return names.find(name, spelt, "in the environment")


def _variable_value(text: str, name: Name) -> Any:
    if name.kind == "list":
        return _split(text)
    return None if is_none_word(text, name) else text


def _split(text: str) -> Any:
    if text.lstrip().startswith("["):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return [part.strip() for part in text.split(",") if part.strip()]


def _json_object(text: str, spelt: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{spelt} must be a JSON object of option tables, got {text!r} ({error})") from None


# ---------------------------------------------------------------- file


def read_file(path: str, names: KnownNames) -> Given:
    """Read a YAML or TOML file. Keys may be written with hyphens or underscores."""
    content = _parse(path)
    given = Given(source=str(Path(os.path.expanduser(path)).absolute()))
    if content.pop("config", None):
        raise ConfigError(f"'config' in {path}: a config file can't name another one")
    _put_all(given, content, names, f"in {path}", f" in {path}")
    return given


def read_keywords(keywords: Mapping[str, Any], names: KnownNames) -> Given:
    """Read the keyword arguments of a call; None counts as not given."""
    given = Given(source="call")
    values = {name: value for name, value in keywords.items() if value is not None}
    _put_all(given, values, names, "in the call", "")
    return given


def _put_all(given: Given, content: Mapping[Any, Any], names: KnownNames, where: str, suffix: str) -> None:
    """Remember settings by name. suffix is appended to a name in messages."""
    for spelt, value in content.items():
        key = str(spelt).replace("-", "_")
        if key == "plugins":
            _put_tables(given, value, names, f"plugins{suffix}", where)
            continue
        name = names.find(key, str(spelt), where)
        value = without_nulls(value)
        if name is None or is_unset(value, name):
            continue
        if names.is_strict and name.key in given.places:
            raise ConfigError(f"{name.setting!r} is set twice {where}: as {given.places[name.key]} and as {spelt}")
        given.put(name, value, f"{spelt}{suffix}")
        given.warn_of_old_name(name, f"{spelt}{suffix}", name.setting + _opposite(name))


def _put_tables(given: Given, tables: Any, names: KnownNames, place: str, where: str) -> None:
    """Remember the options of plugins, given as tables by plugin."""
    if tables is None or tables == "":
        return
    if not isinstance(tables, dict) or not all(isinstance(table, dict) or not table for table in tables.values()):
        if not names.is_strict:
            return
        raise ConfigError(f"{place} must be a table of tables, plugins.NAME.OPTION, got {tables!r}")
    for plugin, table in tables.items():
        for spelt, value in (table or {}).items():
            option = str(spelt).replace("-", "_")
            name = names.find_option(str(plugin), option, f"plugins.{plugin}.{spelt}", where)
            value = without_nulls(value)
            if name is not None and not is_unset(value, name):
                value = [value] if name.kind == "list" and isinstance(value, str) else value
                given.put(name, value, f"plugins.{plugin}.{spelt} {where}")


def _parse(path: Any) -> dict[Any, Any]:
    if not isinstance(path, str):
        raise ConfigError(f"--config must be a .yaml, .yml or .toml file, got {path!r}")
    file = Path(os.path.expanduser(path))
    if file.suffix not in (".yaml", ".yml", ".toml"):
        raise ConfigError(f"--config must be a .yaml, .yml or .toml file, got {path!r}")
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"--config {path}: {reason} (looked in {file.absolute().parent})") from None
    try:
        content = tomllib.loads(text) if file.suffix == ".toml" else yaml.load(text, _UniqueKeys)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold settings as 'key: value' lines, got {type(content).__name__}")
    return content


class _UniqueKeys(yaml.SafeLoader):
    """Safe YAML that refuses a repeated key."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode):
                line = key_node.start_mark.line + 1
                raise yaml.constructor.ConstructorError(None, None, f"a key must be a word (line {line})")
            if key in seen and key != "<<":
                line = key_node.start_mark.line + 1
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice (line {line})")
            seen.add(key)
        return super().construct_mapping(node, deep)


def _opposite(name: Name) -> str:
    return ", which means the opposite" if name.inverted else ""


def _inverted(value: Any) -> Any:
    """The opposite of a boolean; another value is returned unchanged, and validation refuses it."""
    try:
        return not _BOOLEAN.validate_python(value)
    except ValidationError:
        return value
