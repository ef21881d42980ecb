"""One push to one client: read its methods, write what differs, read them again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bridge.errors import Ambiguous, Permanent, Retryable
from bridge.model import Receipt
from bridge.targets.artu.finding import Client
from bridge.targets.artu.method import Method
from bridge.targets.artu.owner import Owner
from bridge.targets.artu.plan import Plan, accepted, plan_for
from bridge.targets.artu.register import Gone, Moved, Register, refuse
from bridge.targets.base import Job


@dataclass(frozen=True, slots=True)
class Push:
    """What is to be done for one record at one register."""

    register: Register
    owner: Owner
    job: Job

    def update(self, client: Client) -> Receipt:
        """Make *client* hold the desired methods.

        Raises:
            Gone: Artu does not know the client. Permanent, Retryable, Ambiguous: see `apply` and the proofs.
        """
        for last in (False, True):
            methods = self.register.methods_of(client.id)
            if client.id != self.job.target_id and not client.created:
                self._take(client.id, methods)
            plan = plan_for(self.job, self.owner, client.id, methods)
            if not client.searched:
                self._prove_they_are_nowhere_else(client.id, plan, methods)
            try:
                held = self.apply(client.id, plan) if plan.changes else methods
                break
            except Moved as moved:
                if last:
                    refuse(moved.reply, None, doing="updating contact methods")
            except Gone:
                if last or not methods:
                    raise
                # Perhaps only a method is gone, that somebody deleted meanwhile: read again.
        outcome = "created" if client.created else "updated" if plan.changes else "unchanged"
        shown = accepted(self.job, self.owner, client.id, held)
        return Receipt(outcome, client.id, shown, notes=tuple(plan.notes))

    def _take(self, client_id: str, methods: Sequence[Method]) -> None:
        """Link the record to a client before the first write to it.

        Raises:
            Ambiguous: another record of the same source is there; they would take turns in overwriting each other.
        """
        if not self.owner.is_free(methods):
            raise Ambiguous("This client in Artu holds contact methods of another record of the same CRM.")
        self.job.link(client_id)

    def _prove_they_are_nowhere_else(self, client_id: str, plan: Plan, methods: Sequence[Method]) -> None:
        """Before methods are added: bridge's external ids must not be another client's already.

        Raises:
            Ambiguous: they are. Gone: they are, and *client_id* is no client any more.
        """
        for external_id in (method.external_id for method in plan.added):
            listed = self.register.methods("externalId", external_id)
            if any(method.external_id == external_id and method.client_id != client_id for method in listed):
                if not methods and not self.register.has_client(client_id):
                    raise Gone
                raise Ambiguous("Bridge's own contact methods of this person belong to another client in Artu.")

    def apply(self, client_id: str, plan: Plan) -> list[Method]:
        """Carry out *plan*, read the methods again, and return them.

        Raises:
            Permanent: Artu took the call but not the values. Retryable: it does not show them yet.
            Moved, Gone: it answered 409 or 404.
        """
        written, deleted = self.register.sync(client_id, plan.writes, plan.deletes)
        held = self.register.methods_of(client_id, finishes=True)
        if blanked := plan.blanked(held):
            self.register.sync(client_id, blanked, finishes=True)
            held = self.register.methods_of(client_id, finishes=True)
        wrong = plan.missing(held)
        if not wrong:
            return held
        answered = [*written, *(method for method in plan.deletes if method.id not in deleted)]
        if plan.missing(answered):
            raise Permanent(
                f"Artu answered that it updated the client, but does not take: {', '.join(wrong)}.",
                code="not_taken",
            )
        raise Retryable(
            f"Artu does not show the new contact methods yet: {', '.join(wrong)}. Bridge looks again.",
            code="unverified",
        )
