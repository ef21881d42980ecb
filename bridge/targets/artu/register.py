"""Artu's API: the calls, and what its answers mean. Nothing here decides anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from bridge.errors import Ambiguous, Permanent, Refused, Retryable
from bridge.model import Secret
from bridge.outbound import Api, Reply, segment
from bridge.targets.artu.method import Method
from bridge.targets.base import fail, quotable

TITLE = "Artu"
LIST = "/contact-methods/list"
SYNC_LIMIT = 250  # items a call
PAGE = 200  # rows a page
MOST_PAGES = 50  # of one list; more means that the platform does not filter


class Gone(Exception):
    """Artu knows no such client, or no such method any more."""


class Moved(Exception):
    """Somebody else wrote at the same time (HTTP 409)."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.status)
        self.reply = reply


@dataclass(frozen=True, slots=True)
class Register:
    """One environment of an account, for one attempt."""

    api: Api
    key: Secret
    environment: str

    # --- contact methods ---

    def probe(self) -> None:
        """List one contact method.

        Raises:
            Refused, Retryable: that cannot be done.
        """
        _rows(self._list_call({"limit": 1}))

    def methods_of(self, client_id: str, *, finishes: bool = False) -> list[Method]:
        """Return the client's methods. *finishes*, here and below: the call completes a write already made."""
        listed = self.methods("clientId", client_id, finishes=finishes)
        return [method for method in listed if method.client_id == client_id]

    def methods(self, name: str, value: str, *, finishes: bool = False) -> list[Method]:
        """Return all pages of those with this value of the filter *name*; the caller compares again.

        https://docs.artu.ai/api-reference/contact-methods/list-contact-methods-with-filtering-and-pagination
        """
        found: list[Method] = []
        body: dict[str, Any] = {"filter": {name: value}, "limit": PAGE}
        for _ in range(MOST_PAGES):
            reply = self._list_call(body, finishes=finishes)
            rows, cursor = _rows(reply)
            found += [_method(row, reply) for row in rows]
            if cursor is None:
                return found
            body = {**body, "cursor": cursor}
        raise Refused(
            "Artu's list of contact methods does not end: its filter seems not to work. Bridge writes nothing.",
            code="nonsense",
        )

    def sync(
        self,
        client_id: str,
        writes: Sequence[Method],
        deletes: Sequence[Method] = (),
        *,
        finishes: bool = False,
    ) -> tuple[list[Method], set[str]]:
        """Write and delete these methods and no others; return the methods and deleted ids that Artu answers.

        An item always has an id or an external id: one with neither would be added again with every repeat.

        Raises:
            Gone: 404. Moved: 409.
        """
        items = [*(method.item() for method in writes), *(method.deletion() for method in deletes)]
        written: list[Method] = []
        deleted: set[str] = set()
        for start in range(0, len(items), SYNC_LIMIT):
            part = items[start : start + SYNC_LIMIT]
            reply = self._sync_call(client_id, part, finishes=finishes or start > 0)
            said = reply.json()
            if not isinstance(said, dict):
                raise _nonsense(reply)
            written += [_method(row, reply) for name in ("created", "updated") for row in _listed(said, name)]
            deleted |= {str(one) for one in _listed(said, "deleted")}
        return written, deleted

    def _sync_call(self, client_id: str, items: list[dict[str, Any]], *, finishes: bool) -> Reply:
        path = f"/clients/{segment(client_id)}/contact-methods/sync"
        # Left out or true, replaceMode might remove every method that is not listed, those of people included.
        reply = self._call("POST", path, {"replaceMode": False, "items": items}, finishes=finishes)
        if reply.status == 404:
            raise Gone
        if reply.status == 409:
            raise Moved(reply)
        if not reply.ok:
            refuse(reply, [{**item, "type": None} for item in items], doing="updating contact methods")
        return reply

    def _list_call(self, body: Mapping[str, Any], *, finishes: bool = False) -> Reply:
        reply = self._call("POST", LIST, body, finishes=finishes)
        if reply.status in {404, 405}:
            raise Refused(
                "Artu has no list of contact methods at this address. Check api_base.", status=reply.status
            )
        if not reply.ok:
            refuse(reply, body, doing="listing contact methods")
        return reply

    # --- clients ---

    def has_client(self, client_id: str) -> bool:
        """https://docs.artu.ai/api-reference/contact-methods/get-primary-contact-method-for-a-client ."""
        reply = self._call("GET", f"/clients/{segment(client_id)}/contact-methods/primary/email")
        if not reply.ok and reply.status != 404:
            refuse(reply, None, doing="looking a client up")
        return reply.ok

    def client_by_external_id(self, external_id: str) -> str | None:
        """Return the id of the client with exactly this external id.

        Raises:
            Permanent: this account's API has no list of clients (its path is not documented). Ambiguous.
        """
        sent = {"filter": {"externalId": external_id}, "limit": PAGE}
        reply = self._call("POST", "/clients/list", sent)
        if reply.status in {404, 405}:
            raise Permanent(
                "Artu cannot look clients up by external id here. Set client_metadata_key, or use client_id.",
                status=reply.status,
            )
        if not reply.ok:
            refuse(reply, sent, doing="looking a client up by its external id")
        ids = {str(row["id"]) for row in _rows(reply)[0] if row.get("id") and row.get("externalId") == external_id}
        if len(ids) > 1:
            raise Ambiguous(f"{len(ids)} clients in Artu have this external id.")
        return next(iter(ids), None)

    def client_by_metadata(self, key: str, value: str) -> str | None:
        """https://docs.artu.ai/api-reference/clients/retrieve-a-client-by-metadata-key-value ."""
        reply = self._call("GET", f"/clients/metadata/{segment(key)}/{segment(value)}")
        if reply.status == 404 or (reply.ok and reply.json() is None):
            return None
        if not reply.ok:
            refuse(reply, value, doing="looking a client up by its metadata")
        client = _client(reply)
        held = client.get("metadata")
        return str(client["id"]) if isinstance(held, dict) and str(held.get(key)) == value else None

    def create_client(self, body: Mapping[str, Any]) -> str | None:
        """Create a client and return its id; None if Artu says that there is one (HTTP 409)."""
        reply = self._call("POST", "/clients", body, creates=True)
        if reply.status == 409:
            return None
        if not reply.ok:
            refuse(reply, body, doing="creating a client")
        return str(_client(reply)["id"])

    def _call(
        self, method: str, path: str, body: object = None, *, creates: bool = False, finishes: bool = False
    ) -> Reply:
        headers = {"Authorization": f"Bearer {self.key.reveal()}", "X-Environment": self.environment}
        return self.api.call(method, path, json=body, headers=headers, creates=creates, finishes=finishes)


def refuse(reply: Reply, sent: object, *, doing: str) -> NoReturn:
    """Raise what an error means. Its form is undocumented: code, message and issues where there are any."""
    body = reply.json_or_none()
    if isinstance(body, dict) and isinstance(body.get("error"), dict):
        body = body["error"]
    body = body if isinstance(body, dict) else {}
    lines = [quotable(body.get(name), sent) for name in ("code", "message", "error")]
    for issue in _listed(body, "issues"):
        if isinstance(issue, dict):
            where = quotable(".".join(map(str, _listed(issue, "path"))), sent)
            lines.append(": ".join(part for part in (where, quotable(issue.get("message"), sent)) if part))
    fail(TITLE, reply, doing=doing, detail="; ".join(dict.fromkeys(line for line in lines if line)))


def _listed(body: Mapping[str, Any], name: str) -> list[Any]:
    found = body.get(name)
    return found if isinstance(found, list) else []


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
