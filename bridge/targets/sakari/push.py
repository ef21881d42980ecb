"""One push: find the contact, or create it, or write what differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC

from bridge import values
from bridge.errors import Ambiguous, Permanent, Retryable
from bridge.model import Receipt, Value
from bridge.targets.base import Job
from bridge.targets.sakari.account import BAD_MOBILE, STOPPED, Account, Gone, Json, SaidStop, code_of
from bridge.targets.sakari.contact import echo, entries_of, is_contact, opted_out
from bridge.targets.sakari.creating import made_of
from bridge.targets.sakari.fields import (
    ATTRIBUTE,
    accepted,
    add_note,
    attributes_of,
    due_fields,
    names_of,
    naming_lists,
    overlay,
    same,
    text_of,
)
from bridge.targets.sakari.finding import find, holders
from bridge.targets.sakari.learnt import Learnt
from bridge.targets.sakari.writing import read, reread, write

INTEGRATIONS = ("activecampaign", "hubspot", "pipedrive")  # Sakari's own, which write contacts too


@dataclass
class Push:
    """See the module's docstring. *notes* is what a person should know of it in the end."""

    account: Account
    learnt: Learnt
    job: Job
    notes: list[str] = field(default_factory=list)
    said_stop: bool = False  # the contact was opted out when it was read

    def run(self) -> Receipt:
        self.fields = self._known_fields()
        if self.job.target_id is not None:
            try:
                return self._update(self.job.target_id)
            except Gone:
                pass  # somebody removed it there: the number decides, once
        number = self.job.desired.fields.get("mobile")
        if not isinstance(number, str) or not number:
            if not self._may_create():
                return self._absent()
            raise Permanent("There is no mobile number, without which Sakari has no contact.")
        target_id = find(self.account, self.learnt, number)
        if target_id is None:
            if not self._may_create():
                return self._absent()
            try:
                return self._create(number)
            except Ambiguous as error:
                # Somebody was faster by a moment, if the contact can be found now.
                target_id = find(self.account, self.learnt, number) if error.status == 409 else None
                if target_id is None:
                    raise
        self.job.link(target_id)
        return self._update(target_id)

    def _may_create(self) -> bool:
        return self.job.may_create() and not self.said_stop

    def _absent(self) -> Receipt:
        return Receipt("absent", opted_out=self.said_stop, notes=tuple(self.notes))

    def _known_fields(self) -> dict[str, Value]:
        """Return the desired fields without attributes that the account does not define."""
        unknown = self.learnt.attributes.unknown(self.account, attributes_of(self.job))
        for name in sorted(unknown):
            note = f"The attribute {name} was left out: it has to be defined in the Sakari account first."
            add_note(self.notes, note)
        return {
            name: value
            for name, value in self.job.desired.fields.items()
            if not (name.startswith(ATTRIBUTE) and name.removeprefix(ATTRIBUTE) in unknown)
        }

    # --- creating ---

    def _create(self, number: str) -> Receipt:
        """Create the contact.

        https://developer.sakari.io/api-reference/contacts/create-contact
        """
        body = overlay({}, {name: value for name, value in self.fields.items() if not values.is_empty(value)})
        # Stated, as its default is not documented: of a contact that is there after all, nothing is removed.
        query = {"mergeStrategy": "append"}
        try:
            reply = self.account.call("POST", "/contacts", json=body, query=query, creates=True)
            made = made_of(reply, number, body)
        except SaidStop:
            add_note(self.notes, "Sakari did not create the contact: the person asked for no more messages.")
            self.said_stop = True
            return self._absent()
        target_id = str(made["id"]) if made.get("id") else find(self.account, self.learnt, number)
        if target_id is None:
            message = "Sakari says that it created the contact, but it cannot be found yet."
            raise Retryable(message, code="unsure", maybe_done=True)
        self.job.link(target_id)
        try:
            made = reread(self.account, target_id)
        except Gone:
            if not is_contact(made):
                raise
        self._note_mismatches(made, self.fields)
        return self._receipt("created", made, target_id)

    # --- updating ---

    def _update(self, target_id: str) -> Receipt:
        contact = read(self.account, target_id)
        self.said_stop = opted_out(contact)
        written = False
        if self.job.desired.opt_out and not opted_out(contact):
            # First and alone, so that no other field can stand in its way.
            contact, written = self._block(target_id, contact)
        due = due_fields(contact, self.job, self.fields, self.notes)
        if "mobile" in due:
            self._check_free(text_of(due["mobile"]), target_id)
            # The search took time, in which the person may have said stop.
            contact = read(self.account, target_id)
            due = due_fields(contact, self.job, self.fields, self.notes)
        if due:
            written = True
            try:
                contact = self._write_fields(target_id, contact, due)
            except SaidStop:
                add_note(self.notes, "Sakari takes no changes: the person asked for no more messages.")
                held = accepted(contact, self.fields)
                return Receipt("unchanged", target_id, held, opted_out=True, notes=tuple(self.notes))
            self._note_mismatches(contact, due)
        self._note_lists_kept()
        return self._receipt("updated" if written else "unchanged", contact, target_id)

    def _check_free(self, number: str, target_id: str) -> None:
        """Raise Ambiguous if another contact has *number*: what a PUT would do to the two is not documented."""
        if any(holder != target_id for holder in holders(self.account, self.learnt, number)):
            raise Ambiguous("Another contact in Sakari has the new mobile number already.")

    def _block(self, target_id: str, contact: Json) -> tuple[Json, bool]:
        """Write the opt-out; return the contact as it is then, and whether it was written.

        That ``blocked`` can be set is likely but not documented, so it counts only once it was read back.
        """
        since = self.job.now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        try:
            contact = write(self.account, target_id, contact, {**echo(contact), "blocked": since})
        except SaidStop:
            return {**contact, "error": {"code": STOPPED}}, True
        except Permanent as error:
            if error.status not in {400, 422}:
                raise
            contact = read(self.account, target_id)  # the next write is to follow its own reading
        if opted_out(contact):
            return contact, True
        note = (
            "Manual action needed: Sakari did not take the opt-out. Open the contact there and block it. Bridge "
            "sees that with the next change."
        )
        add_note(self.notes, note)
        return contact, False

    def _write_fields(self, target_id: str, contact: Json, due: Mapping[str, Value]) -> Json:
        """Write *due* over *contact* and return the contact as it is then."""
        try:
            contact = write(self.account, target_id, contact, overlay(echo(contact), due))
        except (SaidStop, Ambiguous):
            raise
        except Permanent as error:
            if "mobile" in due and error.status in {400, 422} and BAD_MOBILE not in str(error):
                message = "Sakari does not let this contact have the new mobile number; another one may have it."
                raise Ambiguous(message, status=error.status) from error
            raise
        kept = [name for name, wanted in due.items() if values.is_empty(wanted) and not same(contact, name, None)]
        return self._empty(target_id, contact, kept) if kept else contact

    def _empty(self, target_id: str, contact: Json, kept: Sequence[str]) -> Json:
        """Clear what a PUT that left it out did not clear, by writing the empty text."""
        body = echo(contact)
        for name in kept:
            if name.startswith(ATTRIBUTE):
                body["attributes"] = {**body["attributes"], name.removeprefix(ATTRIBUTE): ""}
            else:
                body[name] = ""
        try:
            return write(self.account, target_id, contact, body)
        except Permanent:
            return contact  # it stays, and a note says so

    # --- what is said about it ---

    def _receipt(self, outcome: str, contact: Json, target_id: str) -> Receipt:
        self._note_integrations(contact)
        held = accepted(contact, self.fields)
        return Receipt(outcome, target_id, held, opted_out(contact), tuple(self.notes))

    def _note_mismatches(self, contact: Json, written: Mapping[str, Value]) -> None:
        for name in sorted(written):
            if same(contact, name, written[name]):
                continue
            if values.is_empty(written[name]):
                add_note(self.notes, f"Sakari did not clear {name}; clear it there by hand.")
            elif not (name == "lists" and set(names_of(written[name])) <= set(entries_of(contact))):
                add_note(self.notes, f"Sakari does not hold {name} as it was sent.")
        code = code_of(contact.get("error"))
        if code and code != STOPPED:
            add_note(self.notes, f"Sakari marks the contact with the error {code}.")

    def _note_lists_kept(self) -> None:
        before = set(names_of((self.job.accepted or {}).get("lists")))
        over = sorted(before - set(names_of(self.fields.get("lists"))))
        if "lists" in self.fields and over:
            add_note(self.notes, f"Bridge takes nobody off a list: {naming_lists(over)} stays as it is.")

    def _note_integrations(self, contact: Json) -> None:
        """Warn once of each integration that writes to the same contacts."""
        for name in INTEGRATIONS:
            linked = contact.get(name)
            if isinstance(linked, dict) and linked.get("id") and name not in self.learnt.integrations:
                self.learnt.integrations.add(name)
                note = (
                    f"Sakari's own {name} integration writes to this contact too; if both carry the same fields, "
                    "they can undo each other's changes."
                )
                add_note(self.notes, note)
