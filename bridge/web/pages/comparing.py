"""What a target should hold beside what it is known to hold, a row for each field, for a person to compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bridge import schedule
from bridge.model import Delivery, Desired, Mode, State, Value
from bridge.web.pages.words import Mark, shown

SAME = Mark("same", "idle", "equal")
NEW = Mark("missing", "warn", "plus")
DIFFERS = Mark("differs", "warn", "pencil")
CLEARED = Mark("to clear", "warn", "minus")
LEFT_OUT = Mark("left out", "idle", "minus")
LEFT_ALONE = Mark("left alone", "idle", "dot")
GOES = Mark("goes", "warn", "minus")

MODES: Mapping[Mode, str] = {
    Mode.IF_BLANK: "only where it is blank there",
    Mode.CREATE_ONLY: "only when the contact is created",
}
EMPTY = "(empty)"


@dataclass(frozen=True, slots=True)
class Row:
    """One field of a target. *wanted* and *held* are as a person reads them; None where there is none."""

    field: str
    wanted: str | None
    held: str | None
    mark: Mark
    differs: bool = False
    notes: tuple[str, ...] = ()


def compare(delivery: Delivery) -> Sequence[Row]:
    """Return a row for each field that is wanted, held or left out: first those that differ, then by name."""
    desired = delivery.desired or Desired()
    held = delivery.accepted or {}
    unmet = frozenset(schedule.unmet(desired, delivery.accepted))
    names = {*desired.fields, *held, *delivery.left_out}
    rows = [_row(delivery, desired, held, name, unmet=name in unmet) for name in names]
    return sorted(rows, key=lambda row: (not row.differs, row.field))


def _row(delivery: Delivery, desired: Desired, held: Mapping[str, Value], name: str, *, unmet: bool) -> Row:
    there = text(held[name]) if name in held else None
    if name in desired.fields:
        mode = desired.mode(name)
        notes = (MODES[mode],) if mode in MODES else ()
        return Row(name, text(desired.fields[name]), there, _mark(desired, held, name, unmet=unmet), unmet, notes)
    if name in delivery.left_out:
        return Row(name, None, there, LEFT_OUT, notes=(delivery.left_out[name],))
    if desired.gone:
        return Row(name, None, there, GOES, differs=True)
    notes = () if delivery.desired is None else ("the rules ask for nothing here now",)  # else the reason says so
    return Row(name, None, there, LEFT_ALONE, notes=notes)


def _mark(desired: Desired, held: Mapping[str, Value], name: str, *, unmet: bool) -> Mark:
    if not unmet:
        same = name in held and held[name] == desired.fields[name]
        return SAME if same else LEFT_ALONE
    if desired.fields[name] is None:
        return CLEARED
    return DIFFERS if name in held else NEW


def text(value: Value) -> str:
    """Return a value as it is read; one that is empty says so."""
    return EMPTY if value is None or value in ("", []) else shown(value)


def opt_out(delivery: Delivery) -> str:
    """Say in one sentence how the person's opt-out stands at the target; "" where nobody said one."""
    told = delivery.desired is not None and delivery.desired.opt_out
    if told and delivery.accepted_opt_out:
        return "The CRM says that the person opted out, and the target holds it."
    if told:
        return "The CRM says that the person opted out; the target is not known to hold it yet."
    if delivery.accepted_opt_out:
        return "The target holds an opt-out of this person. Bridge never lifts it."
    return ""


def doubt(delivery: Delivery) -> str:
    """Say that nobody is sure what the target holds, and what is done about it; "" where it is known."""
    if delivery.state is State.SENDING:
        return ""
    if delivery.unsure_since is not None:
        return (
            "A call to create the contact got no answer, so it may be there by now: bridge searches for it, and "
            "creates nothing until that is settled."
        )
    if delivery.attempted is not None and delivery.target_id is not None:
        return (
            "The last push broke off, so the target may hold a part of what it was to write. The next one reads "
            "what is there and compares."
        )
    return ""
