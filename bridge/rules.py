"""Field rules: a contact in, what one target should hold of it out. Pure, and it never raises for any data.

*Absent is not empty*: what the source never mentioned is left alone, and what it cleared is left alone too unless
the rule says ``empty = "clear"``. An opt-out is judged by what was last said in words, never by a cleared field.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property

from bridge.expressions import Expression
from bridge.model import Contact, Desired, FieldState, Mode, Value, Version, Want
from bridge.targets.base import FieldKind, TargetType
from bridge.values import BadValue, normalise


class OnDelete(StrEnum):
    KEEP = "keep"
    REMOVE = "remove"


class Empty(StrEnum):
    """What a cleared field of the source does to the target's."""

    LEAVE = "leave"
    CLEAR = "clear"


@dataclass(frozen=True, slots=True)
class FieldRule:
    """How one target field is made."""

    target: str  # the platform's own name, dotted for nested ones
    value: Expression
    kind: FieldKind = FieldKind.TEXT
    mode: Mode = Mode.ALWAYS
    empty: Empty = Empty.LEAVE


@dataclass(frozen=True)
class Route:
    """One source joined to one target, with its rules."""

    source: str
    target: str
    type: TargetType = field(repr=False)
    fields: tuple[FieldRule, ...]
    when: Expression | None = None  # None: always
    create: bool = True
    on_delete: OnDelete = OnDelete.KEEP
    opt_out: Expression | None = None  # None: the source says nothing of opt-outs
    region: str = ""  # where phone numbers without a country are taken to be from

    @cached_property
    def reads(self) -> frozenset[str]:
        """The source fields that any rule of the route reads."""
        expressions = [rule.value for rule in self.fields]
        expressions += [rule for rule in (self.when, self.opt_out) if rule is not None]
        return frozenset[str]().union(*(expression.names for expression in expressions))

    @cached_property
    def digest(self) -> str:
        """A text that differs between routes that may decide differently, and is the same in every process."""
        rules = sorted((r.target, r.value.text, r.kind, r.mode, r.empty) for r in self.fields)
        conditions = [rule and rule.text for rule in (self.when, self.opt_out)]
        told = [self.type.name, rules, conditions, self.create, self.on_delete, self.region]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def decide(route: Route, contact: Contact, absorbed: Sequence[Contact] = ()) -> Want:
    """Return what *route*'s target should hold of *contact*.

    *absorbed* are the records that were merged into it, in any order: an opt-out said there counts here.
    """
    if not contact.alive and (route.on_delete is OnDelete.REMOVE or contact.erased):
        return _of_the_dead(route, contact, opted_out=False)
    try:
        opted_out = _opted_out(route, contact, absorbed)
    except BadValue as error:
        said = f"The route's opt_out rule cannot be computed, so nothing is sent until it can. {error}"
        return replace(_nothing(route, contact, said), unclear=True)
    if not contact.alive:
        return _of_the_dead(route, contact, opted_out=opted_out)
    if waiting := _waiting(route, contact):
        return _only_tighten(route, contact, waiting, opted_out=opted_out)
    made = _make(route, contact)
    if unnamed := _unnamed(route, contact, made):
        return _only_tighten(route, contact, unnamed, opted_out=opted_out, dropped=made.dropped)
    desired = Desired(
        fields=made.fields,
        modes={r.target: r.mode for r in route.fields if r.target in made.fields and r.mode is not Mode.ALWAYS},
        opt_out=opted_out,
        create=route.create and not opted_out,
    )
    return Want(route.target, contact.key, desired, dropped=made.dropped, inherit_from=contact.inherits)


# --- contacts that are no more ------------------------------------------------------------------------------


def _of_the_dead(route: Route, contact: Contact, *, opted_out: bool) -> Want:
    if route.on_delete is OnDelete.REMOVE:
        return Want(route.target, contact.key, Desired(gone=True), inherit_from=contact.inherits)
    kept = 'This route keeps contacts (on_delete = "keep")'
    if contact.erased:
        return _nothing(
            route,
            contact,
            f"Erased in the CRM under privacy law. {kept}, so {route.type.title} still holds this person. "
            "If the law asks for it, a person must remove the contact there.",
        )
    if contact.merged_into:
        said = (
            f"Merged into contact {contact.merged_into} in the CRM, which carries on. {kept}, so this one is left."
        )
    else:
        said = f"Deleted in the CRM. {kept}, so nothing is changed."
    return _only_tighten(route, contact, said, opted_out=opted_out)


def _nothing(route: Route, contact: Contact, reason: str, dropped: Mapping[str, str] | None = None) -> Want:
    return Want(route.target, contact.key, None, reason, dropped=dropped or {}, inherit_from=contact.inherits)


def _only_tighten(
    route: Route,
    contact: Contact,
    reason: str,
    *,
    opted_out: bool,
    dropped: Mapping[str, str] | None = None,
) -> Want:
    """Ask for nothing, but let an opt-out through: it holds for whatever the target has of this person."""
    nothing = _nothing(route, contact, reason, dropped)
    if not opted_out:
        return nothing
    return Want(
        route.target,
        contact.key,
        Desired(opt_out=True, create=False),
        reason,
        dropped=nothing.dropped,
        inherit_from=contact.inherits,
    )


# --- opt-out ------------------------------------------------------------------------------------------------


def _opted_out(route: Route, contact: Contact, absorbed: Iterable[Contact]) -> bool:
    """Say whether the person said stop: to the CRM or at a target, here or in a record merged into this one.

    What was said at a target is taken back there, by the person, and nowhere else: a record that is read, or sent
    whole with each change, repeats an old yes of the CRM with a new date. What a merged record said to the CRM is
    overruled by this one only if it said no stop itself, later, in words.

    Raises:
        BadValue: what was said cannot be understood.
    """
    absorbed = list(absorbed)
    if contact.stopped or any(other.stopped for other in absorbed):
        return True
    rule = route.opt_out
    if rule is None:
        return False
    verdict = _verdict(rule, contact)
    if verdict:
        return True
    spoken = _last_said(contact, rule.names)
    for other in absorbed:
        theirs = _last_said(other, rule.names)
        overruled = verdict is False and spoken is not None and theirs is not None and spoken > theirs
        if theirs is not None and not overruled and _verdict(rule, other):
            return True
    return False


def _verdict(rule: Expression, contact: Contact) -> bool | None:
    """Return what the rule says of all that was ever said, None where it needs what was not."""
    said = {name: state.said for name, state in contact.fields.items() if state.said_version is not None}
    result = rule.result(said)
    return None if result.unknown else bool(result.value)


def _last_said(contact: Contact, names: Collection[str]) -> Version | None:
    states = (contact.fields[name] for name in names if name in contact.fields)
    return max((state.said_version for state in states if state.said_version is not None), default=None)


# --- the condition ------------------------------------------------------------------------------------------


def _waiting(route: Route, contact: Contact) -> str:
    """Return why the route does not want this contact now, "" where it does."""
    if route.when is None:
        return ""
    try:
        result = route.when.result(_variables(contact.fields))
    except BadValue as error:
        return f"The route's condition cannot be computed, so nothing is sent until it can. {error}"
    if result.unknown:
        return (
            f"Waiting for the CRM to tell '{result.unknown}', which the route's condition needs. "
            "Bridge looks again when it does."
        )
    if not result.value:
        return (
            f"The route's condition is not met (when = {route.when.text!r}). "
            "Bridge looks again whenever the contact changes."
        )
    return ""


def _variables(fields: Mapping[str, FieldState]) -> dict[str, Value]:
    return {name: state.value for name, state in fields.items()}


# --- the fields ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Made:
    """What the rules came to: values by target field, and why some were left out."""

    fields: Mapping[str, Value]
    dropped: Mapping[str, str]


def _make(route: Route, contact: Contact) -> _Made:
    variables = _variables(contact.fields)
    fields: dict[str, Value] = {}
    dropped: dict[str, str] = {}
    for rule in route.fields:
        names = rule.value.names
        if names and names.isdisjoint(variables):
            continue  # `country | default('US')` is no news of a contact whose country was never mentioned
        try:
            result = rule.value.result(variables)
            value = normalise(rule.kind, result.value, route.region)
        except BadValue as error:
            dropped[rule.target] = str(error)
            continue
        if value is not None:
            fields[rule.target] = value
        elif rule.empty is Empty.CLEAR and not result.unknown and names <= variables.keys():
            fields[rule.target] = None
    return _Made(fields, dropped)


def _unnamed(route: Route, contact: Contact, made: _Made) -> str:
    """Return what is missing to tell who the contact is in the target, "" where nothing is."""
    groups = route.type.identities
    if any(all(made.fields.get(name) is not None for name in group) for group in groups):
        return ""
    ruled = {rule.target for rule in route.fields}
    possible = [group for group in groups if ruled.issuperset(group)] or groups
    missing = [[name for name in group if made.fields.get(name) is None] for group in possible]
    wanted = " or ".join(" and ".join(names) for names in missing)
    why = [
        _why_missing(route, contact, made, name)
        for name in dict.fromkeys(name for names in missing for name in names)
    ]
    return f"Waiting for {wanted}: {'; '.join(why)}. {route.type.title} cannot tell who the contact is without it."


def _why_missing(route: Route, contact: Contact, made: _Made, target: str) -> str:
    rule = next((rule for rule in route.fields if rule.target == target), None)
    if rule is None:
        return f"no rule gives {target}"
    if target in made.dropped:
        return f"{target} was left out ({made.dropped[target].rstrip('.')})"
    unknown = sorted(name for name in rule.value.names if name not in contact.fields)
    if unknown:
        return f"the CRM has not told {_listed(unknown)} yet"
    names = sorted(rule.value.names)
    return f"{_listed(names) or target} {'are' if len(names) > 1 else 'is'} empty in the CRM"


def _listed(names: Iterable[str]) -> str:
    return " and ".join(f"'{name}'" for name in names)
