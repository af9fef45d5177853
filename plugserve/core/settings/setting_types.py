"""The vocabulary of declarations of settings: the types of their values ("16k", "1GiB", lists), and facts for help and
docs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import AfterValidator, AllowInfNan, BaseModel, BeforeValidator, Field, WithJsonSchema

_COUNT = re.compile(r"(?i)\s*(-?[\d_]*\.?\d+)\s*([km]?)\s*")
_COUNT_UNITS = {"": 1, "k": 1024, "m": 1024**2}
_SIZE = re.compile(r"(?i)\s*(\d*\.?\d+)\s*([kmgt]?)(i?b?)\s*")
_ROOT_PATH = re.compile(r"(/[A-Za-z0-9._~%@:+-]+)+")
_SIZE_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}

COUNT_ACCEPTS = "a whole number of at least 1 (16k means 16384)"
SIZE_ACCEPTS = "a size such as 512MiB, 1GiB, 2g (k, m, g, t count in 1024, KB, MB, GB, TB in 1000)"


def parse_count(value: Any) -> Any:
    """A whole number from text such as "16384" or "16k" (k = 1024); numbers pass, booleans and fractions don't."""
    if isinstance(value, bool):
        raise ValueError("a boolean is not a number")
    if not isinstance(value, str):
        return value
    match = _COUNT.fullmatch(value)
    if match is None:
        raise ValueError("not a number")
    return _whole(float(match[1].replace("_", "")) * _COUNT_UNITS[match[2].lower()])


def parse_size(value: Any) -> Any:
    """Bytes from text such as "1GiB", "512m" or "1073741824"."""
    if isinstance(value, bool):
        raise ValueError("a boolean is not a size")
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value)
    if match is None:
        raise ValueError("not a size")
    base = 1000 if match[2] and match[3].lower() == "b" else 1024
    return int(float(match[1]) * base ** _SIZE_POWERS[match[2].lower()])


def _whole(number: float) -> int:
    if number != int(number):
        raise ValueError("not a whole number")
    return int(number)


def _none_for(*words: str) -> BeforeValidator:
    """Read one of words as None."""
    return BeforeValidator(lambda value: None if isinstance(value, str) and value.strip().lower() in words else value)


def _no_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a boolean is not a number")
    return value


def _as_list(value: Any) -> Any:
    if value is None:  # `plugin: null` in a file
        return []
    return [value] if isinstance(value, str) else value


def _split_at_commas(value: Any) -> Any:
    """A list of texts, some of which may hold several, as ["model,worker"]."""
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        return value
    return [part.strip() for one in value for part in one.split(",") if part.strip()]


def _objectives(value: Any) -> Any:
    """NAME:MILLISECONDS texts, some of which may hold several, or a table of milliseconds by name."""
    if isinstance(value, dict):
        value = [f"{name}:{limit}" for name, limit in value.items()]
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError("not a list of objectives")
    limits = dict(one.split(":", 1) for text in value for one in text.replace(",", " ").split())
    for name, limit in limits.items():
        if name not in ("ttft", "tpot", "e2el") or not 0 < float(limit) < float("inf"):
            raise ValueError("not an objective")
    return [f"{name}:{float(limit):g}" for name, limit in limits.items()]


def _stripped(value: Any) -> Any:
    return value.strip() if isinstance(value, str) else value


def _json_texts(value: Any) -> Any:
    """Texts; a JSON list among them (other servers take '["*"]' for one flag) counts as its entries."""
    if not isinstance(value, list):
        return value
    entries: list[Any] = []
    for entry in value:
        entries += json.loads(entry) if isinstance(entry, str) and entry.lstrip().startswith("[") else [entry]
    return entries


def _no_empty_text(value: list[str]) -> list[str]:
    if not all(entry.strip() for entry in value):
        raise ValueError("an empty text")
    return value


def _lora_modules(value: Any) -> Any:
    """NAME=PATH texts, JSON objects or tables of name, path and base_model_name, or one table of paths by name."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, dict) and not value.keys() <= {"name", "path", "base_model_name"}:
        value = [{"name": name, "path": path} for name, path in value.items()]
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list | None):
        raise ValueError("not a list of adapters")
    return [_lora_module(entry) for entry in value or []]


def _lora_module(entry: Any) -> dict[str, str]:
    if isinstance(entry, str) and entry.lstrip().startswith("{"):
        entry = json.loads(entry)
    elif isinstance(entry, str):
        name, _, path = entry.partition("=")
        entry = {"name": name.strip(), "path": path.strip()}
    if not isinstance(entry, dict) or not entry.keys() <= {"name", "path", "base_model_name"}:
        raise ValueError("not an adapter's name and path")
    given = {str(key): text for key, text in entry.items() if text is not None}
    if not all(isinstance(given.get(key), str) and given[key].strip() for key in ("name", "path")):
        raise ValueError("an adapter needs a name and a path")
    return given


def _json_table(value: Any) -> Any:
    """A table, or the JSON text of one; an empty text is an empty table."""
    if isinstance(value, str):
        value = json.loads(value) if value.strip() else {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ValueError("not a JSON object")
    return json.loads(json.dumps(value, allow_nan=False))


def _root_path(value: Any) -> Any:
    """A path as it stands before the paths of requests: a leading slash, no trailing one."""
    if not isinstance(value, str):
        raise ValueError("not a path")
    path = "/" + value.strip().strip("/")
    if path != "/" and (not _ROOT_PATH.fullmatch(path) or {"..", "."} & set(path.split("/"))):
        raise ValueError("not a path")
    if path.split("/")[1] == "v1":
        raise ValueError("a path of the API")
    return path.rstrip("/")


def _socket_mode(value: Any) -> Any:
    """Octal digits, with or without 0o."""
    text = str(value).strip().lower().removeprefix("0o") if isinstance(value, str | int) else ""
    if not re.fullmatch(r"0?[67][0-7]{2}", text):
        raise ValueError("not a mode")
    return text[-3:]


def _generation_config(value: Any) -> Any:
    """auto, none (also written vllm), or a folder."""
    word = _lower(value)
    return {"vllm": "none"}.get(word, word) if word in ("auto", "none", "vllm") else value


def _lower(value: Any) -> Any:
    return value.strip().lower() if isinstance(value, str) else value


def _power_of_two(value: Any) -> Any:
    number = parse_count(value)
    if isinstance(number, int) and number & (number - 1):
        raise ValueError("not a power of two")
    return number


def _read_as(other_words: Mapping[str, str]) -> BeforeValidator:
    """Read a word in any case; other words for one become it."""

    def read(value: Any) -> Any:
        word = _lower(value)
        return other_words.get(word, word) if isinstance(word, str) else word

    return BeforeValidator(read)


def _device(value: Any) -> Any:
    name = _lower(value)
    if not isinstance(name, str) or not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise ValueError("not a device")
    return name


# BeforeValidators run from the last one to the first one.
Count = Annotated[int, BeforeValidator(parse_count), Ge(1)]
CountFromZero = Annotated[int, BeforeValidator(parse_count), Ge(0)]
FlightRecords = Annotated[int, BeforeValidator(parse_count), Ge(0), Le(100_000)]
OptionalCount = Annotated[
    Annotated[int, Ge(1)] | None,
    BeforeValidator(lambda v: v if v is None else parse_count(v)),
    _none_for("none", "auto"),
]
ModelLength = Annotated[
    Annotated[int, Ge(1)] | Literal["auto"] | None,
    BeforeValidator(lambda v: v if v in (None, "auto") else "auto" if str(v).strip() == "-1" else parse_count(v)),
    _none_for("none"),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": -1}, {"const": "auto"}]}),
]
OptionalSize = Annotated[
    Annotated[int, Ge(1)] | None,
    BeforeValidator(lambda v: v if v is None else parse_size(v)),
    _none_for("none", "auto"),
]
BlockSize = Annotated[int, BeforeValidator(_power_of_two), Ge(16), Le(256)]
Port = Annotated[int, BeforeValidator(parse_count), Ge(0), Le(65535)]
Number = Annotated[float, BeforeValidator(_no_boolean), Ge(0), Field(allow_inf_nan=False)]
OptionalNumber = Annotated[
    Annotated[float, Ge(0), AllowInfNan(False)] | None, BeforeValidator(_no_boolean), _none_for("none", "auto")
]
Address = Annotated[str, BeforeValidator(_stripped), MinLen(1)]
Share = Annotated[float, BeforeValidator(_no_boolean), Gt(0), Le(1)]
Texts = Annotated[list[str], BeforeValidator(_as_list)]
JsonTexts = Annotated[list[str], BeforeValidator(_json_texts), BeforeValidator(_as_list)]
LoraModules = Annotated[
    list[dict[str, str]],
    BeforeValidator(_lora_modules),
    WithJsonSchema({"type": ["array", "object", "string"], "items": {"type": ["string", "object"]}}),
]
JsonTable = Annotated[
    dict[str, Any],
    BeforeValidator(_json_table),
    WithJsonSchema({"type": ["object", "string"]}),
]
RootPath = Annotated[str, BeforeValidator(_root_path)]
SocketMode = Annotated[str, BeforeValidator(_socket_mode)]
Secrets = Annotated[list[str], AfterValidator(_no_empty_text), BeforeValidator(_as_list)]
Size = Annotated[int, BeforeValidator(parse_size), Ge(1)]
Positive = Annotated[float, BeforeValidator(_no_boolean), Gt(0), Field(allow_inf_nan=False)]
OptionalPositive = Annotated[
    Annotated[float, Gt(0), AllowInfNan(False)] | None, BeforeValidator(_no_boolean), _none_for("none")
]
OptionalCountFromZero = Annotated[
    Annotated[int, Ge(0)] | None,
    BeforeValidator(lambda v: v if v is None else parse_count(v)),
    _none_for("none"),
]
OptionalSeed = Annotated[
    Annotated[int, Ge(-(2**63)), Le(2**63 - 1)] | None,
    BeforeValidator(lambda v: v if v is None else parse_count(v)),
    _none_for("none"),
]
Dtype = Annotated[
    Literal["auto", "float16", "bfloat16", "float32"],
    _read_as({"half": "float16", "float": "float32"}),
    WithJsonSchema({"enum": ["auto", "half", "float16", "bfloat16", "float", "float32"]}),
]
GenerationConfig = Annotated[str, BeforeValidator(_generation_config), MinLen(1)]
ExecutorBackend = Annotated[
    Annotated[str, MinLen(1)] | None, BeforeValidator(_stripped), _none_for("none", "auto", "uni", "")
]
Device = Annotated[
    str, BeforeValidator(_device), WithJsonSchema({"type": "string", "pattern": r"^(auto|cpu|cuda(:\d+)?)$"})
]
Objectives = Annotated[
    list[str],
    BeforeValidator(_objectives),
    BeforeValidator(_as_list),
    WithJsonSchema({"type": ["array", "string", "object"], "items": {"type": "string"}}),
]
DetailedTraces = Annotated[
    list[Literal["model", "worker", "all"]],
    BeforeValidator(_split_at_commas),
    BeforeValidator(_as_list),
]
LogFormat = Literal["text", "json"]
LogLevel = Annotated[
    Literal["critical", "error", "warning", "info", "debug"],
    _read_as({"trace": "debug", "warn": "warning", "fatal": "critical"}),
    WithJsonSchema({"enum": ["critical", "error", "warning", "info", "debug", "trace"]}),
]


@dataclass(frozen=True, slots=True)
class SettingFacts:
    """Facts about one setting besides its type, for help, docs and error messages.

    refused: why any other value than the default is refused in this version, and what it does instead.
    no_effect: why another value than the default is accepted and changes nothing.
    refused_values, no_effect_values: the values that refused and no_effect are about, where not all but the default.
    shown_default replaces the default in help and docs. is_secret: the value is never shown. takes_many: a list's flag
    takes all words up to the next flag.
    """

    group: str
    help: str
    accepts: str
    metavar: str = "TEXT"
    refused: str | None = None
    refused_values: tuple[str, ...] = ()
    no_effect: str | None = None
    no_effect_values: tuple[str, ...] = ()
    shown_default: str | None = None
    is_secret: bool = False
    takes_many: bool = False


def setting(default: Any, group: str, help: str, accepts: str = "text", **facts: Any) -> Any:
    """Declare one setting. Further facts: metavar, refused, no_effect, shown_default, is_secret, takes_many (see
    SettingFacts)."""
    extra = {"facts": SettingFacts(group=group, help=help, accepts=accepts, **facts)}
    if isinstance(default, list | dict):
        return Field(default_factory=lambda: type(default)(default), description=help, json_schema_extra=extra)  # type: ignore[arg-type]
    return Field(default, description=help, json_schema_extra=extra)  # type: ignore[arg-type]


class DeclaredSettings(BaseModel):
    """A group of declared settings; Settings joins the groups."""
