"""One push: search, write the whole contact, search again."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bridge.errors import Ambiguous, Permanent, Refused, Retryable
from bridge.model import Receipt
from bridge.targets.base import Job
from bridge.targets.clerk_chat.merge import accepted, as_sent, merge, new_contact
from bridge.targets.clerk_chat.person import Person, blank, keys_of, word_for
from bridge.targets.clerk_chat.team import Team

# A contact that was just made and is not found: perhaps its index is late, perhaps the search is not what bridge
# thinks it is. The second would make duplicates without end, so a few of these in a row hold the target.
UNSEARCHABLE_TRIES = 5

RENUMBERED = (
    "The phone number differs from the CRM's, and bridge may not change it in Clerk Chat. All the rest is up to "
    "date. Change it there by hand, or set update_phone if this account's API takes it."
)
BLOCK_BY_HAND = (
    "Clerk Chat's API cannot set an opt-out: bridge noted it in the contact's data, and somebody has to block the "
    "contact in Clerk Chat."
)
PUT_BACK = "Clerk Chat dropped the phone number in an update, and bridge put it back: set update_phone."


@dataclass(frozen=True, slots=True)
class Push:
    """What is to be done for one contact. *public*: of contacts that are created."""

    team: Team
    job: Job
    update_phone: bool
    public: bool

    # --- finding ---

    def find(self, stored: str | None) -> Person | None:
        """Return the contact, freshly read, or None when it is certainly not there.

        Raises:
            Ambiguous, Refused: see `_find_by_key`. Retryable: it is linked, and cannot be read.
        """
        desired = self.job.desired.fields
        if stored is not None:
            read = self.team.read(
                stored,
                [
                    *keys_of(desired),
                    *keys_of({**self.job.before, **(self.job.accepted or {})}),
                    *keys_of(self.job.tried),
                ],
            )
            if read is not None:
                return read
        found = self._find_by_key()
        if found is None and stored is not None:
            # Deleted, or given another phone and e-mail by hand, or not in the index yet. Making a new one could
            # be a duplicate, and writing without having read would drop whatever other people keep in ``data``.
            raise Retryable(
                "Clerk Chat shows no contact with the phone or e-mail bridge knows, though it is linked: it was "
                "deleted or changed there. Give one contact there the CRM's phone; bridge then takes it.",
                code="missing",
            )
        return found

    def _find_by_key(self) -> Person | None:
        """Return the one contact with exactly the desired phone, else with exactly the e-mail.

        Raises:
            Ambiguous: several have it, or the one with the e-mail has another phone.
            Refused: the search does not search, so that "not found" means nothing.
        """
        phone = self.job.desired.fields.get("phone")
        for kind, value in keys_of(self.job.desired.fields):
            hits = self.team.look_up(kind, value)
            exact = {person.id: person for person in hits if person.holds(kind, value)}
            if len(exact) > 1:
                raise Ambiguous(f"{len(exact)} contacts in Clerk Chat have this {word_for(kind)}.")
            for person in exact.values():
                if isinstance(phone, str) and phone and person.phone and not person.holds("phone", phone):
                    raise Ambiguous(
                        "A contact in Clerk Chat has this e-mail address but another phone number; they may be "
                        "two people."
                    )
                return person
            if not all(person.resembles(kind, value) for person in hits):
                self.team.prove_that_search_filters(kind)
        return None

    # --- writing ---

    def create(self) -> tuple[Person, bool]:
        """Create the contact and link it; return it as read afterwards, and whether it is new.

        Raises:
            Refused: the search does not find it.
        """
        body = new_contact(self.job, public=self.public)
        made = self.team.create(body)
        if made is None:
            existing = self._find_by_key()
            if existing is None:
                raise Permanent(
                    "Clerk Chat says that this contact exists, but its search does not show it.",
                    code="conflict",
                    status=409,
                )
            self.job.link(existing.id)
            return existing, False
        self.job.link(made.id)
        read = self.team.read(made.id, [*keys_of(self.job.desired.fields), *made.keys], finishes=True)
        if read is None:
            raise Refused(
                "Clerk Chat's search does not show the contact that bridge just created there. Bridge looks "
                "again; if this goes on, check phone_parameter and email_parameter.",
                code="unsearchable",
                tries=UNSEARCHABLE_TRIES,
            )
        # Some platforms answer a create with the contact that was there already: then it differs from ours.
        return read, not read.lacks(as_sent(made.id, body))

    def update(self, current: Person, *, created: bool) -> Receipt:
        """Bring *current*, just read, to the desired state; write only if something differs.

        Raises:
            Permanent: the phone number differs and may not be written; all the rest was.
        """
        wanted, notes = merge(self.job, current, created=created)
        renumbered = not wanted.holds("phone", current.phone)
        if renumbered and self.update_phone:
            self._prove_nobody_has_it(current, wanted.phone)
        elif renumbered:
            wanted = replace(wanted, phone=current.phone)
        held, outcome = current, "created" if created else "unchanged"
        if current.lacks(wanted, _cleared(current, wanted)):
            held, outcome = self._write(current, wanted, notes), "updated"
        if renumbered and not self.update_phone:
            if not held.opted_out:
                raise Permanent(RENUMBERED, code="phone_changed")
            notes.append(RENUMBERED)  # that the person opted out is the more important news
        if self.job.desired.opt_out and not held.opted_out:
            notes.append(BLOCK_BY_HAND)
        shown = accepted(self.job, held)
        return Receipt(outcome, held.id, shown, opted_out=held.opted_out, notes=tuple(notes))

    def _prove_nobody_has_it(self, current: Person, phone: str) -> None:
        hits = self.team.look_up("phone", phone)
        if any(person.id != current.id and person.holds("phone", phone) for person in hits):
            raise Ambiguous("The CRM's new phone number belongs to another contact in Clerk Chat already.")

    def _write(self, current: Person, wanted: Person, notes: list[str]) -> Person:
        """Put the whole contact, read it again, and return it as it is then. *notes* gets what was odd.

        Raises:
            Permanent: Clerk Chat took the call but not the values, or lost an opt-out. Gone: it knows no such id.
        """
        cleared, with_phone = _cleared(current, wanted), self.update_phone
        answered = self.team.put(wanted, with_phone=with_phone)
        if answered and wanted.phone and not answered.phone and not with_phone:
            # The newer API, and it replaces: what the older one refuses has to be sent to it.
            with_phone = True
            answered = self.team.put(wanted, with_phone=with_phone, finishes=True)
            notes.append(PUT_BACK)
        held = self._proof(current, wanted)
        kept = [key for key in cleared if not blank(held.data.get(key))]
        if kept:  # this account merges ``data``: what is left out stays, so it has to be blanked
            wanted = replace(wanted, data={**wanted.data, **dict.fromkeys(kept, "")})
            answered = self.team.put(wanted, with_phone=with_phone, finishes=True)
            held = self._proof(current, wanted)
        wrong = held.lacks(wanted, cleared)
        if wrong and answered and answered.lacks(wanted, cleared):
            raise Permanent(
                f"Clerk Chat answered that it updated the contact, but does not take: {', '.join(wrong)}.",
                code="not_taken",
            )
        if wrong:
            raise Retryable(
                f"Clerk Chat does not show the new values yet: {', '.join(wrong)}. Bridge looks again.",
                code="unverified",
            )
        return held

    def _proof(self, current: Person, wanted: Person) -> Person:
        """Read the contact after a write, and at once: the next push could not see any more what was lost.

        Raises:
            Permanent: it held an opt-out before and holds none now. Retryable: it cannot be read.
        """
        held = self.team.read(wanted.id, [*wanted.keys, *current.keys], finishes=True)
        if held is None:
            raise Retryable(
                "Clerk Chat does not show the contact after it was updated. Bridge looks again.", code="unverified"
            )
        if current.opted_out and not held.opted_out:
            raise Permanent(
                "This person had opted out in Clerk Chat, and it no longer shows that after an update. Block the "
                "contact there by hand now.",
                code="opt_out_lost",
            )
        return held


def _cleared(current: Person, wanted: Person) -> set[str]:
    """Return the keys of ``data`` that are to go."""
    return current.data.keys() - wanted.data.keys()
