"""What ActiveCampaign holds of one contact: finding and reading it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from bridge.errors import Ambiguous
from bridge.outbound import segment
from bridge.targets.activecampaign.account import moment
from bridge.targets.activecampaign.client import TITLE, Client, Json, NotFound, number

BASE_FIELDS = ("email", "phone", "firstName", "lastName")
UNCONFIRMED, SUBSCRIBED, UNSUBSCRIBED, BOUNCED = range(4)
CLOSED = frozenset({UNSUBSCRIBED, BOUNCED})


@dataclass(frozen=True, slots=True)
class Row:
    """A contact's place on a list. Newer accounts have rows of other channels than e-mail, too."""

    list_id: str
    status: int  # -1: one that nobody has explained
    email: bool = True

    @property
    def open(self) -> bool:
        """Whether messages may go out. An unknown status counts as open, and as no reason to subscribe."""
        return self.status not in CLOSED


def opted_out(rows: Iterable[Row]) -> bool:
    """Say whether a person with these rows is unsubscribed somewhere and subscribed nowhere (by e-mail)."""
    by_email = [row for row in rows if row.email]
    return any(row.status == UNSUBSCRIBED for row in by_email) and not any(row.open for row in by_email)


@dataclass(frozen=True, slots=True)
class Held:
    """One contact as read. *values*: (id of the value's row, value), by the custom field's id."""

    id: str
    base: Mapping[str, str]
    values: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    rows: tuple[Row, ...] = ()
    created_at: datetime | None = None


def find_contact(client: Client, email: str) -> str | None:
    """Return the id of the one contact with this address, None when there is none.

    Raises:
        Ambiguous: there is more than one.
    """
    # Any status: a person who unsubscribed is a contact, too.
    query: dict[str, str | int] = {"email": email, "status": -1}
    answer = client.call("GET", "/contacts", query=query, doing="looking for the contact")
    fitting = [
        contact
        for contact in answer.rows("contacts")
        if same_base("email", str(contact.get("email") or ""), email) and not is_deleted(contact)
    ]
    if any(number(contact.get("id")) is None for contact in fitting):
        raise answer.nonsense()
    found = {str(contact["id"]) for contact in fitting}
    if len(found) > 1:
        raise Ambiguous(
            f"{len(found)} contacts in {TITLE} have this e-mail address. Merge them there, then replay."
        )
    return found.pop() if found else None


def read_contact(client: Client, target_id: str, *, finishes: bool = False) -> Held | None:
    """Return the contact with this id, None when it is not there or was deleted.

    *finishes*, here and below: it completes a write already made, so newer state must not stop it.
    """
    path = f"/contacts/{segment(target_id)}"
    try:
        answer = client.call("GET", path, doing="reading the contact", finishes=finishes)
        contact = answer.row("contact")
        if str(contact["id"]) != target_id:
            raise answer.nonsense()
        if is_deleted(contact):
            return None
        values = _part(client, answer.body, path, "fieldValues", finishes=finishes)
        rows = _part(client, answer.body, path, "contactLists", finishes=finishes)
    except NotFound:
        return None
    return Held(target_id, base_of(contact), values_of(values), rows_of(rows), _created_at(contact))


def read_rows(client: Client, target_id: str, *, finishes: bool) -> tuple[Row, ...]:
    return rows_of(_part(client, {}, f"/contacts/{segment(target_id)}", "contactLists", finishes=finishes))


def _part(client: Client, body: Json, path: str, key: str, *, finishes: bool) -> list[Json]:
    """Return a part that the contact's own answer brings along, else ask for it."""
    if isinstance(body.get(key), list):
        return [row for row in body[key] if isinstance(row, dict)]
    return client.call("GET", f"{path}/{key}", doing="reading the contact", finishes=finishes).rows(key)


def is_deleted(contact: Json) -> bool:
    """Say whether this is the shell that a deleted contact may leave, with an address that is nobody's."""
    return str(contact.get("email") or "").casefold().startswith("deleted+") or str(contact.get("deleted")) == "1"


def base_of(contact: Json) -> dict[str, str]:
    return {name: str(contact.get(name) or "") for name in BASE_FIELDS}


def values_of(rows: Iterable[Json]) -> dict[str, tuple[str, str]]:
    return {str(row.get("field")): (str(row.get("id")), str(row.get("value") or "")) for row in rows}


def rows_of(rows: Iterable[Json]) -> tuple[Row, ...]:
    return tuple(_row(row) for row in rows)


def _row(row: Json) -> Row:
    status = number(row.get("status"))
    return Row(str(row.get("list")), -1 if status is None else status, row.get("channel") in {None, "", "email"})


def same_base(name: str, held: str, wanted: str) -> bool:
    """Say whether a field of the contact itself is as wanted: addresses in any case, phones by their digits."""
    if name == "email":
        return held.casefold() == wanted.casefold()
    if name == "phone":
        return re.sub(r"\D", "", held) == re.sub(r"\D", "", wanted)
    return held == wanted


def _created_at(contact: Json) -> datetime | None:
    try:  # not created_utc_timestamp, which is local time whatever its name says
        return moment(str(contact.get("cdate")))
    except ValueError:
        return None
