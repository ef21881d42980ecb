"""Salesforce's ids of records: 15 letters and digits whose case counts, or 18 that tell the case as well."""

from __future__ import annotations

import re
from typing import Any

from bridge.sources.reading import Unclear
from bridge.sources.sampling import SAMPLE_ID

CONTACT = "003"  # what the ids of contacts begin with, in every organization
ORGANIZATION = "00D"
_ID = re.compile(r"[A-Za-z0-9]{15}(?:[A-Z0-5]{3})?")
_CHECK = "ABCDEFGHIJKLMNOPQRSTUVWXYZ012345"


def full_id(value: Any, prefix: str, what: str) -> str:
    """Return the 18 characters of an id that begins with *prefix*, written with 15 or 18.

    Raises:
        Unclear: it is none, or its last three characters say that letters have lost their case.
    """
    if isinstance(value, str):
        text = value.strip()
        if _ID.fullmatch(text) and text.startswith(prefix):
            whole = text[:15] + _case_of(text[:15])
            if text in {text[:15], whole}:
                return whole
    raise Unclear(f"It has no usable {what}.")


def contact_id(value: Any) -> str:
    """Return the id of a contact; see `full_id`. That of samples, who does not exist, has one of its own."""
    return SAMPLE_ID if value == SAMPLE_ID else full_id(value, CONTACT, "id of a contact")


def _case_of(short: str) -> str:
    """Return a character for every five: which of them are upper-case letters."""
    fives = (short[start : start + 5] for start in (0, 5, 10))
    return "".join(
        _CHECK[sum(1 << place for place, one in enumerate(five) if "A" <= one <= "Z")] for five in fives
    )
