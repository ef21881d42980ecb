"""Writing what is no subscription and no tag: the contact's own fields and its custom fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bridge.errors import Ambiguous
from bridge.model import Value
from bridge.outbound import segment
from bridge.targets.activecampaign.account import NOT_TEXT, is_blank, plain, same, why_not, written
from bridge.targets.activecampaign.client import TITLE, Gone, Json, NotFound, Taken
from bridge.targets.activecampaign.contact import BASE_FIELDS, Held, is_deleted, read_contact, same_base
from bridge.targets.activecampaign.progress import Progress


@dataclass(slots=True)
class _Edit:
    """What is to be written, gathered into as few calls as there can be."""

    base: dict[str, str] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)  # by the custom field's id
    deletes: list[str] = field(default_factory=list)  # ids of the rows of custom values
    # What must be shown to be blank afterwards: the name of the rules, and the custom field's id if it is one.
    clears: dict[str, str | None] = field(default_factory=dict)
    accepted: dict[str, Value] = field(default_factory=dict)  # once all this is written


def write_fields(progress: Progress, held: Held, wanted: Mapping[str, Value]) -> None:
    """Write what differs from *held*; clear by the way that is sure for the field's type, and prove it.

    Raises:
        Gone: the contact was deleted meanwhile. Ambiguous: another contact has the new e-mail address.
    """
    edit = _Edit()
    for name, value in wanted.items():
        if name in BASE_FIELDS:
            _plan_base(progress, edit, held.base[name], name, value)
        else:
            _plan_custom(progress, edit, held, name, value)
    if edit.base or edit.values:
        _put(progress, held.id, edit)
    for number, row_id in enumerate(edit.deletes):
        _delete_value(progress, row_id, finishes=number > 0 or bool(edit.base or edit.values))
    progress.accepted |= edit.accepted
    if edit.clears:
        _prove_cleared(progress, held.id, edit.clears, wanted)


def _plan_base(progress: Progress, edit: _Edit, held: str, name: str, value: Value) -> None:
    if is_blank(value) and name == "email":
        progress.leave_out(name, f"{TITLE} knows a contact by its address, so bridge never clears it")
    elif not is_blank(held) and progress.only_blank(name):
        progress.accepted[name] = held
    elif is_blank(value) and is_blank(held):
        edit.accepted[name] = value
    elif is_blank(value):
        edit.base[name] = ""
        edit.clears[name] = None
    else:
        text = plain(value)
        if not same_base(name, held, text):
            edit.base[name] = text
        edit.accepted[name] = value


def _plan_custom(progress: Progress, edit: _Edit, held: Held, name: str, value: Value) -> None:
    custom = progress.account.fields.find(
        progress.client,
        name.removeprefix("fields.").strip("%"),
        progress.job.now,
        lambda found: is_blank(value) or not why_not(value, found),
    )
    if custom is None:
        progress.leave_out(name, f"{TITLE} has no such custom field; create it there or correct the rule")
        return
    row_id, text = held.values.get(custom.id, ("", ""))
    if not is_blank(text) and progress.only_blank(name):
        progress.accepted[name] = text
    elif is_blank(value) and is_blank(text):
        edit.accepted[name] = value
    elif is_blank(value):
        edit.clears[name] = custom.id
        if custom.type in NOT_TEXT:
            edit.deletes.append(row_id)
        else:
            edit.values[custom.id] = ""
    elif why := why_not(value, custom):
        progress.leave_out(name, why)
    else:
        new = written(value, custom)
        if not same(text, new, custom):
            edit.values[custom.id] = new
        edit.accepted[name] = value


def _put(progress: Progress, target_id: str, edit: _Edit) -> None:
    """https://developers.activecampaign.com/reference/update-a-contact-new: what is not named stays as it is."""
    contact: Json = dict(edit.base)
    if edit.values:
        contact["fieldValues"] = [{"field": number, "value": text} for number, text in edit.values.items()]
    gone = Gone(f"The contact was deleted in {TITLE} just now. Bridge looks for the person by e-mail address.")
    try:
        answer = progress.client.call(
            "PUT", f"/contacts/{segment(target_id)}", json={"contact": contact}, doing="updating the contact"
        )
    except NotFound as error:
        raise gone from error
    except Taken as error:
        if "email" not in edit.base:
            raise
        raise Ambiguous(
            f"Another contact in {TITLE} has the new e-mail address already. Merge the two there, then replay.",
            status=error.status,
        ) from error
    found = answer.row("contact")
    if is_deleted(found):
        raise gone
    if str(found["id"]) != target_id:
        raise answer.nonsense()
    progress.wrote = True


def _delete_value(progress: Progress, row_id: str, *, finishes: bool) -> None:
    try:
        progress.client.call(
            "DELETE", f"/fieldValues/{segment(row_id)}", doing="clearing a custom field", finishes=finishes
        )
    except NotFound:
        return  # somebody else cleared it
    progress.wrote = True


def _prove_cleared(
    progress: Progress, target_id: str, clears: Mapping[str, str | None], wanted: Mapping[str, Value]
) -> None:
    """Read what was cleared. That an empty text clears is not documented, and an old value must not linger."""
    held = _read(progress, target_id)
    left = [held.values[number] for number in clears.values() if number is not None and number in held.values]
    stubborn = [row_id for row_id, text in left if not is_blank(text)]
    for row_id in stubborn:
        _delete_value(progress, row_id, finishes=True)
    if stubborn:
        held = _read(progress, target_id)
    for name, number in clears.items():
        text = held.base[name] if number is None else held.values.get(number, ("", ""))[1]
        if is_blank(text):
            progress.accepted[name] = wanted[name]
        else:
            progress.leave_out(name, f"{TITLE} kept the old value though it was cleared; clear it there")


def _read(progress: Progress, target_id: str) -> Held:
    """Read the contact after it was written."""
    held = read_contact(progress.client, target_id, finishes=True)
    if held is None:
        raise Gone(f"The contact was deleted in {TITLE} just now. Bridge looks for the person by e-mail address.")
    return held
