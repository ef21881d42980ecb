"""Artu: a compliance register. What bridge writes are contact methods (one address or number) of its clients.

A client is found, never guessed; methods that people entered are never changed; and every write names the methods
it is about, because a sync that replaces would remove all others:
https://docs.artu.ai/api-reference/contact-methods/sync-contact-methods-for-a-client
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NoReturn

from bridge.errors import Ambiguous, Permanent, Refused, Retryable
from bridge.model import Mode, Receipt, RecordKey, Secret, Value
from bridge.outbound import Api, Reply, segment
from bridge.targets.base import FieldKind, Job, TargetField, TargetType, fail, quotable

TITLE = "Artu"
METHODS = ("email", "phone", "mobile", "fax", "other")
# Fields that say which client; they are used to find or create one, and nothing of them is ever updated.
NAMES = {"client_name": "name", "client_middle_name": "middleName", "client_last_name": "lastName"}
CLIENT_FIELDS = frozenset({"client_id", "client_external_id", *NAMES})
LIST = "/contact-methods/list"
SYNC_LIMIT = 250  # items a call
PAGE = 200  # rows a page
MOST_PAGES = 50  # of one list; more means that the platform does not filter
MARK = "bridge"  # the key of a client's metadata by which one that bridge created is found again

NO_CLIENT = "No Artu client fits this person, and bridge creates none unless create_clients is set."
STAFF_HAS_IT = "{}: the client has it already, in a contact method that bridge did not make and leaves as it is."
NOT_FOR_OPTED_OUT = "{}: not added, since the person opted out."
NO_ROOM = "metadata: left out, since the client has no contact method of bridge's own to keep it in."


@dataclass(frozen=True, slots=True)
class Settings:
    """The section of an Artu target."""

    api_key: Secret = field(metadata={"help": "An API key with rights to list and update contact methods."})
    environment: Literal["test", "live"] = field(
        metadata={"help": "Which register is written to: test or live. There is no default on purpose."}
    )
    api_base: str = field(
        default="https://api.artu.ai", metadata={"help": "Where the API is; for tests and proxies."}
    )
    create_clients: bool = field(
        default=False,
        metadata={"help": "Create a client for a person who has none. Needs a rule for client_name."},
    )
    client_type: Literal["individual", "company", "trust"] = field(
        default="individual", metadata={"help": "What kind of client bridge creates."}
    )
    client_metadata_key: str = field(
        default="",
        metadata={"help": "Look client_external_id up in this key of the clients' metadata, not as external id."},
    )
    external_id_prefix: str = field(
        default="crm", metadata={"help": "How the external ids of bridge's contact methods begin."}
    )
    phone_type: Literal["phone", "mobile"] = field(
        default="phone", metadata={"help": "The type of contact method that the field phone becomes."}
    )
    mobile_type: Literal["mobile", "phone"] = field(
        default="mobile", metadata={"help": "The type of contact method that the field mobile becomes."}
    )


@dataclass(frozen=True, slots=True)
class Method:
    """A contact method, as Artu holds it or as it should be. An *id* of "" is one that is to be made."""

    id: str
    client_id: str
    type: str
    value: str
    is_primary: bool
    label: str
    external_id: str
    metadata: Mapping[str, Any]

    def reaches(self, kind: str, value: str) -> bool:
        """Say whether it is this address or number; ``phone`` and ``mobile`` are both telephones."""
        return _family(self.type) == _family(kind) and _plain(self.value) == _plain(value)

    def says(self, other: Method) -> bool:
        """Say whether it says the same as *other*, whichever is primary."""
        return (
            (self.type, _plain(self.value), self.label, self.external_id)
            == (other.type, _plain(other.value), other.label, other.external_id)
        ) and _filled(self.metadata) == _filled(other.metadata)

    def item(self) -> dict[str, Any]:
        """Return it as a sync writes it: whole, since what an update leaves out may be reset."""
        known = {"id": self.id} if self.id else {}
        label = {"label": self.label} if self.label else {}
        return {
            **known,
            "externalId": self.external_id,
            "type": self.type,
            "value": self.value,
            "isPrimary": self.is_primary,
            **label,
            "metadata": dict(self.metadata),
        }

    def deletion(self) -> dict[str, Any]:
        return {"id": self.id, "type": self.type, "value": self.value, "_delete": True}


@dataclass(frozen=True, slots=True)
class Client:
    """Which client a push is about. *searched*: bridge's own methods are known to be nowhere else."""

    id: str
    created: bool = False
    searched: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What one push is to change of a client's methods."""

    writes: tuple[Method, ...] = ()
    deletes: tuple[Method, ...] = ()
    clears: frozenset[str] = frozenset()  # metadata keys that must end up blank
    notes: tuple[str, ...] = ()


class _Gone(Exception):
    """Artu knows no such client, or no such method any more."""


class _Moved(Exception):
    """Somebody else wrote at the same time."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.status)
        self.reply = reply


@dataclass(frozen=True, slots=True)
class Artu:
    """One register: an account's test or live environment."""

    settings: Settings

    def deliver(self, api: Api, job: Job) -> Receipt:
        """Make the client hold the desired contact methods; see `Target.deliver`. The target id is the client's.

        Raises:
            Ambiguous: several clients fit, or bridge's own methods of this person belong to another one.
        """
        stored = job.target_id
        for _ in range(2):
            client = self._resolve(api, job, stored)
            if client is None:
                wanted = job.desired.create and not job.desired.opt_out
                return Receipt("absent", notes=(NO_CLIENT,) if wanted else ())
            if client.created:
                job.link(client.id)
            try:
                return self._update(api, job, client)
            except _Gone:
                if client.id == job.desired.fields.get("client_id"):
                    raise Permanent(
                        f"Artu's {self.settings.environment} environment has no client with this client_id."
                    ) from None
                stored = None  # removed there: resolve anew, once
        raise Retryable("Artu lists contact methods of a client that it then does not know.", code="missing")

    def remove(self, api: Api, job: Job) -> Receipt:
        """Delete bridge's own contact methods of the person; the client and all other methods stay."""
        removed = False
        for last in (False, True):
            listed = self._of_client(api, job.target_id) if job.target_id else self._mine_anywhere(api, job.key)
            mine = [method for method in listed if method.external_id.startswith(self._mark(job.key) + ":")]
            removed = removed or bool(mine)
            try:
                for client_id in {method.client_id for method in mine}:
                    plan = Plan(deletes=tuple(method for method in mine if method.client_id == client_id))
                    self._apply(api, client_id, plan)
                break
            except _Moved as moved:
                if last:
                    _refuse(moved.reply, None, doing="deleting contact methods")
            except _Gone:
                continue  # one of them, or the client: look again what is left
        return Receipt("removed" if removed or job.target_id else "absent", job.target_id)

    def check(self, api: Api) -> str:
        """List one contact method. See `Target.check`."""
        _rows(self._post(api, LIST, {"limit": 1}, doing="listing contact methods"))
        return f"Artu takes the key for its {self.settings.environment} environment."

    # --- which client ---

    def _resolve(self, api: Api, job: Job, stored: str | None) -> Client | None:
        """Return the client, found or created, or None when there is none and none may be created."""
        named = self._named(api, job, stored)
        if stored is not None:
            if named in {None, stored}:
                return Client(stored)
            if self._exists(api, stored):
                raise Ambiguous("The CRM now names another Artu client than the one this contact is linked to.")
        if named is not None:
            return Client(named)
        found = self._find(api, job)
        if found is not None:
            return Client(found, searched=True)
        if not self.settings.create_clients or not job.may_create():
            return None
        return self._create(api, job)

    def _named(self, api: Api, job: Job, stored: str | None) -> str | None:
        """Return the client that the CRM names: by its id, or by an external id other than the one before."""
        fields, before = job.desired.fields, (job.accepted or {}).get("client_external_id")
        if client_id := fields.get("client_id"):
            return str(client_id)
        external = fields.get("client_external_id")
        if stored is not None and external and before and external != before:
            return self._client_by_external_id(api, str(external))
        return None

    def _exists(self, api: Api, client_id: str) -> bool:
        """https://docs.artu.ai/api-reference/contact-methods/get-primary-contact-method-for-a-client ."""
        path = f"/clients/{segment(client_id)}/contact-methods/primary/email"
        reply = api.call("GET", path, headers=self._headers)
        if not reply.ok and reply.status != 404:
            _refuse(reply, None, doing="looking a client up")
        return reply.ok

    def _find(self, api: Api, job: Job) -> str | None:
        """Return the one client that is certainly this person's, by the strongest evidence there is.

        Raises:
            Ambiguous: evidence of one strength points to several clients, or against what the CRM names.
        """
        fields = job.desired.fields
        names = [name for name in METHODS if not _blank(fields.get(name))]
        if owner := _only_owner(self._mine_anywhere(api, job.key, names), "bridge's own methods of this person"):
            return owner
        external = fields.get("client_external_id")
        if external and (found := self._client_by_external_id(api, str(external))):
            return found
        if self.settings.create_clients and (found := self._client_by_metadata(api, MARK, self._mark(job.key))):
            return found
        holders = [
            method
            for name in names
            if name in {"email", "phone", "mobile"}
            for method in self._list(api, {"value": fields[name]})
            if method.reaches(name, str(fields[name]))
        ]
        owner = _only_owner(holders, "the person's e-mail address and phone numbers")
        if owner and external:
            # Families and firms share addresses; the CRM says that it means somebody else.
            raise Ambiguous("A client in Artu has the person's address or number, but not the external id.")
        return owner

    def _mine_anywhere(self, api: Api, key: RecordKey, names: Iterable[str] = METHODS) -> list[Method]:
        wanted = [self._external_id(key, name) for name in names]
        return [m for one in wanted for m in self._list(api, {"externalId": one}) if m.external_id == one]

    def _client_by_external_id(self, api: Api, external_id: str) -> str | None:
        if self.settings.client_metadata_key:
            return self._client_by_metadata(api, self.settings.client_metadata_key, external_id)
        sent = {"filter": {"externalId": external_id}, "limit": PAGE}
        reply = api.call("POST", "/clients/list", json=sent, headers=self._headers)
        if reply.status in {404, 405}:
            raise Permanent(
                "Artu cannot look clients up by external id here. Set client_metadata_key, or use client_id.",
                status=reply.status,
            )
        if not reply.ok:
            _refuse(reply, sent, doing="looking a client up by its external id")
        ids = {str(row["id"]) for row in _rows(reply)[0] if row.get("id") and row.get("externalId") == external_id}
        if len(ids) > 1:
            raise Ambiguous(f"{len(ids)} clients in Artu have this external id.")
        return next(iter(ids), None)

    def _client_by_metadata(self, api: Api, key: str, value: str) -> str | None:
        """https://docs.artu.ai/api-reference/clients/retrieve-a-client-by-metadata-key-value ."""
        path = f"/clients/metadata/{segment(key)}/{segment(value)}"
        reply = api.call("GET", path, headers=self._headers)
        if reply.status == 404 or (reply.ok and reply.json() is None):
            return None
        if not reply.ok:
            _refuse(reply, value, doing="looking a client up by its metadata")
        client = _client(reply)
        held = client.get("metadata")
        return str(client["id"]) if isinstance(held, dict) and str(held.get(key)) == value else None

    def _create(self, api: Api, job: Job) -> Client:
        """Create the client, without any contact method yet, marked so that it can be found again."""
        fields = job.desired.fields
        names = {theirs: fields[ours] for ours, theirs in NAMES.items() if fields.get(ours)}
        if "name" not in names:
            raise Permanent("A new client in Artu needs a name: add a rule for client_name.")
        external = fields.get("client_external_id") or self._mark(job.key)
        metadata = {MARK: self._mark(job.key)}
        if self.settings.client_metadata_key:
            metadata[self.settings.client_metadata_key] = str(external)
        body = {"type": self.settings.client_type, **names, "externalId": external, "metadata": metadata}
        reply = api.call("POST", "/clients", json=body, headers=self._headers, creates=True)
        if reply.status == 409 and (found := self._find(api, job)):
            return Client(found, searched=True)
        if not reply.ok:
            _refuse(reply, body, doing="creating a client")
        return Client(str(_client(reply)["id"]), created=True, searched=True)

    # --- its methods ---

    def _update(self, api: Api, job: Job, client: Client) -> Receipt:
        """Read the client's methods, write what differs, read them again.

        Raises:
            _Gone: Artu does not know the client.
        """
        for last in (False, True):
            methods = self._of_client(api, client.id)
            if client.id != job.target_id:
                self._prove_it_is_free(job.key, methods)
                job.link(client.id)
            plan = self._plan(job, client.id, methods)
            if not client.searched:
                self._prove_they_are_nowhere_else(api, client.id, plan, methods)
            try:
                held = self._apply(api, client.id, plan) if plan.writes or plan.deletes else methods
                break
            except _Moved as moved:
                if last:
                    _refuse(moved.reply, None, doing="updating contact methods")
            except _Gone:
                if last or not methods:
                    raise
                # Perhaps only a method is gone that somebody deleted meanwhile: read again.
        changed = bool(plan.writes or plan.deletes)
        outcome = "created" if client.created else "updated" if changed else "unchanged"
        return Receipt(outcome, client.id, self._accepted(job, client.id, held), notes=plan.notes)

    def _prove_it_is_free(self, key: RecordKey, methods: Sequence[Method]) -> None:
        """Before the first write to a client: no other record of the same CRM may have methods there.

        Raises:
            Ambiguous: one has, so two records would take turns in overwriting each other.
        """
        if any(
            self._is_own(key, one) and not one.external_id.startswith(self._mark(key) + ":") for one in methods
        ):
            raise Ambiguous("This client in Artu holds contact methods of another record of the same CRM.")

    def _prove_they_are_nowhere_else(
        self, api: Api, client_id: str, plan: Plan, methods: Sequence[Method]
    ) -> None:
        """Before methods are added: bridge's external ids must not be another client's already.

        Raises:
            Ambiguous: they are. _Gone: they are, and *client_id* is no client any more.
        """
        for external_id in (method.external_id for method in plan.writes if not method.id):
            listed = self._list(api, {"externalId": external_id})
            if any(method.external_id == external_id and method.client_id != client_id for method in listed):
                if not methods and not self._exists(api, client_id):
                    raise _Gone
                raise Ambiguous("Bridge's own contact methods of this person belong to another client in Artu.")

    def _plan(self, job: Job, client_id: str, methods: Sequence[Method]) -> Plan:
        """Say what has to change of *methods*, all that the client has. Pure."""
        fields = job.desired.fields
        writes: list[Method] = []
        deletes: list[Method] = []
        clears: set[str] = set()
        notes: list[str] = []
        for name in METHODS:
            rows = self._own(job.key, name, methods)
            now = rows[0] if rows else None
            deletes += rows[1:]  # what an accident made twice
            if now and name in fields and _blank(fields[name]):
                deletes.append(now)
                continue
            base = now or self._new(job, client_id, name, [*methods, *writes], notes)
            if base is None:
                continue
            wanted = self._wanted(job, name, base, methods)
            if now is None or not wanted.says(now):
                writes.append(wanted)
                clears |= base.metadata.keys() - wanted.metadata.keys()
        metadata = _metadata_of(fields)
        if metadata and not self._kept(job.key, methods, writes, deletes):
            notes.append(NO_ROOM)
        if job.desired.opt_out:
            shown = (
                "it is kept in metadata.optOut"
                if "optOut" in metadata
                else "a rule can keep it in metadata.optOut"
            )
            notes.append(f"Artu has no opt-out, so nothing there stops messages to this person; {shown}.")
        return Plan(tuple(writes), tuple(deletes), frozenset(clears), tuple(notes))

    def _new(
        self, job: Job, client_id: str, name: str, others: Sequence[Method], notes: list[str]
    ) -> Method | None:
        """Return the method to add for the field *name*; None, perhaps with a note, if none is to be added."""
        value, kind, mode = job.desired.fields.get(name), self._type(name), job.desired.mode(name)
        if _blank(value):
            return None
        if mode is Mode.CREATE_ONLY and job.accepted is not None:
            return None
        if mode is Mode.IF_BLANK and any(method.type == kind for method in others):
            return None
        twins = [method for method in others if method.reaches(kind, str(value))]
        if twins:
            notes += [STAFF_HAS_IT.format(name)] * (not any(self._is_own(job.key, twin) for twin in twins))
            return None
        if job.desired.opt_out:
            notes.append(NOT_FOR_OPTED_OUT.format(name))
            return None
        primary = not any(method.is_primary and method.type == kind for method in others)
        return Method("", client_id, kind, str(value), primary, "", self._external_id(job.key, name), {})

    def _wanted(self, job: Job, name: str, base: Method, methods: Sequence[Method]) -> Method:
        """Return what the method of the field *name* should become, from what it is."""
        fields = job.desired.fields
        value, label, kind = fields.get(name), fields.get(f"{name}.label"), self._type(name)
        wanted = replace(base, external_id=self._external_id(job.key, name))
        if not _blank(value) and job.desired.mode(name) is Mode.ALWAYS:
            wanted = replace(wanted, value=str(value), type=kind)
            if kind != base.type:  # it must not take the first place from another one of its new type
                taken = any(method.is_primary and method.type == kind for method in methods)
                wanted = replace(wanted, is_primary=base.is_primary and not taken)
        if not _blank(label) and self._applies(job, f"{name}.label", base, base.label):
            wanted = replace(wanted, label=str(label))
        metadata = dict(base.metadata)
        for key, item in _metadata_of(fields).items():
            if not self._applies(job, f"metadata.{key}", base, metadata.get(key)):
                continue
            if key == "optOut" and job.desired.opt_out and metadata.get(key) and not item:
                continue  # a rule that contradicts the opt-out does not lift it
            if _blank(item):
                metadata.pop(key, None)
            else:
                metadata[key] = item
        return replace(wanted, metadata=metadata)

    @staticmethod
    def _applies(job: Job, name: str, base: Method, current: object) -> bool:
        mode = job.desired.mode(name)
        if mode is Mode.IF_BLANK:
            return _blank(current)
        return mode is Mode.ALWAYS or not base.id

    def _apply(self, api: Api, client_id: str, plan: Plan) -> list[Method]:
        """Send *plan*, read the methods again, and return them.

        Raises:
            Permanent: Artu took the call but not the values. Retryable: it does not show them yet.
            _Moved, _Gone: it answered 409 or 404.
        """
        answered = self._sync(api, client_id, plan)
        held = self._of_client(api, client_id)
        if blanked := _blanked(plan, held):
            self._sync(api, client_id, Plan(writes=blanked))
            held = self._of_client(api, client_id)
        wrong = _not_done(plan, held)
        if not wrong:
            return held
        if _not_done(plan, answered):
            raise Permanent(
                f"Artu answered that it updated the client, but does not take: {', '.join(wrong)}.",
                code="not_taken",
            )
        raise Retryable(
            f"Artu does not show the new contact methods yet: {', '.join(wrong)}. Bridge looks again.",
            code="unverified",
        )

    def _sync(self, api: Api, client_id: str, plan: Plan) -> list[Method]:
        """Write and delete the methods of *plan*, and no others; return those that Artu says it holds now."""
        items = [*(method.item() for method in plan.writes), *(method.deletion() for method in plan.deletes)]
        answered: list[Method] = []
        deleted: set[str] = set()
        for start in range(0, len(items), SYNC_LIMIT):
            body: dict[str, Any] = {"replaceMode": False, "items": items[start : start + SYNC_LIMIT]}
            path = f"/clients/{segment(client_id)}/contact-methods/sync"
            reply = api.call("POST", path, json=body, headers=self._headers)
            if reply.status == 404:
                raise _Gone
            if reply.status == 409:
                raise _Moved(reply)
            if not reply.ok:
                _refuse(
                    reply, [{**item, "type": None} for item in body["items"]], doing="updating contact methods"
                )
            said = reply.json()
            if not isinstance(said, dict):
                raise _nonsense(reply)
            rows = [
                row for name in ("created", "updated") if isinstance(said.get(name), list) for row in said[name]
            ]
            answered += [_method(row, reply) for row in rows]
            deleted |= set(map(str, said["deleted"])) if isinstance(said.get("deleted"), list) else set()
        # What was to be deleted and is not said to be is taken as still there.
        return answered + [method for method in plan.deletes if method.id not in deleted]

    def _accepted(self, job: Job, client_id: str, held: Sequence[Method]) -> dict[str, Value]:
        """Return what the client holds of the desired fields, in the shapes of the rules."""
        accepted: dict[str, Value] = {}
        own = {name: rows[0] for name in METHODS if (rows := self._own(job.key, name, held))}
        for name, value in job.desired.fields.items():
            method_name, _, part = name.partition(".")
            if name in CLIENT_FIELDS:
                accepted[name] = client_id if name == "client_id" else value
            elif method_name == "metadata":
                first = next(iter(own.values()), None)
                accepted[name] = _as_desired(value, first.metadata.get(part) if first else None)
            else:
                wanted = value if not part else job.desired.fields.get(method_name)
                twins = (method for method in held if method.reaches(self._type(method_name), str(wanted)))
                method = own.get(method_name) or next(twins, None)
                shown = (method.label if part else method.value) if method else None
                accepted[name] = _as_desired(value, shown)
        return accepted

    # --- whose they are ---

    def _mark(self, key: RecordKey) -> str:
        """Return what stands for the contact in Artu. Its parts are encoded: a colon in one is none of ours."""
        return f"{self.settings.external_id_prefix}:{segment(key.source)}:{segment(key.source_id)}"

    def _external_id(self, key: RecordKey, name: str) -> str:
        return f"{self._mark(key)}:{name}"

    def _is_own(self, key: RecordKey, method: Method) -> bool:
        """Say whether bridge made it for this source.

        A client is linked to one contact of a source (`_prove_it_is_free`), so a method with another contact's id
        is that of a record which was merged into this one.
        """
        return method.external_id.startswith(f"{self.settings.external_id_prefix}:{segment(key.source)}:")

    def _own(self, key: RecordKey, name: str, methods: Sequence[Method]) -> list[Method]:
        """Return bridge's methods for the field *name*, the one to keep first."""
        exact = self._external_id(key, name)
        rows = [m for m in methods if self._is_own(key, m) and m.external_id.endswith(f":{name}")]
        return sorted(rows, key=lambda method: (method.external_id != exact, not method.is_primary, method.id))

    def _kept(
        self, key: RecordKey, methods: Sequence[Method], writes: Sequence[Method], deletes: Sequence[Method]
    ) -> bool:
        """Say whether the client has a method of bridge's own after the plan is carried out."""
        return bool(writes) or any(self._is_own(key, method) and method not in deletes for method in methods)

    def _type(self, name: str) -> str:
        own = {"phone": self.settings.phone_type, "mobile": self.settings.mobile_type}
        return own.get(name, name)

    # --- calls ---

    def _of_client(self, api: Api, client_id: str) -> list[Method]:
        return [method for method in self._list(api, {"clientId": client_id}) if method.client_id == client_id]

    def _list(self, api: Api, narrowed: Mapping[str, Value]) -> list[Method]:
        """Return all pages. What the filter lets through is for the caller to compare again.

        https://docs.artu.ai/api-reference/contact-methods/list-contact-methods-with-filtering-and-pagination
        """
        found: list[Method] = []
        body: dict[str, Any] = {"filter": dict(narrowed), "limit": PAGE}
        for _ in range(MOST_PAGES):
            reply = self._post(api, LIST, body, doing="listing contact methods")
            rows, cursor = _rows(reply)
            found += [_method(row, reply) for row in rows]
            if cursor is None:
                return found
            body = {**body, "cursor": cursor}
        raise Refused(
            "Artu's list of contact methods does not end: its filter seems not to work. Bridge writes nothing.",
            code="nonsense",
        )

    def _post(self, api: Api, path: str, body: object, *, doing: str) -> Reply:
        reply = api.call("POST", path, json=body, headers=self._headers)
        if reply.status in {404, 405}:
            raise Refused(
                "Artu has no list of contact methods at this address. Check api_base.", status=reply.status
            )
        if not reply.ok:
            _refuse(reply, body, doing=doing)
        return reply

    @property
    def _headers(self) -> dict[str, str]:
        return {
            "Authorization": f"Bearer {self.settings.api_key.reveal()}",
            "X-Environment": self.settings.environment,
        }


def _only_owner(methods: Iterable[Method], what: str) -> str | None:
    owners = {method.client_id for method in methods}
    if len(owners) > 1:
        raise Ambiguous(f"{len(owners)} clients in Artu have {what}.")
    return next(iter(owners), None)


def _blanked(plan: Plan, held: Sequence[Method]) -> tuple[Method, ...]:
    """Return the rows that still have metadata which was left out, with it blanked: here writes merge."""
    rows = []
    for wanted in plan.writes:
        for row in (row for row in held if row.external_id == wanted.external_id):
            stuck = [key for key in plan.clears - wanted.metadata.keys() if not _blank(row.metadata.get(key))]
            if stuck:
                rows.append(replace(row, metadata={**row.metadata, **dict.fromkeys(stuck, "")}))
    return tuple(rows)


def _not_done(plan: Plan, held: Sequence[Method]) -> list[str]:
    """Return the types of the methods that *held* shows otherwise than planned."""
    wrong = [
        wanted.type
        for wanted in plan.writes
        if not any((not wanted.id or wanted.id == one.id) and wanted.says(one) for one in held)
    ]
    gone = {method.id for method in plan.deletes}
    return wrong + [f"deletion of {one.type}" for one in held if one.id in gone]


def _metadata_of(fields: Mapping[str, Value]) -> dict[str, Value]:
    return {
        name.removeprefix("metadata."): value for name, value in fields.items() if name.startswith("metadata.")
    }


def _as_desired(desired: Value, held: Value) -> Value:
    """Return what is held, spelled as desired where it means the same."""
    if _blank(desired) or _blank(held):
        return desired if _blank(desired) and _blank(held) else held
    if isinstance(desired, str) and isinstance(held, str) and _plain(desired) == _plain(held):
        return desired
    return held


def _filled(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metadata.items() if not _blank(value)}


def _blank(value: object) -> bool:
    return value is None or value in ("", [])


def _family(kind: str) -> str:
    return "phone" if kind == "mobile" else kind


def _plain(value: str) -> str:
    """Return *value* in the one form in which addresses and numbers are compared."""
    text = value.strip().casefold()
    return re.sub(r"[^\d+]", "", text) if re.fullmatch(r"\+?[\d\s().-]+", text) else text


def _rows(reply: Reply) -> tuple[list[dict[str, Any]], str | None]:
    """Return a page's rows, and the cursor of the next page if there is one.

    Raises:
        Retryable: the answer is no page.
    """
    body = reply.json()
    rows = body.get("data") if isinstance(body, dict) else None
    pages = body.get("pagination") if isinstance(body, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise _nonsense(reply)
    if not isinstance(pages, dict) or not pages.get("hasMore"):
        return rows, None
    if not pages.get("nextCursor"):
        raise _nonsense(reply)  # there is more, and no way to it: "not found" would be a guess
    return rows, str(pages["nextCursor"])


def _method(row: Any, reply: Reply) -> Method:
    texts = ("id", "clientId", "type", "value")
    if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in texts):
        raise _nonsense(reply)
    metadata = row.get("metadata")
    return Method(
        id=row["id"],
        client_id=row["clientId"],
        type=row["type"],
        value=row["value"],
        is_primary=row.get("isPrimary") is True,
        label=str(row.get("label") or ""),
        external_id=str(row.get("externalId") or ""),
        metadata=metadata if isinstance(metadata, dict) else {},
    )


def _client(reply: Reply) -> dict[str, Any]:
    """Read an answer that is one client, wrapped or not."""
    body = reply.json()
    client = body.get("data", body) if isinstance(body, dict) else None
    if not isinstance(client, dict) or not client.get("id"):
        raise _nonsense(reply)
    return client


def _nonsense(reply: Reply) -> Retryable:
    return Retryable(
        f"Artu's answer (HTTP {reply.status}) has not the form it should have.",
        code="nonsense",
        status=reply.status,
        maybe_done=True,
    )


def _refuse(reply: Reply, sent: object, *, doing: str) -> NoReturn:
    """Raise what an error means. Its form is undocumented: code, message and issues where there are any."""
    body = reply.json_or_none()
    if isinstance(body, dict) and isinstance(body.get("error"), dict):
        body = body["error"]
    body = body if isinstance(body, dict) else {}
    lines = [quotable(body.get(name), sent) for name in ("code", "message", "error")]
    issues = body.get("issues")
    for issue in issues if isinstance(issues, list) else []:
        if isinstance(issue, dict):
            path = issue.get("path")
            where = quotable(".".join(map(str, path)), sent) if isinstance(path, list) else ""
            lines.append(": ".join(part for part in (where, quotable(issue.get("message"), sent)) if part))
    fail(TITLE, reply, doing=doing, detail="; ".join(dict.fromkeys(line for line in lines if line)))


def _method_fields() -> tuple[TargetField, ...]:
    kinds = {"email": FieldKind.EMAIL, "other": FieldKind.TEXT}
    values = [TargetField(name, kinds.get(name, FieldKind.PHONE), help="A contact method.") for name in METHODS]
    labels = [TargetField(f"{name}.label", clearable=False, help="Its label, like work.") for name in METHODS]
    return (*values, *labels)


TARGET = TargetType(
    name="artu",
    title=TITLE,
    settings=Settings,
    fields=(
        TargetField("client_id", clearable=False, help="Artu's own id of the client, where the CRM knows it."),
        TargetField("client_external_id", clearable=False, help="The client's external id; it only finds."),
        TargetField("client_name", clearable=False, help="For clients that bridge creates; never updated."),
        TargetField("client_middle_name", clearable=False, help="As client_name."),
        TargetField("client_last_name", clearable=False, help="As client_name."),
        *_method_fields(),
        TargetField("metadata.*", FieldKind.ANY, help="Kept in each of bridge's contact methods of the person."),
    ),
    identities=(("client_id",), ("client_external_id",), ("email",), ("phone",), ("mobile",)),
    lanes=2,
    rate_per_s=5,
    burst=2,
    make=Artu,
    base_url=lambda settings: str(settings.api_base),
    can_opt_out=False,
)
