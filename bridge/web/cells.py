"""Values as cells of a spreadsheet, which must show what a stranger wrote and never compute it."""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Any

from bridge.model import iso

# A spreadsheet takes a text that begins so for a formula. The last four are the wide forms that East Asian
# keyboards give. https://owasp.org/www-community/attacks/CSV_Injection
FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")  # +525512340001 is a phone number, and computes to nothing else


def cell(value: Any) -> str | int | float:
    """Return *value* for one cell: a list of plain texts as a b c, anything else nested as JSON."""
    match value:
        case None:
            return ""
        case bool():
            return str(value)
        case int() | float():
            return value
        case datetime():
            return iso(value)
        case list() | dict():
            text = " ".join(value) if _all_text(value) else json.dumps(value, ensure_ascii=False)
        case _:
            text = str(value)
    return f"'{text}" if text.startswith(FORMULAS) and not _NUMBER.fullmatch(text) else text


def _all_text(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)
