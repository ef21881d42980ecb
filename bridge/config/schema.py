"""The JSON Schema of ``bridge.toml``, so that editors complete and check it.

``docs/bridge.schema.json`` is what ``python -m bridge.config.schema`` prints.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

import pydantic

from bridge.config.model import BridgeSettings, FieldSettings, RouteSettings, SourceHabits, TargetLimits
from bridge.sources import SOURCES
from bridge.sources.base import SourceType
from bridge.targets import TARGETS
from bridge.targets.base import TargetType

Json = dict[str, Any]

NAME = "^[a-z0-9_-]+$"


def json_schema(sources: Mapping[str, SourceType] = SOURCES, targets: Mapping[str, TargetType] = TARGETS) -> Json:
    """Return the schema of the whole file."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "bridge.toml",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "bridge": _section(BridgeSettings),
            "sources": _connections(
                {name: _typed(name, one.settings, SourceHabits) for name, one in sources.items()}
            ),
            "targets": _connections(
                {name: _typed(name, one.settings, TargetLimits) for name, one in targets.items()}
            ),
            "routes": {"type": "array", "items": _route(targets)},
        },
        "$defs": {"rule": {"anyOf": [{"type": "string"}, _section(FieldSettings)]}},
    }


def _connections(types: Mapping[str, Json]) -> Json:
    any_of_them = {"type": "object", "properties": {"type": {"enum": sorted(types)}}, "required": ["type"]}
    chosen = [
        {"if": {"properties": {"type": {"const": name}}}, "then": schema} for name, schema in sorted(types.items())
    ]
    return {
        "type": "object",
        "patternProperties": {NAME: {**any_of_them, "allOf": chosen}},
        "additionalProperties": False,
    }


def _typed(name: str, *shapes: type[Any]) -> Json:
    """Return the schema of a connection: its type, the keys of that type, and those that all have."""
    whole: Json = {"type": "object", "additionalProperties": False, "properties": {"type": {"const": name}}}
    whole["required"] = ["type"]
    for shape in shapes:
        section = _section(shape)
        whole["properties"] |= section["properties"]
        whole["required"] += section.get("required", [])
    whole["description"] = (shapes[0].__doc__ or "").partition("\n")[0]
    return whole


def _route(targets: Mapping[str, TargetType]) -> Json:
    schema = _section(RouteSettings)
    rule = {"$ref": "#/$defs/rule"}
    names = sorted({known.name for target in targets.values() for known in target.fields})
    schema["properties"]["fields"] = {
        "type": "object",
        "description": schema["properties"]["fields"]["description"],
        # For completion only: which of them a target takes depends on its type.
        "properties": {name: rule for name in names if not name.endswith("*")},
        "additionalProperties": rule,
    }
    return schema


def _section(shape: type[Any]) -> Json:
    """Return the schema of one settings class, with its help, and without references."""
    schema = pydantic.TypeAdapter(shape).json_schema()
    nested = {one.__name__: one for one in _nested(shape)}
    definitions = {
        name: _described(definition, nested[name]) if name in nested else definition
        for name, definition in schema.pop("$defs", {}).items()
    }
    whole: Json = _inlined(_described(schema, shape), definitions)
    return whole


def _nested(shape: type[Any]) -> Iterator[type[Any]]:
    """Yield the settings classes within *shape*."""
    for hint in get_type_hints(shape).values():
        for part in (hint, *get_args(hint)):
            if isinstance(part, type) and is_dataclass(part):
                yield part
                yield from _nested(part)


def _described(schema: Json, shape: type[Any]) -> Json:
    properties: Json = {}
    helps = {one.name: one.metadata.get("help", "") for one in fields(shape)}
    for name, property_ in schema["properties"].items():
        kept = {key: value for key, value in property_.items() if key != "title"}
        properties[name] = _from_environment(kept)
        if helps[name]:
            properties[name]["description"] = helps[name]
    described: Json = {"type": "object", "properties": properties, "additionalProperties": False}
    if schema.get("required"):
        described["required"] = schema["required"]
    return described


def _from_environment(schema: Json) -> Json:
    """Allow ``"$NAME"`` where something else than a text is wanted."""
    if schema.get("type") not in {"integer", "number", "boolean"}:
        return schema
    default = {"default": schema["default"]} if "default" in schema else {}
    plain = {key: value for key, value in schema.items() if key != "default"}
    return {"anyOf": [plain, {"type": "string", "pattern": "\\$"}], **default}


def _inlined(schema: Any, definitions: Json) -> Any:
    if isinstance(schema, list):
        return [_inlined(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        rest = {key: part for key, part in schema.items() if key != "$ref"}
        found = definitions[re.sub(r"^#/\$defs/", "", schema["$ref"])]
        return _inlined({**found, **rest}, definitions)
    return {key: _inlined(part, definitions) for key, part in schema.items()}


def as_text() -> str:
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(as_text())
