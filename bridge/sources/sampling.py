"""What the samples are made of that ``bridge send`` and the page *Sources* send: a person who does not exist."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

SAMPLE_ID = "bridge-sample"  # where the sender's ids may be any text: nobody has it
SAMPLE_NUMBER = 999_999_999_999  # where they are numbers: hardly anybody

# By the name of a field. What speaks of consent is never made up: a sample neither opts in nor out.
_CONSENT = re.compile(r"opt|subscri|consent|stop|news|block|bounce|status")
_MADE_UP: Sequence[tuple[re.Pattern[str], str]] = (
    (re.compile(r"mail"), "ada@example.com"),
    (re.compile(r"phone|mobile|cell"), "+14155550123"),
    (re.compile(r"first|given"), "Ada"),
    (re.compile(r"last|family|surname"), "Lovelace"),
    (re.compile(r"^(full_?|display_?)?name$"), "Ada Lovelace"),
    (re.compile(r"^city$"), "London"),
)


@dataclass(frozen=True, slots=True)
class Sampling:
    """What a sample is made for.

    *account* is the CRM account that the source listens to. A sample names no other: the first account that a
    source hears of is the one that counts from then on, and that must not be a made-up one.
    """

    at: datetime  # when it is to have happened
    settings: Any = None  # of the connection; None: any
    account: str | None = None
    reads: Collection[str] = ()  # the fields that rules read


def made_up(names: Collection[str]) -> Mapping[str, str]:
    """Return values for those of *names* that tell by themselves what they hold."""
    return {name: value for name in sorted(names) if (value := _value(name.lower()))}


def _value(name: str) -> str:
    if _CONSENT.search(name):
        return ""
    return next((value for pattern, value in _MADE_UP if pattern.search(name)), "")
