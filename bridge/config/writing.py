"""Writing routes as TOML, for somebody to edit and to copy back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from bridge.config.reader import flat


def routes_as_toml(routes: Sequence[Mapping[str, Any]]) -> str:
    """Return *routes*, as `Config.written` has them, as ``[[routes]]`` with their ``[routes.fields]``."""
    return "\n".join(_route(route) for route in routes)


def _route(route: Mapping[str, Any]) -> str:
    lines = ["[[routes]]"]
    lines += [f"{key} = {_value(value)}" for key, value in route.items() if key != "fields"]
    lines += ["", "[routes.fields]"]
    lines += [f"{_key(name)} = {_value(rule)}" for name, _, rule in flat(route.get("fields", {}))]
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    plain = name.isascii() and name.replace("_", "").replace("-", "").isalnum()
    return name if plain else _text(name)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(key)} = {_value(part)}" for key, part in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_value(part) for part in value) + "]"
    if isinstance(value, str):
        return _text(value)
    return json.dumps(value) if isinstance(value, bool | int | float) else str(value)


def _text(text: str) -> str:
    """Return *text* as a basic string: JSON's escapes are TOML's, which escapes one character more."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
