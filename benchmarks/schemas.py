"""200 JSON schemas of growing difficulty for benchmarks/structured.py: ten families of twenty.

Within a family the schemas get harder: more properties, deeper nesting, tighter bounds. The data is constant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

Schema = dict[str, Any]

TEXT: Final[Schema] = {"type": "string"}
WHOLE: Final[Schema] = {"type": "integer"}
NUMBER: Final[Schema] = {"type": "number"}
YES_NO: Final[Schema] = {"type": "boolean"}

THINGS: Final = (
    "a person", "a book", "a city", "a film", "a recipe", "a car", "an animal", "a song", "a job", "a house",
    "a country", "a team", "a plant", "a planet", "a painting", "a game", "a phone", "a meal", "a trip", "a shop",
)  # fmt: skip
FIELDS: Final[tuple[tuple[str, Schema], ...]] = (
    ("name", TEXT), ("age", WHOLE), ("is_active", YES_NO), ("score", NUMBER), ("city", TEXT), ("year", WHOLE),
    ("color", TEXT), ("price", NUMBER), ("is_new", YES_NO), ("owner", TEXT), ("count", WHOLE), ("weight", NUMBER),
    ("summary", TEXT), ("rank", WHOLE), ("is_open", YES_NO), ("height", NUMBER), ("language", TEXT), ("pages", WHOLE),
    ("rating", NUMBER), ("comment", TEXT),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Task:
    """One schema and its prompt. level: 0 to 19."""

    family: str
    level: int
    topic: str
    schema: Schema

    @property
    def name(self) -> str:
        return f"{self.family}-{self.level:02d}"


def record(properties: Schema, required: list[str] | None = None, **more: Any) -> Schema:
    """A closed object; all properties are required by default."""
    names = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False, **more}


def flat(level: int) -> Schema:
    """One to twenty properties; from level 10 on only every second one is required."""
    properties = dict(FIELDS[: level + 1])
    return record(properties, list(properties)[::2] if level >= 10 else None)


def nested(level: int) -> Schema:
    """Objects within objects, one to five deep, with one to four properties beside each."""
    depth, width = 1 + level // 4, 1 + level % 4
    schema = record(dict(FIELDS[:width]))
    for name in ("address", "country", "planet", "galaxy", "universe")[:depth]:
        schema = record({**dict(FIELDS[:width]), name: schema})
    return schema


def arrays(level: int) -> Schema:
    """Arrays of scalars, of objects, of arrays, with bounds on their lengths."""
    low, high = level % 3, 2 + level % 5
    bounds = {"minItems": min(low, high), "maxItems": high}
    if level < 5:
        return record({"tags": {"type": "array", "items": TEXT, **bounds}})
    if level < 10:
        return record({"name": TEXT, "scores": {"type": "array", "items": (WHOLE, NUMBER)[level % 2], **bounds}})
    if level < 15:
        item = record(dict(FIELDS[: 1 + level % 4]))
        return record({"title": TEXT, "items": {"type": "array", "items": item, **bounds}})
    if level < 18:
        rows = {"type": "array", "items": {"type": "array", "items": WHOLE, "minItems": 2, "maxItems": 3}, **bounds}
        return record({"matrix": rows, "names": {"type": "array", "items": TEXT, "maxItems": 3}})
    pair = {"type": "array", "prefixItems": [TEXT, WHOLE], "items": False, "minItems": 2}
    return record({"pairs": {"type": "array", "items": pair, "minItems": 1, "maxItems": high}, "total": WHOLE})


COLORS: Final = ["red", "green", "blue", "yellow", "black", "white", "dark red", "light blue", 'the "best"', "no/none"]


def enums(level: int) -> Schema:
    """Closed choices: strings, numbers, mixed, constants, and arrays of them."""
    properties: Schema = {"color": {"enum": COLORS[: 2 + level // 2]}}
    if level % 2:
        properties["batch"] = {"enum": [level, level + 1, -level]}
    if level >= 4:
        properties["size"] = {"type": "string", "enum": ["S", "M", "L", "XL"]}
    if level >= 8:
        properties["priority"] = {"type": "integer", "enum": [1, 2, 3, 5, 8]}
    if level >= 10:
        properties["kind"] = {"const": f"order/v{level}"}
    if level >= 12:
        properties["state"] = {"enum": ["open", "closed", 0, 1, None, True]}
    if level >= 14:
        properties["days"] = {"type": "array", "items": {"enum": ["Mon", "Tue", "Wed"]}, "minItems": 1, "maxItems": 4}
    if level >= 17:
        properties["details"] = record({"unit": {"enum": ["kg", "lb"]}, "grade": {"enum": list("ABCDEF")}})
    return record(properties)


def unions(level: int) -> Schema:
    """anyOf and oneOf over scalars, nullable ones, and objects distinguished by a constant."""
    nullable: Schema = {"type": ["string", "null"], "maxLength": 40}
    if level < 5:
        kinds = [TEXT, WHOLE, YES_NO, NUMBER, {"type": "null"}]
        return record({"value": {"anyOf": kinds[:level] if level > 1 else kinds[level:]}, "note": nullable})
    if level < 10:
        return record({name: {"anyOf": [schema, {"type": "null"}]} for name, schema in FIELDS[: level - 3]})
    shapes = [
        record({"kind": {"const": "circle"}, "radius": NUMBER}),
        record({"kind": {"const": "square"}, "side": NUMBER}),
        record({"kind": {"const": "label"}, "text": {"type": "string", "maxLength": 60}}),
        record({"kind": {"const": "point"}, "x": WHOLE, "y": WHOLE}),
    ][: 2 + level % 3]
    if level < 15:
        return record({"name": TEXT, "shape": {"anyOf": shapes}, **dict(FIELDS[1 : level - 9])})
    group = {"type": "array", "items": {"anyOf": shapes}, "minItems": 1, "maxItems": level - 12}
    return record({"title": nullable, "shapes": group, "fallback": {"anyOf": [*shapes[:2], {"type": "null"}]}})


PATTERNS: Final = (
    ("code", "^[A-Z]{3}-[0-9]{4}$"), ("color", "^#[0-9a-f]{6}$"), ("phone", r"^\+[0-9]{2} [0-9]{3} [0-9]{6}$"),
    ("version", r"^[0-9]{1,2}\.[0-9]{1,2}\.[0-9]{1,2}$"), ("user", "^[a-z][a-z0-9_]{2,11}$"),
    ("plate", "^[A-Z]{2}[0-9]{2} [A-Z]{3}$"), ("zip", "^[0-9]{5}(-[0-9]{4})?$"),
    ("hour", "^([01][0-9]|2[0-3]):[0-5][0-9]$"),
    ("word", "^(alpha|beta|gamma)+$"), ("isbn", "^97[89]-[0-9]-[0-9]{4}-[0-9]{4}-[0-9]$"),
)  # fmt: skip


def patterns(level: int) -> Schema:
    """Strings that match regular expressions, one to six of them."""
    chosen = [PATTERNS[(level + step) % len(PATTERNS)] for step in range(1 + level // 4)]
    properties: Schema = {name: {"type": "string", "pattern": pattern} for name, pattern in chosen}
    if level % 2:
        properties["others"] = {
            "type": "array",
            "items": {"type": "string", "pattern": PATTERNS[level % len(PATTERNS)][1], "maxLength": 40},
            "maxItems": 3,
        }
    return record(properties)


FORMATS: Final = ("date", "time", "date-time", "email", "uuid", "ipv4", "ipv6", "hostname", "uri", "duration")


def formats(level: int) -> Schema:
    """Strings of a known format, one to four of them."""
    chosen = [FORMATS[(level + step) % len(FORMATS)] for step in range(1 + level // 6)]
    return record({name.replace("-", "_"): {"type": "string", "format": name} for name in chosen} | {"id": WHOLE})


def refs(level: int) -> Schema:
    """Definitions used more than once; recursive trees and lists."""
    person = record({"name": {"$ref": "#/$defs/label"}, "age": WHOLE})
    defs: Schema = {"label": {"type": "string", "maxLength": 30}, "person": person}
    if level < 7:
        roles = ("author", "editor", "reader", "owner", "guest", "judge", "agent")[: level + 1]
        return record({role: {"$ref": "#/$defs/person"} for role in roles}, **{"$defs": defs})
    if level < 14:
        children = {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 1 + level % 3}
        defs["node"] = record({"label": {"$ref": "#/$defs/label"}, "children": children}, ["label"])
        if level >= 10:
            defs["node"] = record({"label": {"$ref": "#/$defs/label"}, "weight": WHOLE, "children": children})
            defs["label"]["maxLength"] = level
        return record({"tree": {"$ref": "#/$defs/node"}}, **{"$defs": defs})
    defs["link"] = record({"value": WHOLE, "next": {"anyOf": [{"$ref": "#/$defs/link"}, {"type": "null"}]}})
    people = {"type": "array", "items": {"$ref": "#/$defs/person"}, "minItems": 1, "maxItems": level - 11}
    return record({"first": {"$ref": "#/$defs/link"}, "people": people}, **{"$defs": defs})


def bounds(level: int) -> Schema:
    """Limits on numbers, lengths and counts."""
    properties: Schema = {
        "age": {"type": "integer", "minimum": 0, "maximum": 20 + 10 * level},
        "ratio": {"type": "number", "minimum": 0, "exclusiveMaximum": 1 + level},
        "name": {"type": "string", "minLength": 1 + level % 5, "maxLength": 10 + 5 * level},
        "offset": {"type": "integer", "exclusiveMinimum": -10 * level - 1, "exclusiveMaximum": 10},
        "step": {"type": "integer", "minimum": 0, "maximum": 1000, "multipleOf": (2, 5, 10, 25)[level % 4]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 12}, "minItems": level % 4, "maxItems": 4},
        "year": {"type": "integer", "minimum": 1900 + level, "maximum": 2100},
    }
    names = list(properties)[: 1 + level // 3]
    return record({name: properties[name] for name in names})


def _order(level: int) -> Schema:
    item = record(
        {
            "sku": {"type": "string", "pattern": "^[A-Z]{2}[0-9]{4}$"},
            "quantity": {"type": "integer", "minimum": 1, "maximum": 99},
            "price": {"type": "number", "minimum": 0},
        }
    )
    properties: Schema = {
        "id": {"type": "string", "format": "uuid"},
        "customer": record({"name": TEXT, "email": {"type": "string", "format": "email"}}),
        "items": {"type": "array", "items": item, "minItems": 1, "maxItems": 1 + level},
        "status": {"enum": ["new", "paid", "sent"]},
        "created": {"type": "string", "format": "date"},
        "coupon": {"anyOf": [{"type": "string", "pattern": "^[A-Z0-9]{6}$"}, {"type": "null"}]},
    }
    return record(properties)


def _calendar(level: int) -> Schema:
    event = record(
        {
            "title": TEXT,
            "day": {"enum": ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday"]},
            "start": {"type": "string", "pattern": "^([01][0-9]|2[0-3]):[0-5][0-9]$"},
            "minutes": {"type": "integer", "minimum": 15, "maximum": 240, "multipleOf": 15},
        }
    )
    return record({"owner": TEXT, "events": {"type": "array", "items": event, "minItems": 1, "maxItems": 1 + level}})


def _article(level: int) -> Schema:
    section = record({"heading": TEXT, "text": TEXT})
    properties: Schema = {
        "title": TEXT,
        "author": record({"name": TEXT, "url": {"type": ["string", "null"], "format": "uri"}}),
        "sections": {"type": "array", "items": section, "minItems": 1, "maxItems": 1 + level},
        "keywords": {"type": "array", "items": TEXT, "maxItems": 5},
    }
    return record(properties, ["title", "author", "sections"])


def _form(level: int) -> Schema:
    options = {"type": "array", "items": TEXT, "maxItems": 4}
    group = {"type": "array", "items": {"$ref": "#/$defs/field"}, "maxItems": 2}
    field = {
        "anyOf": [
            record({"type": {"const": "text"}, "label": TEXT, "max": WHOLE}),
            record({"type": {"const": "choice"}, "label": TEXT, "options": options}),
            record({"type": {"const": "group"}, "fields": group}),
        ]
    }  # fmt: skip
    fields = {"type": "array", "items": {"$ref": "#/$defs/field"}, "minItems": 1, "maxItems": 1 + level}
    return record({"form": TEXT, "fields": fields, "version": {"const": level}}, **{"$defs": {"field": field}})


def mixed(level: int) -> Schema:
    """Schemas of real programs: orders, calendars, articles, forms."""
    return (_order, _calendar, _article, _form)[level % 4](level // 4)


FAMILIES: Final[tuple[Callable[[int], Schema], ...]] = (
    flat, nested, arrays, enums, unions, patterns, formats, refs, bounds, mixed,
)  # fmt: skip
TOPICS: Final = {"mixed": ("an order of a shop", "somebody's calendar", "an article", "a form for a survey")}


def all_tasks() -> list[Task]:
    """All 200, the easiest of each family first."""
    tasks = []
    for level in range(20):
        for family in FAMILIES:
            topics = TOPICS.get(family.__name__, THINGS)
            tasks.append(Task(family.__name__, level, topics[level % len(topics)], family(level)))
    return tasks
