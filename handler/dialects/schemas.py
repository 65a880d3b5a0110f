"""JSON schemas for `Dialect.describe`; imported when `GET /openapi.json` is requested."""

from collections.abc import Mapping

from gpt2core.sampling import MAX_BIAS, RANGES
from gpt2core.startup.slim_typing import Any
from handler.dialects.request import MAX_BIASES, MAX_PROMPTS, MAX_STOP_CHARACTERS, MAX_STOPS
from handler.telemetry import PHASES

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
FLAG: Schema = {"type": "boolean"}
OBJECT: Schema = {"type": "object"}


def object_of(**properties: Schema) -> Schema:
    """An object with these properties, all required."""
    return OBJECT | {"properties": properties, "required": list(properties)}


def list_of(item: Schema, most: int = MAX_PROMPTS) -> Schema:
    """A list that is not empty."""
    return {"type": "array", "items": item, "minItems": 1, "maxItems": most}


def or_null(schema: Schema) -> Schema:
    """The schema or null, which counts as a missing field."""
    if "enum" in schema:
        return schema | {"enum": [*schema["enum"], None]}
    if "type" in schema:
        return schema | {"type": [schema["type"], "null"]}
    return schema and {"anyOf": [*schema["anyOf"], {"type": "null"}]}


def request(fields: Mapping[str, Schema], required: str = "") -> Schema:
    """An object with only these fields; all but the required one may be null or missing."""
    known = {name: f if name == required else or_null(f) for name, f in fields.items()}
    schema = OBJECT | {"properties": known, "additionalProperties": False}
    return schema | ({"required": [required]} if required else {})


def sampling(names: Mapping[str, str] = {}) -> dict[str, Schema]:
    """The fields of `request.SAMPLING`; `names` as in `sampling_of`."""
    found: dict[str, Schema] = {
        name: {"type": "integer" if kind is int else "number", "minimum": least, "maximum": most}
        for name, (kind, least, most) in RANGES.items()
    }
    found["logit_bias"] = {
        "type": "object",
        "propertyNames": {"pattern": "^[0-9]{1,9}$"},
        "additionalProperties": {"type": "number", "minimum": -MAX_BIAS, "maximum": MAX_BIAS},
        "maxProperties": MAX_BIASES,
    }
    return {names.get(name, name): schema for name, schema in found.items()}


TEXTS: Schema = {"anyOf": [TEXT, list_of(TEXT)]}
_STOP: Schema = TEXT | {"minLength": 1, "maxLength": MAX_STOP_CHARACTERS}
STOP: Schema = {"anyOf": [_STOP, {"type": "array", "items": _STOP, "maxItems": MAX_STOPS}]}
# The fields of `telemetry.Report`.
REPORT: dict[str, Schema] = {
    "timings_ms": object_of(**{name: {"type": "number", "minimum": 0} for name in PHASES}),
    "cold_start": FLAG,
    "model": or_null(TEXT),
    "model_source": or_null(TEXT),
}
