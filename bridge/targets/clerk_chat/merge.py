"""What a contact should become: read, merged with what is desired. Pure: nothing is called here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bridge.errors import Permanent
from bridge.model import Mode, RecordKey, Value
from bridge.targets.base import Job
from bridge.targets.clerk_chat.person import BRIDGE, CRM_ID, CRM_OPT_OUT, Person, blank, same


def new_contact(job: Job, *, public: bool) -> dict[str, Any]:
    """Return the body that creates the contact; *public* unless a rule says otherwise.

    Raises:
        Permanent: it could not be found again.
    """
    fields = job.desired.fields
    body: dict[str, Any] = {n: fields[n] for n in ("name", "phone", "email") if not blank(fields.get(n))}
    if not body.keys() & {"phone", "email"}:
        raise Permanent("A contact in Clerk Chat needs a phone number or an e-mail address.")
    body["public"] = fields.get("public") if fields.get("public") is not None else public
    own = {
        name.removeprefix("data."): value
        for name, value in fields.items()
        if name.startswith("data.") and not blank(value)
    }
    body["data"] = {**_marks(job.key), **own}
    return body


def as_sent(contact_id: str, body: Mapping[str, Any]) -> Person:
    """Return the contact that a create with *body* should have made."""
    texts = {name: str(body.get(name, "")) for name in ("name", "email", "phone")}
    return Person(contact_id, **texts, public=body["public"], opted_out=False, data=body["data"])


def merge(job: Job, current: Person, *, created: bool) -> tuple[Person, list[str]]:
    """Return what *current* should become, and notes for a person. *created*: this push made it."""
    notes: list[str] = []
    changes: dict[str, Any] = {}
    data = {**current.data, **_own_marks(job, current)}
    for name, value in job.desired.fields.items():
        held = current.value(name)
        if not _applies(job.desired.mode(name), held, created=created) or same(name, held, value):
            continue
        if name == f"data.{CRM_OPT_OUT}" and held and not value:
            notes.append(f"{name} is left as it is: bridge never takes an opt-out back.")
        elif name.startswith("data.") and blank(value):
            del data[name.removeprefix("data.")]
        elif name.startswith("data."):
            data[name.removeprefix("data.")] = value
        elif blank(value):
            notes.append(f"{name} is left as it is: Clerk Chat has no sure way to clear it.")
        else:
            changes[name] = value
    if job.desired.opt_out:
        data[CRM_OPT_OUT] = True
    return replace(current, **changes, data=data), notes


def accepted(job: Job, held: Person) -> dict[str, Value]:
    """Return what *held* has of the desired fields, spelled as desired where it means the same."""
    return {
        name: value if same(name, held.value(name), value) else held.value(name)
        for name, value in job.desired.fields.items()
    }


def _applies(mode: Mode, held: Value, *, created: bool) -> bool:
    if mode is Mode.IF_BLANK:
        return blank(held)
    return mode is Mode.ALWAYS or created


def _own_marks(job: Job, current: Person) -> dict[str, str]:
    """Return the marks to write: not over another source's, a person's, or what a rule wants there."""
    if blank(current.data.get(BRIDGE)) and blank(current.data.get(CRM_ID)):
        return _marks(job.key)
    if current.data.get(BRIDGE) == job.key.source and f"data.{CRM_ID}" not in job.desired.fields:
        return {CRM_ID: job.key.source_id}
    return {}


def _marks(key: RecordKey) -> dict[str, str]:
    return {CRM_ID: key.source_id, BRIDGE: key.source}
