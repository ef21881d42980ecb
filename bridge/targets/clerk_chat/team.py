"""Clerk Chat's API: the calls, and what its answers mean. Nothing here decides anything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from bridge.errors import Refused, Retryable
from bridge.model import Secret
from bridge.outbound import Api, Reply, segment
from bridge.targets.base import fail, quotable
from bridge.targets.clerk_chat.person import Key, Person, blank, person_of, word_for

TITLE = "Clerk Chat"
CONTACTS = "/public/contacts"
# Country code 999 is assigned to nobody, and .invalid to no one's mail.
NOBODY = {"phone": "+99900000000", "email": "nobody@bridge.invalid"}


class Gone(Exception):
    """Clerk Chat does not know the id that was written to."""


@dataclass(frozen=True, slots=True)
class Team:
    """One team's contacts, for one attempt. *parameters*: what the search calls ``phone`` and ``email``."""

    api: Api
    key: Secret
    parameters: Mapping[str, str]

    def look_up(self, kind: str, value: str, *, finishes: bool = False) -> list[Person]:
        """Return what the search finds, which may be more than what matches exactly.

        *finishes*, here and below: the call completes a write already made, so newer state must not stop it.

        The names of the search's parameters are not published:
        https://docs.clerk.chat/api-reference/public/search-for-a-contact
        """
        reply = self._call("GET", CONTACTS, query={self.parameters[kind]: value}, finishes=finishes)
        if reply.status in {404, 405}:
            raise Refused("Clerk Chat has no contact search at this address. Check api_base.", status=reply.status)
        if not reply.ok:
            _refuse(reply, value, doing=f"searching by {word_for(kind)}")
        return _people(reply)

    def some(self) -> list[Person]:
        """Return a few contacts, if the search lists any without being asked for one."""
        reply = self._call("GET", CONTACTS)
        return _people(reply) if reply.ok else []

    def read(self, contact_id: str, keys: Iterable[Key], *, finishes: bool = False) -> Person | None:
        """Return the contact with this id, looked for by each of *keys*: there is no reading by id."""
        for kind, value in dict.fromkeys(keys):
            for person in self.look_up(kind, value, finishes=finishes):
                if person.id == contact_id:
                    return person
        return None

    def prove_that_search_filters(self, kind: str) -> None:
        """Search for nobody. Hits mean that the search lists everybody, or at least not whom it is asked for.

        Raises:
            Refused: it does.
        """
        if self.look_up(kind, NOBODY[kind]):
            raise Refused(
                f"Clerk Chat's search by {word_for(kind)} also lists people who do not have it, so bridge cannot "
                "know who is missing and creates nobody. Check phone_parameter and email_parameter."
            )

    def create(self, body: Mapping[str, Any]) -> Person | None:
        """Create a contact, and another one with every repeat; None if Clerk Chat says it exists (HTTP 409).

        https://docs.clerk.chat/api-reference/public/create-a-contact
        """
        reply = self._call("POST", CONTACTS, body, creates=True)
        if reply.status == 409:
            return None
        if not reply.ok:
            _refuse(reply, body, doing="creating the contact")
        return _one(reply)

    def put(self, wanted: Person, *, with_phone: bool, finishes: bool = False) -> Person | None:
        """Write the whole contact; return it as answered, or None if the answer does not show it.

        https://docs.clerk.chat/api-reference/public/update-a-contact

        Raises:
            Gone: there is no contact with this id.
        """
        body: dict[str, Any] = {"name": wanted.name, "email": wanted.email, "public": wanted.public}
        if with_phone:
            body["phone"] = wanted.phone
        # Leaving out what is blank anyway changes nothing, whether PUT merges or replaces.
        body = {name: value for name, value in body.items() if not blank(value)} | {"data": dict(wanted.data)}
        reply = self._call("PUT", f"{CONTACTS}/{segment(wanted.id)}", body, finishes=finishes)
        if reply.status == 404:
            raise Gone
        if not reply.ok:
            _refuse(reply, body, doing="updating the contact")
        answered = reply.json_or_none()
        return person_of(answered.get("data")) if isinstance(answered, dict) else None

    def _call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        query: Mapping[str, str] | None = None,
        creates: bool = False,
        finishes: bool = False,
    ) -> Reply:
        headers = {"apiKey": self.key.reveal()}
        return self.api.call(
            method, path, json=body, query=query, headers=headers, creates=creates, finishes=finishes
        )


def _people(reply: Reply) -> list[Person]:
    body = reply.json()
    listed = body.get("data") if isinstance(body, dict) else None
    people = [person_of(raw) for raw in listed] if isinstance(listed, list) else [None]
    whole = [person for person in people if person is not None]
    if len(whole) < len(people):
        raise _nonsense(reply)
    return whole


def _one(reply: Reply) -> Person:
    body = reply.json()
    person = person_of(body.get("data")) if isinstance(body, dict) else None
    if person is None:
        raise _nonsense(reply)
    return person


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
