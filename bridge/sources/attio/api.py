"""Attio's API: records read by their ids, listed by the time they were made, and what sends webhooks.

https://docs.attio.com/rest-api
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from bridge.errors import SourceUnavailable
from bridge.model import RecordKey, Secret, Value, Version, iso, utc_now
from bridge.outbound import Api, Reply, segment
from bridge.sources.attio.shape import ALL, attio_id, fields_of, newest
from bridge.sources.base import BatchUnreadable, Listed, Read, Registration
from bridge.sources.calling import Caller, list_of, object_of, parts_of, place_of
from bridge.sources.reading import Unclear, moment, short

PAGE = 100  # of 500; records have many values, and a page of them must not outgrow what is read of an answer
OVERLAP = 100  # at most so many are asked for again where a place in the list can only be told by counting
HOOKS = "/v2/webhooks"
HOOKS_PAGE = 100
MOST_HOOKS = 2000
SCOPES = "record_permission:read and object_configuration:read"
RECORD_ID = "record_id"  # the name of the id in rules
NO_RECORD = "Attio's answer is not a record."
OTHER_ORDER = "Attio's answer is not in the order that was asked for."
MERGING = "Attio is still merging this record with another."


@dataclass
class Account:
    """One workspace, and the object in it whose records are people.

    *object_id* is that object's id, which is asked for once where it is not configured.
    """

    caller: Caller
    object: str
    object_id: str = ""
    clock: Callable[[], datetime] = field(default=utc_now)

    def people(self, api: Api) -> str:
        """Return the id of the object.

        Raises:
            SourceUnavailable: the object cannot be read, or there is none.
        """
        if not self.object_id:
            self.object_id = self._find(api)
        return self.object_id

    def _find(self, api: Api) -> str:
        answer = object_of(self.caller.json(api, "GET", "/v2/objects"))
        for one in map(object_of, list_of(answer.get("data"))):
            ids = object_of(one.get("id"))
            if self.object.lower() in {one.get("api_slug"), str(ids.get("object_id")).lower()}:
                try:
                    return attio_id(ids.get("object_id"), "object_id")
                except Unclear:
                    break
        raise SourceUnavailable("Attio's answer does not hold the object that is configured under 'object'.")

    @property
    def path(self) -> str:
        return f"/v2/objects/{segment(self.object)}/records"

    def as_read(
        self, api: Api, record: Mapping[str, Any], names: Sequence[str], reply: Reply, asked_at: datetime
    ) -> Read | None:
        """Return *record* as what was read, None where it is of another object.

        Attio does not say when a record was changed, and a value that was taken away leaves no trace. So what was
        read is true since it was read: by Attio's own clock, and within the same second by ours.

        Raises:
            BatchUnreadable: it is no record.
        """
        ids, values = object_of(record.get("id")), record.get("values")
        try:
            source_id = attio_id(ids.get("record_id"), "record_id")
        except Unclear as error:
            raise BatchUnreadable(NO_RECORD) from error
        if not isinstance(values, dict):
            raise BatchUnreadable(NO_RECORD)
        object_id = ids.get("object_id")
        if isinstance(object_id, str) and object_id.lower() != self.people(api):
            return None
        key = RecordKey(self.caller.connection, source_id)
        version = Version(_told_at(reply) or asked_at, f"read:{iso(asked_at)}:{newest(values)[:40]}")
        said: dict[str, Value] = fields_of(values, names)
        if RECORD_ID in names:
            said[RECORD_ID] = source_id
        workspace_id = ids.get("workspace_id")
        account = workspace_id if isinstance(workspace_id, str) and workspace_id else None
        return Read(key, key, said, version, account=account)


def account_of(connection: str, token: Secret, of: str, object_id: str | None) -> Account:
    headers = {"Authorization": f"Bearer {token.reveal().strip()}"}
    return Account(Caller("Attio", connection, headers, SCOPES), of.strip(), (object_id or "").strip().lower())


def _told_at(reply: Reply) -> datetime | None:
    """Return when Attio says that it answered."""
    try:
        at = parsedate_to_datetime(reply.headers.get("date", ""))
    except ValueError:
        return None
    return at.astimezone(UTC) if at.tzinfo else None


# --- reading ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reader:
    account: Account

    def read(self, api: Api, keys: Sequence[RecordKey], names: Sequence[str]) -> list[Read]:
        """Return one `Read` for each key: those that a query finds together, and each of the others alone.

        A record that was merged is not found by a query. If Attio refuses to find several by their ids, each is
        asked for alone.
        """
        asked = list(dict.fromkeys(keys))
        found: dict[RecordKey, Read] = {}
        if len(asked) > 1:
            try:
                found = {read.key: read for read in self._query(api, asked, names)}
            except BatchUnreadable:
                found = {}
        reads = {key: found.get(key) or self._alone(api, key, names) for key in asked}
        return [reads[key] for key in keys]

    def _query(self, api: Api, keys: Sequence[RecordKey], names: Sequence[str]) -> list[Read]:
        ids = [{"record_id": {"$eq": key.source_id}} for key in keys]
        search = {"filter": {"$or": ids}, "limit": len(ids), "offset": 0}
        asked_at = self.account.clock()
        reply = self.account.caller.call(api, "POST", f"{self.account.path}/query", json=search)
        records = map(object_of, list_of(object_of(reply.json_or_none()).get("data")))
        reads = (self.account.as_read(api, record, names, reply, asked_at) for record in records)
        return [read for read in reads if read is not None]

    def _alone(self, api: Api, key: RecordKey, names: Sequence[str]) -> Read:
        try:
            return self._one(api, key, names)
        except BatchUnreadable as error:
            return Read(key, key, None, None, problem=str(error))

    def _one(self, api: Api, key: RecordKey, names: Sequence[str]) -> Read:
        asked_at = self.account.clock()
        path = f"{self.account.path}/{segment(key.source_id)}"
        reply = self.account.caller.call(api, "GET", path, expected=(200, 404))
        answer = object_of(reply.json_or_none())
        if reply.status == 404:
            if answer.get("code") == "merge_in_progress":
                raise BatchUnreadable(MERGING)
            return Read(key, key, None, None)
        read = self.account.as_read(api, object_of(answer.get("data")), names, reply, asked_at)
        return replace(read, asked=key) if read else Read(key, key, None, None)


# --- listing ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AttioLister:
    """Lists people by when they were made, which never changes.

    A page begins with the moment in which the page before ended, so that no deletion shifts it; those of that
    moment come again. Only within one moment, and where Attio refuses to compare moments, the place is told by
    counting: then some are asked for again, half a page or `OVERLAP`, against so many deletions between two pages.

    Attio cannot be asked what was changed since a moment: all people are listed.
    """

    account: Account

    def page(self, api: Api, fields: Sequence[str], after: str | None, since: datetime | None) -> Listed:
        place = parts_of(after)
        at, count = str(place.get("at", "")), int(place.get("count", 0))  # of the moment *at*, or of all
        again = int(place.get("again", 0))
        asked_at = self.account.clock()
        offset = max(count - again, 0)
        try:
            reply = self._query(api, at, offset)
        except BatchUnreadable:
            if "seen" not in place:
                raise
            # It refuses the moment with which the second page begins. All that is left is counting.
            at, count = "", int(place["seen"])
            offset = max(count - again, 0)
            reply = self._query(api, at, offset)
        found = object_of(reply.json_or_none()).get("data")
        if not isinstance(found, list):
            raise BatchUnreadable("Attio's answer is not a list of records.")
        rows = [object_of(row) for row in found]
        ended = _in_order(rows, at)
        records = [self._read(api, row, fields, reply, asked_at) for row in rows]
        reads = [read for read in records if read is not None]
        # However many Attio puts on a page: there are new ones on the next, or it was the last.
        again = min(OVERLAP, len(rows) // 2)
        by_count = bool(place) and not at
        if by_count or ended == at:
            reached = offset + len(rows)
            return Listed(reads, place_of(at=at, count=reached, again=again) if reached > count else None)
        of_the_last = sum(row.get("created_at") == ended for row in rows)
        seen = {} if place else {"seen": len(rows)}
        return Listed(reads, place_of(at=ended, count=of_the_last, again=again, **seen))

    def _query(self, api: Api, at: str, offset: int) -> Reply:
        search = {
            **({"filter": {"created_at": {"$gte": at}}} if at else {}),
            "sorts": [{"attribute": "created_at", "direction": "asc"}],
            "limit": PAGE,
            "offset": offset,
        }
        return self.account.caller.call(api, "POST", f"{self.account.path}/query", json=search)

    def _read(
        self, api: Api, row: Mapping[str, Any], fields: Sequence[str], reply: Reply, asked_at: datetime
    ) -> Read | None:
        """Return a row as what was read; one that has an id and nothing else to read says so, and is no end."""
        try:
            return self.account.as_read(api, row, fields, reply, asked_at)
        except BatchUnreadable as error:
            try:
                source_id = attio_id(object_of(row.get("id")).get("record_id"), "record_id")
            except Unclear:
                raise error from None
            key = RecordKey(self.account.caller.connection, source_id)
            return Read(key, key, None, None, problem=str(error))


def _in_order(rows: Sequence[Mapping[str, Any]], at: str) -> str:
    """Return when the last of *rows* was made, as Attio writes it.

    Raises:
        BatchUnreadable: they are not in the order of their moments, so that some might be left out unseen.
    """
    ended = at
    for row in rows:
        text = row.get("created_at")
        try:
            made_at = moment(text, "created_at")
            if ended and made_at < moment(ended, "created_at"):
                raise BatchUnreadable(OTHER_ORDER)
        except Unclear as error:
            raise BatchUnreadable("Attio's answer does not tell when its records were made.") from error
        ended = str(text)
    return ended


# --- webhooks --------------------------------------------------------------------------------------------

EVENTS = ("record.created", "record.updated", "record.deleted", "record.merged")


@dataclass(frozen=True, slots=True)
class AttioRegistrar:
    """Subscribes to what happens to people, and to nothing that *actor_id*, our own token, does."""

    account: Account
    actor_id: str = ""

    def register(self, api: Api, url: str, fields: Sequence[str], now: datetime) -> Registration:
        wanted = self._subscriptions(api)
        hint = f"In this workspace, object_id of '{self.account.object}' is {self.account.people(api)}."
        ours = self._ours(api, url)
        if any(_covers(hook, wanted) for hook in ours):
            return Registration(["Attio sends to this URL already; nothing was changed.", hint])
        if ours:
            path = f"{HOOKS}/{segment(_hook_id(ours[0]))}"
            body = {"data": {"target_url": url, "subscriptions": wanted}}
            self._confidential(api, "PATCH", path, json=body, expected=(200,))
            done = "The webhook that leads to this URL was brought up to date. Its secret is the one it had."
            return Registration([done, hint])
        body = {"data": {"target_url": url, "subscriptions": wanted}}
        made = object_of(self._confidential(api, "POST", HOOKS, json=body, expected=(200, 201)).get("data"))
        secret = made.get("secret")
        if not isinstance(secret, str) or not secret.strip():
            raise SourceUnavailable(
                "Attio made the webhook, but did not tell its secret. It is shown in Attio's developer settings."
            )
        done = "Attio sends what happens to people to this URL."
        return Registration([done, hint], secrets={"secrets": Secret(secret)})

    def remove(self, api: Api, url: str) -> Sequence[str]:
        ours = self._ours(api, url)
        for hook in ours:
            path = f"{HOOKS}/{segment(_hook_id(hook))}"
            self.account.caller.call(api, "DELETE", path, expected=(200, 204, 404))
        return ["A webhook of Attio that led to this URL was removed." for _ in ours]

    def _subscriptions(self, api: Api) -> list[dict[str, Any]]:
        only = [{"field": "id.object_id", "operator": "equals", "value": self.account.people(api)}]
        if self.actor_id:
            only.append({"field": "actor.id", "operator": "not_equals", "value": self.actor_id})
        return [{"event_type": kind, "filter": {"$and": only}} for kind in EVENTS]

    def _ours(self, api: Api, url: str) -> list[Mapping[str, Any]]:
        """Return the webhooks that lead to *url*, each with an id."""
        hooks: list[Mapping[str, Any]] = []
        while len(hooks) < MOST_HOOKS:
            query = {"limit": HOOKS_PAGE, "offset": len(hooks)}
            answer = self._confidential(api, "GET", HOOKS, query=query, expected=(200,))
            some = [object_of(hook) for hook in list_of(answer.get("data"))]
            hooks += some
            if len(some) < HOOKS_PAGE:
                break
        return [hook for hook in hooks if hook.get("target_url") == url and _hook_id(hook)]

    def _confidential(self, api: Api, method: str, path: str, **named: Any) -> Mapping[str, Any]:
        """Return the JSON of an answer that may hold a secret, and keep none of it."""
        try:
            return object_of(self.account.caller.json(api, method, path, **named))
        finally:
            if api.exchanges:
                api.exchanges[-1] = replace(api.exchanges[-1], response_body="(not kept)")


def _hook_id(hook: Mapping[str, Any]) -> str:
    found = object_of(hook.get("id")).get("webhook_id")
    return found if isinstance(found, str) else ""


def _covers(hook: Mapping[str, Any], wanted: Sequence[Mapping[str, Any]]) -> bool:
    """Say whether *hook* sends what is *wanted*, narrowed down as is wanted or not at all."""
    if hook.get("status", "active") != "active":
        return False
    there = [object_of(one) for one in list_of(hook.get("subscriptions"))]
    return all(
        any(
            one.get("event_type") == want["event_type"] and one.get("filter") in (None, want["filter"])
            for one in there
        )
        for want in wanted
    )


# --- writing back ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AttioWriter:
    """Writes an opt-out into an attribute of the person."""

    account: Account
    value: bool | str

    def opt_out(self, api: Api, source_id: str, name: str) -> None:
        path = f"{self.account.path}/{segment(source_id)}"
        body = {"data": {"values": {name: [self.value]}}}
        answer = object_of(object_of(self.account.caller.json(api, "PATCH", path, json=body)).get("data"))
        held = fields_of(object_of(answer.get("values")), [name + ALL]).get(name + ALL)
        if not isinstance(held, list) or self.value not in held:
            raise SourceUnavailable(f"Attio took the opt-out, but '{short(name)}' does not hold it.")
