"""Target fields over a contact: what it holds of them, what is to be written, and how that looks in a PUT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bridge import values
from bridge.model import Mode, Value
from bridge.targets.base import Job
from bridge.targets.sakari.account import Json
from bridge.targets.sakari.contact import entries_of, lists_left, mobile_of, number_of, opted_out

ATTRIBUTE = "attributes."


def attributes_of(job: Job) -> set[str]:
    """Return the names of the attributes that are to hold something."""
    return {
        name.removeprefix(ATTRIBUTE)
        for name, value in job.desired.fields.items()
        if name.startswith(ATTRIBUTE) and not values.is_empty(value)
    }


def held_of(contact: Json, name: str) -> Value:
    """Return what *contact* holds of a target field."""
    if name == "mobile":
        return number_of(contact["mobile"])
    if name == "lists":
        return [list_id for list_id in entries_of(contact) if list_id not in lists_left(contact)]
    if name.startswith(ATTRIBUTE):
        name = name.removeprefix(ATTRIBUTE)
        contact = contact.get("attributes") or {}
    held: Value = contact.get(name)
    return held


def text_of(value: Value) -> str:
    """Return *value* as the platform keeps it: attributes are texts."""
    if isinstance(value, list):
        return ", ".join(values.text(item) for item in value)
    return values.text(value)


def names_of(wanted: Value) -> list[str]:
    return [str(name) for name in wanted] if isinstance(wanted, list) else []


def same(contact: Json, name: str, wanted: Value) -> bool:
    """Say whether the contact holds *wanted*. Lists: whether the person is on each of them."""
    held = held_of(contact, name)
    if name == "lists":
        return isinstance(held, list) and set(names_of(wanted)) <= set(held)
    if values.is_empty(wanted) or values.is_empty(held):
        return values.is_empty(wanted) and values.is_empty(held)
    try:
        return held == wanted or text_of(held) == text_of(wanted)
    except values.BadValue:  # nothing that bridge could have written
        return False


def accepted(contact: Json, fields: Mapping[str, Value]) -> dict[str, Value]:
    """Return what *contact* holds of *fields*, in the words of the rules where it is the same."""
    return {
        name: wanted if same(contact, name, wanted) else _other(contact, name, wanted)
        for name, wanted in fields.items()
    }


def _other(contact: Json, name: str, wanted: Value) -> Value:
    held = held_of(contact, name)
    if name == "lists" and isinstance(held, list):
        return [list_id for list_id in names_of(wanted) if list_id in held]
    return held


def due_fields(contact: Json, job: Job, fields: Mapping[str, Value], notes: list[str]) -> dict[str, Value]:
    """Return those of *fields* that are to be written to *contact*."""
    due: dict[str, Value] = {}
    for name, wanted in fields.items():
        mode = job.desired.mode(name)
        kept = mode is Mode.IF_BLANK and not values.is_empty(held_of(contact, name))
        if kept or mode is Mode.CREATE_ONLY or same(contact, name, wanted):
            continue
        if name == "mobile" and values.is_empty(wanted):
            add_note(notes, "The mobile number was left as it is: a Sakari contact cannot be without one.")
        elif name == "lists" and not (wanted := joinable(contact, job, names_of(wanted), notes)):
            continue
        else:
            due[name] = wanted
    return due


def joinable(contact: Json, job: Job, wanted: Sequence[str], notes: list[str]) -> list[str]:
    """Return the lists that the person may be put on; never one that they left, and none once they said stop."""
    left = sorted(lists_left(contact) & set(wanted))
    if left:
        add_note(notes, f"The person left {naming_lists(left)} in Sakari and is not put there again.")
    missing = [list_id for list_id in wanted if list_id not in entries_of(contact)]
    if missing and (opted_out(contact) or job.desired.opt_out):
        add_note(notes, f"The person opted out, so they were not put on {naming_lists(missing)}.")
        return []
    return missing


def naming_lists(list_ids: Sequence[str]) -> str:
    return ("list " if len(list_ids) == 1 else "lists ") + ", ".join(list_ids)


def add_note(notes: list[str], note: str) -> None:
    if note not in notes:
        notes.append(note)


def overlay(body: Json, due: Mapping[str, Value]) -> Json:
    """Return *body* with *due* written over it; what is cleared is left out, or empty where *body* says so."""
    laid = {**body, "attributes": dict(body.get("attributes") or {}), "lists": list(body.get("lists") or [])}
    for name, wanted in due.items():
        into, key = laid, name
        if name.startswith(ATTRIBUTE):
            into, key = laid["attributes"], name.removeprefix(ATTRIBUTE)
        if name == "mobile":
            laid[name] = mobile_of(text_of(wanted))
        elif name == "lists":
            laid[name] += [{"id": list_id} for list_id in names_of(wanted)]
        elif values.is_empty(wanted):
            into.pop(key, None)
        else:
            into[key] = text_of(wanted)
    # What was absent stays absent.
    return {name: value for name, value in laid.items() if value not in ({}, []) or name in body}
