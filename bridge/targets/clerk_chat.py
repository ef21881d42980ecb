"""Clerk Chat: an SMS and voice inbox with a small public API.

Nothing about it is idempotent: there is no upsert, no read by id and no version to compare. So every push searches
first, writes whole contacts (name, e-mail, visibility and all of ``data``), and reads them again afterwards. That
is right whether its PUT replaces or merges, which the vendor does not say:
https://docs.clerk.chat/api-reference/public/update-a-contact
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from bridge.errors import Ambiguous, Permanent, Refused, Retryable
from bridge.model import Mode, Receipt, RecordKey, Secret, Value
from bridge.outbound import Api, Reply, segment
from bridge.targets.base import FieldKind, Job, TargetField, TargetType, fail, quotable

TITLE = "Clerk Chat"
CONTACTS = "/public/contacts"
# Without one of these a contact as shown is not whole, and writing it back could lose what was not shown.
WHOLE = frozenset({"id", "name", "phone", "email", "public", "data"})
# Country code 999 is assigned to nobody, and .invalid to no one's mail.
NOBODY = {"phone": "+99900000000", "email": "nobody@bridge.invalid"}
# The keys of ``data`` that are bridge's own. The API cannot write the contact's external id or its opt-out.
CRM_ID, BRIDGE, CRM_OPT_OUT = "crmId", "bridge", "crmOptOut"
# A contact that was just made and is not found: perhaps its index is late, perhaps the search is not what bridge
# thinks it is. The second would make duplicates without end, so a few of these in a row hold the target.
UNSEARCHABLE_TRIES = 5


@dataclass(frozen=True, slots=True)
class Settings:
    """The section of a Clerk Chat target."""

    api_key: Secret = field(metadata={"help": "The team's API key, from Settings, API."})
    api_base: str = field(
        default="https://web-api.clerk.chat", metadata={"help": "Where the API is; for tests and proxies."}
    )
    update_phone: bool = field(
        default=False,
        metadata={"help": "Send the phone number in updates. Only newer accounts take it; others need a person."},
    )
    public: bool = field(
        default=False, metadata={"help": "Whether contacts that bridge creates are visible to the whole team."}
    )
    phone_parameter: str = field(
        default="phone", metadata={"help": "The search parameter that takes a phone number."}
    )
    email_parameter: str = field(
        default="email", metadata={"help": "The search parameter that takes an e-mail address."}
    )


@dataclass(frozen=True, slots=True)
class Person:
    """A contact as Clerk Chat holds it."""

    id: str
    name: str
    email: str
    phone: str
    public: bool | None
    opted_out: bool
    data: Mapping[str, Any]

    def holds(self, kind: str, value: str) -> bool:
        """Say whether its phone or e-mail is exactly *value*, in whatever way it is written there."""
        return _plain(kind, getattr(self, kind)) == _plain(kind, value)

    def value(self, name: str) -> Value:
        """Return what it holds of a target field, by the field's name in the rules."""
        if name.startswith("data."):
            return self.data.get(name.removeprefix("data."))
        found: Value = getattr(self, name)
        return found


class _Gone(Exception):
    """The platform does not know the id that was written to."""


@dataclass(frozen=True, slots=True)
class ClerkChat:
    """One Clerk Chat team."""

    settings: Settings

    def deliver(self, api: Api, job: Job) -> Receipt:
        """Create or update one contact; see `Target.deliver`.

        Raises:
            Ambiguous: several contacts have the phone number or e-mail address.
            Permanent: the phone number changed and may not be updated; everything else was written.
        """
        stored = job.target_id
        for _ in range(2):
            found = self._find(api, job, stored)
            created = False
            if found is None:
                if not job.may_create():
                    return Receipt("absent")
                found, created = self._create(api, job)
            elif found.id != job.target_id:
                job.link(found.id)
            try:
                return self._update(api, job, found, created=created)
            except _Gone:
                stored = None  # deleted since it was read: resolve anew, once
        raise Retryable(
            "Clerk Chat's search shows a contact that it then does not know. Bridge looks again later.",
            code="missing",
        )

    def remove(self, api: Api, job: Job) -> Receipt:
        """See `Target.remove`: the public API deletes nothing.

        Raises:
            Permanent: always.
        """
        raise Permanent(
            "Clerk Chat's API cannot delete contacts; somebody has to delete this one in Clerk Chat.",
            code="unsupported",
        )

    def check(self, api: Api) -> str:
        """Search for nobody, and for somebody who is there: both must come out right. See `Target.check`."""
        self._prove_that_search_filters(api, "phone")
        listed = api.call("GET", CONTACTS, headers=self._headers)
        for person in self._people(listed) if listed.ok else []:
            if person.phone:
                if person.id not in {hit.id for hit in self._look_up(api, "phone", person.phone)}:
                    raise Refused(
                        "Clerk Chat's search by phone does not find a contact that is there, so bridge would make "
                        "duplicates. Check phone_parameter and email_parameter."
                    )
                return "Clerk Chat takes the key, and its search finds contacts by phone."
        return "Clerk Chat takes the key; with no contact to look for, its search could not be tried."

    # --- finding ---

    def _find(self, api: Api, job: Job, stored: str | None) -> Person | None:
        """Return the contact, freshly read, or None when it is certainly not there."""
        if stored is not None:
            keys = [*_keys(job.desired.fields), *_keys(job.accepted or {})]
            if read := self._read(api, stored, keys):
                return read
        found = self._find_by_key(api, job)
        if found is None and stored is not None:
            # Deleted, or given another phone and e-mail by hand, or not in the index yet. Making a new one could
            # be a duplicate, and writing without having read would drop whatever other people keep in ``data``.
            raise Retryable(
                "Clerk Chat shows no contact with the phone or e-mail bridge knows, though it is linked: it was "
                "deleted or changed there. Give one contact there the CRM's phone; bridge then takes it.",
                code="missing",
            )
        return found

    def _read(self, api: Api, target_id: str, keys: Iterable[tuple[str, str]]) -> Person | None:
        """Return the contact *target_id*, looked for by each of *keys*: there is no reading by id."""
        for kind, value in dict.fromkeys(keys):
            for person in self._look_up(api, kind, value):
                if person.id == target_id:
                    return person
        return None

    def _find_by_key(self, api: Api, job: Job) -> Person | None:
        """Return the one contact with exactly the desired phone, else with exactly the e-mail.

        Raises:
            Ambiguous: several have it, or the one with the e-mail has another phone.
            Refused: the search does not search, so that "not found" means nothing.
        """
        phone = job.desired.fields.get("phone")
        for kind, value in _keys(job.desired.fields):
            hits = self._look_up(api, kind, value)
            exact = {person.id: person for person in hits if person.holds(kind, value)}
            if len(exact) > 1:
                raise Ambiguous(f"{len(exact)} contacts in Clerk Chat have this {_word(kind)}.")
            for person in exact.values():
                if isinstance(phone, str) and phone and person.phone and not person.holds("phone", phone):
                    raise Ambiguous(
                        "A contact in Clerk Chat has this e-mail address but another phone number; they may be "
                        "two people."
                    )
                return person
            if any(_plain(kind, value) not in _plain(kind, getattr(hit, kind)) for hit in hits):
                self._prove_that_search_filters(api, kind)
        return None

    def _look_up(self, api: Api, kind: str, value: str) -> list[Person]:
        """Return what the search finds, which may be more than what matches exactly."""
        parameter = self.settings.phone_parameter if kind == "phone" else self.settings.email_parameter
        reply = api.call("GET", CONTACTS, query={parameter: value}, headers=self._headers)
        if reply.status in {404, 405}:
            raise Refused("Clerk Chat has no contact search at this address. Check api_base.", status=reply.status)
        if not reply.ok:
            _refuse(reply, value, doing=f"searching by {_word(kind)}")
        return self._people(reply)

    def _prove_that_search_filters(self, api: Api, kind: str) -> None:
        """Search for nobody. Hits mean that the search lists everybody, or at least not whom it is asked for.

        Raises:
            Refused: it does.
        """
        if self._look_up(api, kind, NOBODY[kind]):
            raise Refused(
                f"Clerk Chat's search by {_word(kind)} also lists people who do not have it, so bridge cannot "
                "know who is missing and creates nobody. Check phone_parameter and email_parameter."
            )

    def _people(self, reply: Reply) -> list[Person]:
        body = reply.json()
        listed = body.get("data") if isinstance(body, dict) else None
        if not isinstance(listed, list):
            raise _nonsense(reply)
        return [_person(raw, reply) for raw in listed]

    # --- writing ---

    def _create(self, api: Api, job: Job) -> tuple[Person, bool]:
        """Create the contact and link it; return it as read afterwards, and whether it is new."""
        fields = job.desired.fields
        body = {name: fields[name] for name in ("name", "phone", "email") if not _blank(fields.get(name))}
        if not body.keys() & {"phone", "email"}:
            raise Permanent("A contact in Clerk Chat needs a phone number or an e-mail address.")
        body["public"] = fields.get("public") if fields.get("public") is not None else self.settings.public
        own = {name: value for name, value in _data_of(fields).items() if not _blank(value)}
        body["data"] = {**_marks(job.key), **own}
        reply = api.call("POST", CONTACTS, json=body, headers=self._headers, creates=True)
        if reply.status == 409:
            existing = self._find_by_key(api, job)
            if existing is None:
                _refuse(reply, body, doing="creating the contact")
            job.link(existing.id)
            return existing, False
        if not reply.ok:
            _refuse(reply, body, doing="creating the contact")
        made = self._one(reply)
        job.link(made.id)
        read = self._read(api, made.id, [*_keys(fields), *_keys({"phone": made.phone, "email": made.email})])
        if read is None:
            raise Refused(
                "Clerk Chat's search does not show the contact that bridge just created there. Bridge looks "
                "again; if this goes on, check phone_parameter and email_parameter.",
                code="unsearchable",
                tries=UNSEARCHABLE_TRIES,
            )
        # Some platforms answer a create with the contact that was there already: then it differs from ours.
        return read, not _differences(self._as_sent(made.id, body), read)

    def _as_sent(self, target_id: str, body: Mapping[str, Any]) -> Person:
        texts = {name: str(body.get(name, "")) for name in ("name", "email", "phone")}
        return Person(target_id, **texts, public=body["public"], opted_out=False, data=body["data"])

    def _update(self, api: Api, job: Job, current: Person, *, created: bool) -> Receipt:
        """Bring *current* to the desired state; write only if something differs."""
        wanted, notes = _merge(job, current, created=created)
        renumbered = not wanted.holds("phone", current.phone)
        if renumbered and self.settings.update_phone:
            self._prove_nobody_has_it(api, current, wanted.phone)
        elif renumbered:
            wanted = replace(wanted, phone=current.phone)
        held, outcome = current, "created" if created else "unchanged"
        if _differences(wanted, current):
            held, outcome = self._write(api, current, wanted, notes), "updated"
        if renumbered and not self.settings.update_phone:
            problem = (
                "The phone number differs from the CRM's, and bridge may not change it in Clerk Chat. All the "
                "rest is up to date. Change it there by hand, or set update_phone if this account's API takes it."
            )
            if not held.opted_out:
                raise Permanent(problem, code="phone_changed")
            notes.append(problem)  # that the person opted out is the more important news
        if job.desired.opt_out and not held.opted_out:
            notes.append(
                "Clerk Chat's API cannot set an opt-out: bridge noted it in the contact's data, and somebody has "
                "to block the contact in Clerk Chat."
            )
        accepted = {
            name: value if _same(name, held.value(name), value) else held.value(name)
            for name, value in job.desired.fields.items()
        }
        return Receipt(outcome, held.id, accepted, opted_out=held.opted_out, notes=tuple(notes))

    def _prove_nobody_has_it(self, api: Api, current: Person, phone: str) -> None:
        others = [p for p in self._look_up(api, "phone", phone) if p.id != current.id and p.holds("phone", phone)]
        if others:
            raise Ambiguous("The CRM's new phone number belongs to another contact in Clerk Chat already.")

    def _write(self, api: Api, current: Person, wanted: Person, notes: list[str]) -> Person:
        """Put the whole contact, read it again, and return it as it is then. *notes* gets what was odd.

        Raises:
            Permanent: Clerk Chat took the call but not the values, or lost an opt-out. _Gone: it knows no such id.
        """
        with_phone = self.settings.update_phone
        answered = self._put(api, wanted, with_phone=with_phone)
        if answered and wanted.phone and not answered.phone and not with_phone:
            # The newer API, and it replaces: what the older one refuses has to be sent to it.
            with_phone = True
            answered = self._put(api, wanted, with_phone=with_phone)
            notes.append(
                "Clerk Chat dropped the phone number in an update, and bridge put it back: set update_phone."
            )
        held = self._proof(api, current, wanted)
        kept = held.data.keys() & (current.data.keys() - wanted.data.keys())
        if kept:  # this account merges ``data``: what is left out stays, so it has to be blanked
            wanted = replace(wanted, data={**wanted.data, **dict.fromkeys(kept, "")})
            answered = self._put(api, wanted, with_phone=with_phone)
            held = self._proof(api, current, wanted)
        wrong = _differences(wanted, held)
        if wrong and answered and _differences(wanted, answered):
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

    def _put(self, api: Api, wanted: Person, *, with_phone: bool) -> Person | None:
        """Write *wanted* and return the contact as answered, if the answer shows it."""
        body: dict[str, Any] = {"name": wanted.name, "email": wanted.email, "public": wanted.public}
        if with_phone:
            body["phone"] = wanted.phone
        # Leaving out what is blank anyway changes nothing, whether PUT merges or replaces.
        body = {name: value for name, value in body.items() if not _blank(value)} | {"data": dict(wanted.data)}
        reply = api.call("PUT", f"{CONTACTS}/{segment(wanted.id)}", json=body, headers=self._headers)
        if reply.status == 404:
            raise _Gone
        if not reply.ok:
            _refuse(reply, body, doing="updating the contact")
        try:
            return self._one(reply)
        except Retryable:
            return None  # an answer we cannot read proves nothing; the contact is read again anyway

    def _proof(self, api: Api, current: Person, wanted: Person) -> Person:
        """Read the contact after a write.

        Raises:
            Permanent: it held an opt-out before and holds none now. Retryable: it cannot be read.
        """
        keys = [pair for one in (wanted, current) for pair in _keys({"phone": one.phone, "email": one.email})]
        held = self._read(api, wanted.id, keys)
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

    def _one(self, reply: Reply) -> Person:
        body = reply.json()
        return _person(body.get("data") if isinstance(body, dict) else None, reply)

    @property
    def _headers(self) -> dict[str, str]:
        return {"apiKey": self.settings.api_key.reveal()}


def _merge(job: Job, current: Person, *, created: bool) -> tuple[Person, list[str]]:
    """Return what the contact should become, and notes for a person. Pure."""
    notes: list[str] = []
    changes: dict[str, Any] = {}
    data = dict(current.data)
    if _blank(data.get(BRIDGE)) and _blank(data.get(CRM_ID)):
        data.update(_marks(job.key))
    elif data.get(BRIDGE) == job.key.source and f"data.{CRM_ID}" not in job.desired.fields:
        data[CRM_ID] = job.key.source_id  # another source's mark, or a person's, is left alone
    for name, value in job.desired.fields.items():
        if not _applies(job.desired.mode(name), current.value(name), created=created):
            continue
        if _same(name, current.value(name), value):
            continue
        if name.startswith("data."):
            key = name.removeprefix("data.")
            if key == CRM_OPT_OUT and data.get(key) and not value:
                notes.append(f"{name} is left as it is: bridge never takes an opt-out back.")
            elif _blank(value):
                del data[key]
            else:
                data[key] = value
        elif _blank(value):
            notes.append(f"{name} is left as it is: Clerk Chat has no sure way to clear it.")
        else:
            changes[name] = value
    if job.desired.opt_out:
        data[CRM_OPT_OUT] = True
    return replace(current, **changes, data=data), notes


def _applies(mode: Mode, current: Value, *, created: bool) -> bool:
    if mode is Mode.IF_BLANK:
        return _blank(current)
    return mode is Mode.ALWAYS or created


def _marks(key: RecordKey) -> dict[str, str]:
    return {CRM_ID: key.source_id, BRIDGE: key.source}


def _data_of(fields: Mapping[str, Value]) -> dict[str, Value]:
    return {name.removeprefix("data."): value for name, value in fields.items() if name.startswith("data.")}


def _differences(wanted: Person, held: Person) -> list[str]:
    """Return the names of the fields in which *held* is not what was *wanted*."""
    names = [name for name in ("name", "email", "phone", "public") if not _blank(wanted.value(name))]
    names += [f"data.{key}" for key in sorted(wanted.data.keys() | held.data.keys())]
    return [name for name in names if not _same(name, held.value(name), wanted.value(name))]


def _same(name: str, one: Value, other: Value) -> bool:
    """Compare two values of a field; blanks are alike, and so are spellings that mean the same."""
    if _blank(one) or _blank(other):
        return _blank(one) and _blank(other)
    if name in {"name", "email", "phone"}:
        return _plain(name, str(one)) == _plain(name, str(other))
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return one == other or (isinstance(one, str | int | float) and str(one) == str(other))


def _plain(kind: str, text: str) -> str:
    if kind == "phone":
        return re.sub(r"[^\d+]", "", text)
    return text.strip().casefold() if kind == "email" else " ".join(text.split())


def _blank(value: object) -> bool:
    return value is None or value in ("", [])


def _keys(fields: Mapping[str, Value]) -> list[tuple[str, str]]:
    """Return what the contact can be searched by, the phone first."""
    found = ((kind, fields.get(kind)) for kind in ("phone", "email"))
    return [(kind, value) for kind, value in found if isinstance(value, str) and value]


def _word(kind: str) -> str:
    return "phone number" if kind == "phone" else "e-mail address"


def _person(raw: Any, reply: Reply) -> Person:
    """Read one contact.

    Raises:
        Retryable: it is none, or not all of it.
    """
    if not isinstance(raw, dict) or not raw.keys() >= WHOLE or not isinstance(raw["data"] or {}, dict):
        raise _nonsense(reply)
    texts = {name: str(raw[name] or "") for name in ("name", "email", "phone")}
    public = raw["public"] if isinstance(raw["public"], bool) else None
    opted_out = raw.get("optOut") not in (None, False, "", 0, "false")
    return Person(str(raw["id"]), **texts, public=public, opted_out=opted_out, data=raw["data"] or {})


def _nonsense(reply: Reply) -> Retryable:
    return Retryable(
        f"Clerk Chat's answer (HTTP {reply.status}) does not show whole contacts, so nothing can be compared.",
        code="nonsense",
        status=reply.status,
        maybe_done=True,
    )


def _refuse(reply: Reply, sent: object, *, doing: str) -> NoReturn:
    """Raise what an error means. Their shape is undocumented; clients look for error, message and code."""
    body = reply.json_or_none()
    body = body if isinstance(body, dict) else {}
    said = body.get("error")
    candidates = [
        *(said.values() if isinstance(said, dict) else [said]),
        *(body["message"] if isinstance(body.get("message"), list) else [body.get("message")]),
        body.get("code"),
    ]
    lines = dict.fromkeys(line for line in (quotable(text, sent) for text in candidates) if line)
    fail(TITLE, reply, doing=doing, detail="; ".join(lines))


TARGET = TargetType(
    name="clerk_chat",
    title=TITLE,
    settings=Settings,
    fields=(
        TargetField("name", clearable=False, help="The whole name: Clerk Chat has only one."),
        TargetField("phone", FieldKind.PHONE, clearable=False, help="What contacts are found by first."),
        TargetField("email", FieldKind.EMAIL, clearable=False, help="What contacts without a phone are found by."),
        TargetField("public", FieldKind.BOOLEAN, clearable=False, help="Visible to the whole team."),
        TargetField("data.*", FieldKind.ANY, help="Any key of the contact's free data."),
    ),
    identities=(("phone",), ("email",)),
    lanes=1,
    rate_per_s=2,
    burst=1,
    make=ClerkChat,
    base_url=lambda settings: str(settings.api_base),
    can_remove=False,
    can_opt_out=False,
)
