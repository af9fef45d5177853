"""`plugserve config show` and `plugserve config schema`: the effective settings, and the schema of config files."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

from plugserve.commands.reading import read_all
from plugserve.core.errors import ConfigError, did_you_mean
from plugserve.core.plugin_system.needed_plugins import check_needed_plugins
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.setting_names import option_fields
from plugserve.core.settings.settings import Settings, default_of, setting_facts, without_passwords
from plugserve.core.settings.settings_docs import shown_default, shown_value
from plugserve.core.settings.settings_reader import Origin, Reading, read_selection
from plugserve.core.settings.settings_schema import config_schema

HELP = """\
usage: plugserve config show [--json] [--given] [SETTING ...]
       plugserve config schema [SETTING ...]

show lists every setting as serve would take it, the active plugins' options included, and where each value came from:
its flag, its environment variable, its key and the file's path, another name of it, or the default. Keys and other
secrets read ***. Nothing is loaded or started; a setting that serve would refuse is refused.

  --json     as JSON
  --given    without the settings that have their defaults

schema prints the JSON schema of config files, with the options of the active plugins, for editors and checks:
plugserve config schema > plugserve.schema.json, and in the first line of a YAML file
# yaml-language-server: $schema=plugserve.schema.json

Settings are those of serve: plugserve --help.
"""

SWITCHES = frozenset({"--json", "--given"})
_HIDDEN = "***"


def run(words: list[str], environ: Mapping[str, str]) -> int:
    what = words[0] if words else ""
    if what not in ("show", "schema"):
        near = did_you_mean(what, ["show", "schema"])
        raise ConfigError(f"plugserve config needs a subcommand: plugserve config show, plugserve config schema.{near}")
    words = words[1:]
    with redirect_stdout(sys.stderr):  # what a plugin prints when it is imported is not part of the output
        host = PluginHost.load(read_selection(words, environ, SWITCHES))
        reading = read_all(words, environ, host, SWITCHES)
        check_needed_plugins(reading.settings, host)
    if what == "schema":
        print(json.dumps(config_schema(host.option_models()), indent=2))
        return 0
    rows = _rows(reading, host)
    if "--given" in reading.switches:
        rows = [row for row in rows if row.origin]
    print(_as_json(rows, reading) if "--json" in reading.switches else _as_text(rows), end="")
    if "--json" not in reading.switches:
        for line in (*reading.warnings, *host.warnings):
            print(f"plugserve: warning: {line}", file=sys.stderr)
    return 0


@dataclass(frozen=True, slots=True)
class _Row:
    """One setting or option: its value, or *** for a secret, and where that came from; None for the default."""

    name: str
    value: Any
    origin: Origin | None
    text: str


def _rows(reading: Reading, host: PluginHost) -> list[_Row]:
    settings = reading.settings
    rows = [_setting(name, settings, reading.origins.get(name)) for name in setting_facts()]
    for plugin, model in host.option_models().items():
        given = settings.plugin_options(plugin, model).model_dump(mode="json", by_alias=True)
        for option in option_fields(model):
            key = f"{plugin}.{option}"
            value = _HIDDEN if key in settings.secret_options else without_passwords(given.get(option))
            rows.append(_Row(key, value, reading.origins.get(key), _text(value)))
    return rows


def _setting(name: str, settings: Settings, origin: Origin | None) -> _Row:
    value = without_passwords(getattr(settings, name))
    is_default = value == default_of(name)
    if setting_facts()[name].is_secret and not is_default:
        value = _HIDDEN
    return _Row(name, value, origin, shown_default(name) if is_default else _text(value))


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) and value else shown_value(value)


def _as_json(rows: Sequence[_Row], reading: Reading) -> str:
    settings: dict[str, Any] = {}
    for row in rows:
        origin = {"from": "default"} if row.origin is None else _origin_as_dict(row.origin)
        settings[row.name] = {"value": row.value, **origin}
    return json.dumps({"settings": settings, "warnings": list(reading.warnings)}, indent=2, default=str) + "\n"


def _origin_as_dict(origin: Origin) -> dict[str, Any]:
    place = origin.source if origin.source in ("command line", "environment") else "file"
    found: dict[str, Any] = {"from": place, "as": origin.spelling, "is_alias": origin.is_alias}
    return found | {"path": origin.source} if place == "file" else found


def _as_text(rows: Sequence[_Row]) -> str:
    cells = [("SETTING", "VALUE", "FROM"), *((row.name, row.text, _origin_as_text(row.origin)) for row in rows)]
    widths = [min(max(len(cell[column]) for cell in cells), 40) for column in (0, 1)]
    lines = [f"{name.ljust(widths[0])}  {value.ljust(widths[1])}  {place}".rstrip() for name, value, place in cells]
    return "\n".join(lines) + "\n"


def _origin_as_text(origin: Origin | None) -> str:
    if origin is None:
        return "default"
    places = {"command line": "", "environment": " in the environment"}
    alias = ", another name" if origin.is_alias else ""
    return f"{origin.spelling}{places.get(origin.source, f' in {origin.source}')}{alias}"
