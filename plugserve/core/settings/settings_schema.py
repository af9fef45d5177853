"""The JSON schema of config files, for editors: every key with its type, default and description.

It takes what settings_reader takes: null for every key, "16k" for numbers, one text for a list, other names and
spellings of a key. Names that are not plugserve's own are taken without being offered.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel
from pydantic.errors import PydanticInvalidForJsonSchema

from plugserve.core.settings.old_names import OLD_NAMES
from plugserve.core.settings.setting_names import OptionModels, option_fields
from plugserve.core.settings.setting_types import SettingFacts
from plugserve.core.settings.settings import Settings, default_of, setting_facts
from plugserve.core.settings.vllm_names.not_supported import NOT_SUPPORTED
from plugserve.core.settings.vllm_names.vllm_settings import VLLM_SETTINGS

Schema = dict[str, Any]
_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_NOTES: Final = frozenset({"title", "default", "description", "facts"})
_BOUNDS: Final = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
"""Names that pydantic gives to bounds behind a validator, in JSON schema's words."""
_NUMBER_TEXT: Final = r"^\s*(-1|\d[\d_.]*\s*[kKmMgGtT]?[iI]?[bB]?|auto|none)\s*$"
_OBJECT_TEXT: Final = r"^\s*\{"
_BOOLEAN_TEXTS: Final = ["true", "false", "yes", "no", "on", "off"]
_NOTHING: Final[list[Any]] = [None, "", {}, []]


def config_schema(options: OptionModels) -> Schema:
    """The schema, with the options of the plugins that are active."""
    names = [name for name in setting_facts() if name != "config"]
    declared = Settings.model_json_schema()["properties"]
    return {
        "$schema": _DIALECT,
        "title": "Settings of plugserve",
        "type": ["object", "null"],
        "properties": {name: _property(name, declared[name]) for name in names} | {"plugins": _plugins(options)},
        "patternProperties": _other_names(names),
        "additionalProperties": False,
    }


def _property(name: str, declared: Schema) -> Schema:
    """The schema of one setting; declared is what pydantic makes of its type."""
    facts = setting_facts()[name]
    found: Schema = {"description": _description(facts)}
    if facts.no_effect and not facts.no_effect_values:
        found["deprecated"] = True
    default = default_of(name)
    if default is not None and not facts.is_secret:
        found["default"] = default
    return found | {"anyOf": _alternatives(declared)}


def _description(facts: SettingFacts) -> str:
    notes = [facts.help, f"Takes {facts.accepts}."]
    if facts.refused:
        values = f" ({', '.join(facts.refused_values)})" if facts.refused_values else ""
        notes.append(f"Not supported{values}: {facts.refused}.")
    if facts.no_effect:
        values = f" ({', '.join(facts.no_effect_values)})" if facts.no_effect_values else ""
        notes.append(f"No effect{values}: {facts.no_effect}.")
    return " ".join(notes)


def _alternatives(schema: Schema) -> list[Schema]:
    """Schemas of all that is read as a value: also the texts of numbers and booleans, a list's single entry, and the
    values that leave the default."""
    return [*_loosened(schema), {"enum": _NOTHING}]


def _loosened(schema: Schema) -> list[Schema]:
    if "anyOf" in schema:
        return [one for part in schema["anyOf"] if part != {"type": "null"} for one in _loosened(part)]
    kept = {_BOUNDS.get(key, key): value for key, value in schema.items() if key not in _NOTES}
    match schema.get("type"):
        case "integer" | "number":
            return [kept, {"type": "string", "pattern": _NUMBER_TEXT}]
        case "boolean":
            return [kept, {"enum": _BOOLEAN_TEXTS}]
        case "array":
            items = kept.get("items", {})
            return [{"type": "array", "items": {"anyOf": [items, {"type": "null"}]}}, items]
        case "object":
            return [kept, {"type": "string", "pattern": _OBJECT_TEXT}]
    return [kept]


def _plugins(options: OptionModels) -> Schema:
    return {
        "description": "Options of plugins, by plugin.",
        "type": ["object", "null", "string"],
        "properties": {plugin: _options(plugin, model) for plugin, model in options.items()},
        "additionalProperties": {"type": ["object", "null", "string"]},
    }


def _options(plugin: str, model: type[BaseModel]) -> Schema:
    """The options of one plugin; a model that has no JSON schema takes any option by its name."""
    try:
        schema = model.model_json_schema(ref_template=f"#/properties/plugins/properties/{plugin}/$defs/{{model}}")
    except PydanticInvalidForJsonSchema:
        schema = {"properties": {name: {} for name in option_fields(model)}}
    properties = {
        name: {"anyOf": _alternatives(inner)} | _facts_of(inner) for name, inner in schema.get("properties", {}).items()
    }
    spellings = {f"^{name.replace('_', '-')}$": {"$ref": _ref(plugin, name)} for name in properties if "_" in name}
    return {
        "type": ["object", "null", "string"],
        "properties": properties,
        "patternProperties": spellings,
        "additionalProperties": False,
        "$defs": schema.get("$defs", {}),
    }


def _facts_of(inner: Schema) -> Schema:
    return {key: inner[key] for key in ("description", "default") if key in inner}


def _ref(plugin: str, option: str) -> str:
    return f"#/properties/plugins/properties/{plugin}/properties/{option}"


def _other_names(names: list[str]) -> Mapping[str, Schema]:
    """Patterns for names with hyphens, other names of settings, and those of vLLM's that are taken."""
    found: dict[str, Schema] = {}
    for name in names:
        if "_" in name:
            found[f"^{name.replace('_', '-')}$"] = {"$ref": f"#/properties/{name}"}
    for name, old in OLD_NAMES.items():
        found[_any_spelling(name)] = {"deprecated": True, "anyOf": [{"$ref": f"#/properties/{old.new}"}]}
    refused = {name for reason in NOT_SUPPORTED for name in reason.names()}
    for name, setting in VLLM_SETTINGS.items():
        if name not in refused or setting.same:
            found[_any_spelling(name)] = {"deprecated": True}
    return found


def _any_spelling(name: str) -> str:
    return f"^{name.replace('_', '[-_]')}$"
