"""Which client a person is: found by the strongest evidence there is, never guessed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bridge.errors import Ambiguous, Permanent
from bridge.targets.artu.method import METHODS, Method, blank
from bridge.targets.artu.owner import Owner
from bridge.targets.artu.plan import NAMES
from bridge.targets.artu.register import Register
from bridge.targets.base import Job

MARK = "bridge"  # the key of a client's metadata by which one that bridge created is found again
REACHING = frozenset({"email", "phone", "mobile"})  # what can tell who somebody is


@dataclass(frozen=True, slots=True)
class Client:
    """Which client a push is about. *searched*: bridge's own methods are known to be nowhere else."""

    id: str
    created: bool = False
    searched: bool = False


@dataclass(frozen=True, slots=True)
class Finder:
    """Looks for the client of one push. *create*: the kind of client to create, "" to create none."""

    register: Register
    owner: Owner
    job: Job
    metadata_key: str  # where a client's external id is kept; "": in its own field
    create: str

    def resolve(self, stored: str | None) -> Client | None:
        """Return the client, found or created, or None when there is none and none may be created.

        Raises:
            Ambiguous: several clients fit, or the evidence contradicts itself.
        """
        named = self._named(stored)
        if stored is not None:
            if named in {None, stored}:
                return Client(stored)
            if self.register.has_client(stored):
                raise Ambiguous("The CRM now names another Artu client than the one this contact is linked to.")
        if named is not None:
            return Client(named)
        found = self._find()
        if found is not None:
            return Client(found, searched=True)
        if not self.create or not self.job.may_create():
            return None
        return self._create()

    def own_methods(self, names: Iterable[str] = METHODS) -> list[Method]:
        """Return the methods that bridge made for this very record, at whichever client."""
        wanted = [self.owner.external_id(name) for name in names]
        return [
            row for one in wanted for row in self.register.methods("externalId", one) if row.external_id == one
        ]

    def _named(self, stored: str | None) -> str | None:
        """Return the client that the CRM names: by its id, or by an external id other than the one before."""
        fields, before = self.job.desired.fields, self.job.last("client_external_id")
        if client_id := fields.get("client_id"):
            return str(client_id)
        external = fields.get("client_external_id")
        if stored is None or not external or not before or external == before:
            return None
        found = self._by_external_id(str(external))
        if found is None:
            raise Permanent("The CRM now gives another client_external_id, and no client in Artu has it.")
        return found

    def _find(self) -> str | None:
        fields = self.job.desired.fields
        names = [name for name in METHODS if not blank(fields.get(name))]
        if owner := _only_owner(self.own_methods(names), "bridge's own contact methods of this person"):
            return owner
        external = fields.get("client_external_id")
        if external and (found := self._by_external_id(str(external))):
            return found
        if self.create and (found := self.register.client_by_metadata(MARK, self.owner.mark)):
            return found
        holders = [
            method
            for name in names
            if name in REACHING
            for method in self.register.methods("value", str(fields[name]))
            if method.reaches(name, str(fields[name]))
        ]
        owner = _only_owner(holders, "the person's e-mail address or numbers")
        if owner and external:
            # Families and firms share addresses; the CRM says that it means somebody else.
            raise Ambiguous("A client in Artu has the person's address or number, but not the external id.")
        return owner

    def _by_external_id(self, external_id: str) -> str | None:
        if self.metadata_key:
            return self.register.client_by_metadata(self.metadata_key, external_id)
        return self.register.client_by_external_id(external_id)

    def _create(self) -> Client:
        """Create the client, without any contact method yet, marked so that it can be found again."""
        fields = self.job.desired.fields
        names = {theirs: fields[ours] for ours, theirs in NAMES.items() if fields.get(ours)}
        if "name" not in names:
            raise Permanent("A new client in Artu needs a name: add a rule for client_name.")
        external = fields.get("client_external_id") or self.owner.mark
        metadata = {MARK: self.owner.mark}
        if self.metadata_key:
            metadata[self.metadata_key] = str(external)
        body = {"type": self.create, **names, "externalId": external, "metadata": metadata}
        created = self.register.create_client(body)
        if created is not None:
            self.job.link(created)
            return Client(created, created=True, searched=True)
        found = self._find()
        if found is None:
            raise Permanent(
                "Artu says that this client exists, but it is found by nothing the CRM gives.",
                code="conflict",
                status=409,
            )
        return Client(found, searched=True)


def _only_owner(methods: Iterable[Method], what: str) -> str | None:
    owners = {method.client_id for method in methods}
    if len(owners) > 1:
        raise Ambiguous(f"{len(owners)} clients in Artu have {what}.")
    return next(iter(owners), None)
