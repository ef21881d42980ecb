"""Calls to a Zoho CRM account: read, list, register, write an opt-out.

https://www.zoho.com/crm/developer/docs/api/v8/
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

from bridge.errors import SourceUnavailable
from bridge.model import RecordKey, Value, Version
from bridge.outbound import Api, Reply
from bridge.sources.base import BatchUnreadable, Listed, Read, Registration
from bridge.sources.calling import Caller, list_of, object_of, parts_of, place_of
from bridge.sources.discreet import discreetly
from bridge.sources.oauth import AccessTokens
from bridge.sources.reading import Unclear, moment, record_id, text_or_none
from bridge.sources.zoho_crm.settings import NAME, Settings

SCOPES = "ZohoCRM.modules.ALL, ZohoCRM.coql.READ, ZohoCRM.notifications.ALL"
READ_LIMIT = 100  # ids of one call
MOST_FIELDS = 49  # of one call, beside Modified_Time
PAGE = 200
NOT_FOUND = "INVALID_DATA"
GONE = "NOT_SUBSCRIBED"  # what Zoho says of a channel that lapsed, or never was
LONGEST = timedelta(days=7) - timedelta(hours=1)  # Zoho gives a channel that asks for more a single hour
RENEW_BELOW = timedelta(days=6)  # what is left: a daily look at it renews it daily
UNTOLD = timedelta(hours=1)  # how long a channel lives of which Zoho does not say how long
WORDS = re.compile(r"[A-Z_]{1,60}")


class ZohoCaller(Caller):
    """Tells a missing scope, for which Zoho answers 401, from a bad token."""

    def refuse(self, reply: Reply) -> NoReturn:
        if code_of(reply.json_or_none()) in {"OAUTH_SCOPE_MISMATCH", "NO_PERMISSION"}:
            raise SourceUnavailable(
                f"Zoho CRM refuses the credentials of {self.connection} (HTTP {reply.status}): they do not allow "
                f"this call (needed: {self.scope}). Bridge tries again by itself."
            )
        super().refuse(reply)


def code_of(answer: Any) -> str:
    """Return Zoho's own word for what went wrong, "" where there is none that could be shown."""
    code = text_or_none(object_of(answer).get("code")) or ""
    return code if WORDS.fullmatch(code) else ""


@dataclass(frozen=True, slots=True)
class Account:
    """The contacts of one account, and what sends webhooks about them."""

    name: str  # of the connection
    module: str
    caller: Caller
    channel_id: str
    token: str  # that the channel is to show

    # --- reading -----------------------------------------------------------------------------------------

    def read(self, api: Api, ids: Iterable[str], fields: Iterable[str]) -> dict[str, Read]:
        """Return what Zoho says of each of *ids*, of which there are at most `READ_LIMIT`.

        More fields than one call takes come in several; the oldest time of last change is that of all.

        Raises:
            BatchUnreadable, SourceUnavailable: see `Source.read`.
        """
        asked = list(dict.fromkeys(ids))
        usable = [one for one in asked if one.isdigit()]  # all that Zoho has; others are of made-up events
        names = sorted({name for name in fields if NAME.fullmatch(name)} - {"id", "Modified_Time"})
        found: dict[str, Mapping[str, Any]] = {}
        for start in range(0, len(names) or 1, MOST_FIELDS):
            for record in self._records(api, usable, names[start : start + MOST_FIELDS]) if usable else ():
                source_id = text_or_none(record.get("id")) or ""
                older = min(
                    (one.get("Modified_Time") for one in (record, found.get(source_id, record))), key=_sorting
                )
                found[source_id] = {**found.get(source_id, {}), **record, "Modified_Time": older}
        return {one: self._as_read(one, found.get(one), {*names, *fields}) for one in asked}

    def _records(self, api: Api, ids: Sequence[str], names: Sequence[str]) -> list[Mapping[str, Any]]:
        reply = self.caller.call(
            api,
            "GET",
            f"/crm/v8/{self.module}",
            query={"ids": ",".join(ids), "fields": ",".join([*names, "Modified_Time"])},
            expected=(200, 204, 400),
        )
        if reply.status == 204:  # none of them is there
            return []
        answer = reply.json_or_none()
        if reply.status == 400:
            # Whether ids that are not there are left out, or refused, Zoho does not say.
            refused = object_of(object_of(answer).get("details"))
            about_id = {refused.get("param_name"), refused.get("api_name")} & {"id", "ids"}
            if code_of(answer) == NOT_FOUND and about_id and len(ids) == 1:
                return []
            self.caller.refuse(reply)
        records = object_of(answer).get("data")
        if not isinstance(records, list):
            raise BatchUnreadable("Zoho CRM's answer holds no list of records.")
        return [record for record in records if isinstance(record, dict)]

    def _as_read(self, source_id: str, record: Mapping[str, Any] | None, names: Iterable[str]) -> Read:
        key = RecordKey(self.name, source_id)
        if record is None:
            return Read(key, key, None, None)
        try:
            changed_at = moment(record.get("Modified_Time"), "Modified_Time")
        except Unclear:
            problem = "Zoho CRM's answer does not say when the contact was last changed."
            return Read(key, key, None, None, problem=problem)
        # Null: the field is empty. Absent: there is no such field, or bridge's user may not see it.
        said: dict[str, Value] = {name: record[name] for name in sorted(names) if name in record}
        return Read(key, key, said, Version(changed_at, "read"))

    # --- listing -----------------------------------------------------------------------------------------

    def page(self, api: Api, fields: Sequence[str], after: str | None, since: datetime | None) -> Listed:
        """See `Lister.page`. The ids come by COQL, in their own order, and their records by `read`.

        A list by pages, or by page tokens, shifts when records are changed or deleted, and ends after 100,000; a
        token is good for a day. The next greater ids are the same whatever happens meanwhile.
        https://www.zoho.com/crm/developer/docs/api/v8/COQL-Overview.html
        """
        last = parts_of(after).get("id")
        where = [f"id > {record_id(last, 'id')}"] if last else []
        if since is not None:
            at = since.astimezone(UTC).replace(microsecond=0).isoformat()
            where.append(f"Modified_Time >= '{at}'")
        condition = " and ".join(where) or "id is not null"
        # The module is checked, the number is one, and the moment is ours: there is nothing to escape.
        query = f"select id from {self.module} where ({condition}) order by id asc limit {PAGE}"  # noqa: S608
        reply = self.caller.call(api, "POST", "/crm/v8/coql", json={"select_query": query}, expected=(200, 204))
        if reply.status == 204:
            return Listed([], None)
        answer = object_of(reply.json_or_none())
        if not isinstance(answer.get("data"), list):
            raise BatchUnreadable("Zoho CRM's answer holds no list of records.")
        try:
            ids = [record_id(object_of(row).get("id"), "id") for row in list_of(answer["data"])]
        except Unclear as error:
            raise BatchUnreadable("Zoho CRM's list holds a record without an id.") from error
        if ids and last and min(map(int, ids)) <= int(last):
            raise BatchUnreadable("Zoho CRM's list does not go on where the last page ended.")
        reads = [
            read
            for start in range(0, len(ids), READ_LIMIT)
            for read in self.read(api, ids[start : start + READ_LIMIT], fields).values()
        ]
        ended = not ids or object_of(answer.get("info")).get("more_records") is False
        # What is gone since the ids were read is no contact any more.
        present = [read for read in reads if read.fields is not None or read.problem]
        return Listed(present, None if ended else place_of(id=max(ids, key=int)))

    # --- the channel -------------------------------------------------------------------------------------

    def register(self, api: Api, url: str, fields: Sequence[str], now: datetime) -> Registration:
        """See `Registrar.register`. A channel lives for a week at most; what is left of it is told.

        https://www.zoho.com/crm/developer/docs/api/v8/notifications/enable.html
        """
        with discreetly(api):
            return self._register(api, url, now)

    def _register(self, api: Api, url: str, now: datetime) -> Registration:
        entries = self._channel(api)
        if any(entry.get("notify_url") != url for entry in entries):
            raise SourceUnavailable(
                f"The channel {self.channel_id} of this Zoho CRM account leads to another URL, so it was left "
                "alone. Choose another channel_id, or remove that channel there."
            )
        ends = self._ends(entries)
        if ends is not None and ends - now > RENEW_BELOW and self._is_right(entries):
            return Registration([f"The channel {self.channel_id} is as it should be."], expires_at=ends)
        wanted = {
            "channel_id": self.channel_id,
            "events": [f"{self.module}.{event}" for event in ("create", "edit", "delete")],
            "token": self.token,
            "notify_url": url,
            "channel_expiry": (now + LONGEST).astimezone(UTC).replace(microsecond=0).isoformat(),
            # What changed is read: nothing about a person needs to be in the notification.
            "return_affected_field_values": False,
            "notify_on_related_action": False,
        }
        done = "renewed"
        answer = self._watch(api, "PUT", wanted) if entries else None
        if answer is None:  # there is none, or it lapsed, and a lapsed one cannot be renewed
            done, answer = "created", self._watch(api, "POST", wanted)
            if answer is None:
                raise SourceUnavailable("Zoho CRM did not create the channel. Bridge tries again later.")
        details = object_of(answer.get("details"))
        granted = self._ends([*map(object_of, list_of(details.get("events"))), details])
        return Registration(
            [f"The channel {self.channel_id} for {self.module} was {done}."], expires_at=granted or now + UNTOLD
        )

    def remove(self, api: Api, url: str) -> Sequence[str]:
        """See `Registrar.remove`."""
        with discreetly(api):
            entries = self._channel(api)
        if not entries or any(entry.get("notify_url") != url for entry in entries):
            return []
        reply = self.caller.call(
            api,
            "DELETE",
            "/crm/v8/actions/watch",
            query={"channel_ids": self.channel_id},
            expected=(200, 202, 204, 400),
        )
        answer = object_of(reply.json_or_none())
        if not self._succeeded(reply, answer):
            return []  # it lapsed just now
        return [f"The channel {self.channel_id} was removed."]

    def _channel(self, api: Api) -> list[Mapping[str, Any]]:
        """Return the entries of our channel, one for each module; none where it is not there."""
        reply = self.caller.call(
            api,
            "GET",
            "/crm/v8/actions/watch",
            query={"channel_id": self.channel_id},
            expected=(200, 204, 400, 404),
        )
        if reply.status == 204:
            return []
        answer = reply.json_or_none()
        if reply.status in {400, 404}:
            if code_of(answer) == GONE:
                return []
            self.caller.refuse(reply)
        watched = object_of(answer).get("watch")
        if not isinstance(watched, list):
            raise BatchUnreadable("Zoho CRM's answer holds no list of channels.")
        # It may list others, too.
        found = [one for one in map(object_of, watched) if text_or_none(one.get("channel_id")) == self.channel_id]
        return [one for one in found if one]

    def _is_right(self, entries: Sequence[Mapping[str, Any]]) -> bool:
        events = {text_or_none(event) for entry in entries for event in list_of(entry.get("events"))}
        each = {f"{self.module}.{event}" for event in ("create", "edit", "delete")}
        shown = {text_or_none(entry.get("token")) for entry in entries}
        return events in ({f"{self.module}.all"}, each) and shown == {self.token}

    def _ends(self, entries: Iterable[Mapping[str, Any]]) -> datetime | None:
        """Return when the first of *entries* ends, as far as they say so."""
        ends = []
        for entry in entries:
            try:
                ends.append(moment(entry.get("channel_expiry"), "channel_expiry"))
            except Unclear:
                continue
        return min(ends, default=None)

    def _watch(self, api: Api, method: str, wanted: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Create (POST) or renew (PUT) the channel; return what Zoho says of it, None where there is none."""
        reply = self.caller.call(
            api, method, "/crm/v8/actions/watch", json={"watch": [wanted]}, expected=(200, 201, 202, 207, 400)
        )
        answer = object_of(reply.json_or_none())
        first = object_of(next(iter(list_of(answer.get("watch"))), answer))
        return first if self._succeeded(reply, answer) else None

    def _succeeded(self, reply: Reply, answer: Mapping[str, Any]) -> bool:
        """Say whether the channel was there.

        Raises:
            SourceUnavailable: Zoho refused for another reason.
        """
        if reply.status == 204:
            return True
        codes = {code_of(answer), *(code_of(one) for one in list_of(answer.get("watch")))} - {""}
        if codes == {GONE}:
            return False
        if codes != {"SUCCESS"} or reply.status == 400:
            self._refused(reply, codes)
        return True

    # --- writing -----------------------------------------------------------------------------------------

    def opt_out(self, api: Api, source_id: str, name: str) -> None:
        """See `Writer.opt_out`. No workflow is started by it."""
        if not source_id.isdigit() or not NAME.fullmatch(name):
            raise SourceUnavailable("Zoho CRM has no such contact, or no such field.")
        reply = self.caller.call(
            api,
            "PUT",
            f"/crm/v8/{self.module}",
            json={"data": [{"id": source_id, name: True}], "trigger": []},
            expected=(200, 202, 207),
        )
        codes = {code_of(one) for one in list_of(object_of(reply.json_or_none()).get("data"))}
        if codes != {"SUCCESS"}:
            self._refused(reply, codes)

    def _refused(self, reply: Reply, codes: Iterable[str]) -> NoReturn:
        said = "".join(f", {code}" for code in sorted(codes) if code)
        raise SourceUnavailable(
            f"Zoho CRM did not do what was asked (HTTP {reply.status}{said}). Bridge tries again later."
        )


def account(name: str, settings: Settings) -> Account | None:
    """Return the account that *settings* lead to, None where nothing gives access to it."""
    if not settings.can_call:
        return None
    tokens = AccessTokens("Zoho CRM", name, settings.accounts_base, "/oauth/v2/token", settings.form)
    caller = ZohoCaller("Zoho CRM", name, scope=SCOPES, tokens=tokens, scheme="Zoho-oauthtoken")
    return Account(name, settings.module, caller, settings.channel(name), next(iter(settings.keys), ""))


def with_asked(reads: Mapping[str, Read], keys: Sequence[RecordKey]) -> list[Read]:
    """Return one of *reads* for each of *keys*, in their order."""
    return [replace(reads[key.source_id], asked=key) for key in keys]


def _sorting(value: Any) -> tuple[bool, datetime]:
    try:
        return True, moment(value, "Modified_Time")
    except Unclear:
        return False, datetime.min.replace(tzinfo=UTC)  # first: a time that cannot be read spoils the record
