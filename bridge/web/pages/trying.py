"""What a dry run came to, as pages show it: who gets what, and why something is left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bridge.model import Contact, RecordKey
from bridge.rules import FieldRule, Route
from bridge.web.pages.words import shown
from bridge.web.trial import RouteOutcome, Trial

MOST_CONTACTS = 10
MOST_FIELDS = 100
LONGEST_NAME = 100
LONGEST_SAID = 200  # of what the webhook says; all of it stands in the payload
LONGEST_VALUE = 2_000  # characters; what is longer is cut, and said to be

# What a target would be asked for: tone and icon as in `words.Mark`, a word, and the rest of the sentence.
DECISIONS = {
    "send": ("good", "arrow", "sent", "would be sent, where the target does not hold it already"),
    "opt_out": ("idle", "stop", "opt-out", "would be told of the opt-out, and nothing else"),
    "remove": ("warn", "minus", "removed", "would be removed there"),
    "wait": ("idle", "hourglass", "nothing", "is not sent now"),
}


@dataclass(frozen=True, slots=True)
class Field:
    """A target field. *value* is as a person reads it, None where there is none; *left*: characters cut."""

    name: str
    rule: str
    value: str | None
    left: int = 0
    cleared: bool = False
    why_not: str = ""
    mode: str = ""  # "" for a rule that always writes


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one route makes of one contact."""

    target: str
    title: str
    key: RecordKey
    decision: str  # a key of `DECISIONS`
    tone: str
    icon: str
    word: str
    words: str
    reason: str
    fields: Sequence[Field]


@dataclass(frozen=True, slots=True)
class Told:
    """What is known of a contact with this webhook: the names that rules can use. *more*: fields not shown."""

    key: RecordKey
    fields: Sequence[tuple[str, str]]
    more: int


@dataclass(frozen=True, slots=True)
class Tried:
    """What a request would come to. *more*: contacts that are not shown."""

    problem: str
    told: Sequence[Told]
    notes: Sequence[str]  # events that are passed over, and why
    contacts: int
    more: int
    outcomes: Sequence[Outcome]


def tried_of(trial: Trial, routes: Sequence[Route]) -> Tried:
    """Return *trial* of *routes* for a page."""
    by_target = {route.target: route for route in routes}
    shown_keys = {contact.key for contact in trial.contacts[:MOST_CONTACTS]}
    said = [event.ignored or event.unreadable for event in trial.events]
    return Tried(
        problem=trial.problem,
        told=[_told(contact) for contact in trial.contacts[:MOST_CONTACTS]],
        notes=list(dict.fromkeys(one for one in said if one)),
        contacts=len(trial.contacts),
        more=len(trial.contacts) - len(shown_keys),
        outcomes=[_outcome(one, by_target[one.target]) for one in trial.routes if one.key in shown_keys],
    )


def _told(contact: Contact) -> Told:
    names = sorted(contact.fields)
    fields = [(name[:LONGEST_NAME], _cut(shown(contact.fields[name].value))) for name in names[:MOST_FIELDS]]
    return Told(contact.key, fields, max(0, len(names) - MOST_FIELDS))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_SAID else f"{text[:LONGEST_SAID]}…"


def _outcome(found: RouteOutcome, route: Route) -> Outcome:
    rules = {rule.target: rule for rule in route.fields}
    fields = [_field(rules[one.field], one.value, one.left_out) for one in found.fields]
    return Outcome(
        found.target,
        route.type.title,
        found.key,
        found.decision,
        *DECISIONS[found.decision],
        reason=found.reason,
        fields=fields,
    )


def _field(rule: FieldRule, value: object, left_out: str) -> Field:
    mode = "" if rule.mode.value == "always" else rule.mode.value
    if value is None:
        return Field(rule.target, rule.value.text, None, cleared=not left_out, why_not=left_out, mode=mode)
    text = shown(value)
    left = max(0, len(text) - LONGEST_VALUE)
    return Field(rule.target, rule.value.text, text[:LONGEST_VALUE], left, why_not=left_out, mode=mode)
