"""List subscriptions. Bridge unsubscribes anyone; it subscribes only who was never on the list.

Setting "subscribed" on a person who unsubscribed by hand subscribes them again, so every write here follows a
read, and is proven by another one: https://developers.activecampaign.com/reference/update-list-status-for-contact.
"""

from __future__ import annotations

from collections.abc import Mapping

from bridge.errors import Retryable
from bridge.model import Value
from bridge.targets.activecampaign.client import TITLE
from bridge.targets.activecampaign.contact import (
    BOUNCED,
    SUBSCRIBED,
    UNCONFIRMED,
    UNSUBSCRIBED,
    Held,
    Row,
    opted_out,
    read_rows,
)
from bridge.targets.activecampaign.progress import Progress

WHY_NOT = {
    UNCONFIRMED: "they have not confirmed their subscription",
    UNSUBSCRIBED: "they unsubscribed from it",
    BOUNCED: "mail to them bounced there",
}


class Lists:
    """One push's part in the contact's lists."""

    def __init__(self, progress: Progress, held: Held) -> None:
        self.rows: tuple[Row, ...] = held.rows
        self._progress = progress
        self._target_id = held.id
        self._wishes: dict[str, bool] = {}  # by the list's id
        self._names: dict[str, list[str]] = {}  # what the rules call it
        self._left: set[str] = set()  # by this very push, so no sign that the person wants no mail at all

    def none_open(self) -> bool:
        return not any(row.open and row.email for row in self.rows)

    def plan(self, wanted: Mapping[str, Value]) -> None:
        """Settle which lists are meant. Where two names of the same list disagree, "no" wins."""
        progress = self._progress
        for name, value in wanted.items():
            text = name.removeprefix("lists.").strip()
            ids = progress.account.lists.find(progress.client, text, progress.job.now) or ()
            if not isinstance(value, bool):
                progress.leave_out(name, "a list takes yes or no")
            elif not ids:
                progress.leave_out(name, f"{TITLE} has no such list; create it there or correct the rule")
            elif len(ids) > 1:
                progress.leave_out(name, f"several lists in {TITLE} have this name; use the id in the rule")
            elif progress.only_blank(name) and self._of(ids[0]):
                progress.accepted[name] = self._subscribed(ids[0])
            else:
                self._wishes[ids[0]] = self._wishes.get(ids[0], True) and value
                self._names.setdefault(ids[0], []).append(name)

    def leave_all(self) -> None:
        """Unsubscribe the person from every list, and prove it."""
        if not self.rows:
            self._progress.notes.append(f"The person is on no list in {TITLE}, so there was nothing to end.")
        self._leave({row.list_id for row in self.rows if row.open and row.email})
        if any(row.open for row in self.rows):
            self._progress.notes.append(
                f"{TITLE} also has the person on a list for another channel than e-mail, which only somebody "
                "there can end."
            )

    def leave(self) -> None:
        """Unsubscribe the person from the lists that the rules say no to."""
        ids = {number for number, wish in self._wishes.items() if not wish}
        self._leave({row.list_id for row in self.rows if row.open and row.email} & ids)
        for number in ids:
            self._record(number)

    def join(self) -> None:
        """Subscribe the person to the lists they were never on, and say of every other why not."""
        ids = [number for number, wish in self._wishes.items() if wish]
        new = [number for number in ids if not self._of(number)]
        if new and not self._progress.job.desired.opt_out:
            # Other calls, and waits for a turn, lie behind: the person may have left meanwhile.
            self._read(finishes=False)
            out = opted_out(row for row in self.rows if row.list_id not in self._left)
            out = out or (self._progress.job.opted_out and self.none_open())
            new = [number for number in new if not out and not self._of(number)]
            for number in new:
                self._post(number, SUBSCRIBED, "subscribing the person to a list")
            if new:
                self._read(finishes=True)
        for number in ids:
            self._record(number)
            if not self._subscribed(number):
                self._say_why_not(number)

    def _leave(self, ids: set[str]) -> None:
        if not ids:
            return
        for number in sorted(ids):
            self._post(number, UNSUBSCRIBED, "unsubscribing the person from a list")
        self._left |= ids
        self._read(finishes=True)
        if any(row.open and row.email and row.list_id in ids for row in self.rows):
            message = f"{TITLE} still shows the person as subscribed to a list that bridge unsubscribed them from."
            raise Retryable(message, code="unproven")

    def _say_why_not(self, number: str) -> None:
        row = next(iter(self._of(number)), None)
        if self._progress.job.desired.opt_out:
            why = "they opted out"
        elif row is None:
            why = "they unsubscribed from every list they were on"
        else:
            why = WHY_NOT.get(row.status, f"{TITLE} has a status for them there that bridge does not know")
        for name in self._names[number]:
            self._progress.notes.append(f"{name}: the person was not subscribed, because {why}.")

    def _record(self, number: str) -> None:
        for name in self._names[number]:
            self._progress.accepted[name] = self._subscribed(number)

    def _of(self, number: str) -> list[Row]:
        return [row for row in self.rows if row.list_id == number]

    def _subscribed(self, number: str) -> bool:
        return any(row.status == SUBSCRIBED and row.email for row in self._of(number))

    def _post(self, number: str, status: int, doing: str) -> None:
        row = {"list": number, "contact": self._target_id, "status": status}
        self._progress.client.call("POST", "/contactLists", json={"contactList": row}, doing=doing).row(
            "contactList"
        )
        self._progress.wrote = True

    def _read(self, *, finishes: bool) -> None:
        self.rows = read_rows(self._progress.client, self._target_id, finishes=finishes)
