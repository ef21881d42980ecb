"""Pipedrive's API, as far as bridge calls it: reading, listing and writing persons, and the webhooks.

https://developers.pipedrive.com/docs/api/v1/Persons and https://developers.pipedrive.com/docs/api/v1/Webhooks
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from bridge.errors import SourceUnavailable
from bridge.model import RecordKey, Secret, Version, iso
from bridge.outbound import Api, segment
from bridge.sources.base import BatchUnreadable, Listed, Read, Registration
from bridge.sources.calling import Caller, list_of, object_of, parts_of, place_of
from bridge.sources.discreet import discreetly
from bridge.sources.pipedrive_person import fields_of
from bridge.sources.reading import Unclear, moment, text_or_none

PERSONS = "/api/v2/persons"
WEBHOOKS = "/v1/webhooks"
READ_LIMIT = 100  # ids of one call
LISTED = 200  # a page. Pipedrive gives up to 500, but a hundred custom fields each would be more than we read
CUSTOM = re.compile(r"[0-9a-f]{40}")  # how a custom field is named
CUSTOM_LIMIT = 15  # that can be named; without a name all of them come
# What comes only where it is asked for.
INCLUDED = frozenset({
    "activities_count", "closed_deals_count", "doi_status", "done_activities_count", "email_messages_count",
    "files_count", "followers_count", "last_activity_id", "last_incoming_mail_time", "last_outgoing_mail_time",
    "lost_deals_count", "marketing_status", "next_activity_id", "notes_count", "open_deals_count",
    "participant_closed_deals_count", "participant_open_deals_count", "related_closed_deals_count",
    "related_lost_deals_count", "related_open_deals_count", "related_won_deals_count", "undone_activities_count",
    "won_deals_count",
})  # fmt: skip
LOOKED_AFTER = timedelta(days=2)  # a webhook, which Pipedrive deletes after three days without success
MARKETING = "marketing_status"
UNSUBSCRIBED = "unsubscribed"


def caller(connection: str, token: Secret) -> Caller:
    """Return what calls with a user's API token."""
    return Caller("Pipedrive", connection, {"x-api-token": token.reveal().strip()})


# --- reading ---------------------------------------------------------------------------------------------


def read(caller: Caller, api: Api, keys: Sequence[RecordKey], fields: Sequence[str]) -> list[Read]:
    """See `Source.read`. Persons that are gone, or that the token's user must not see, are not in the answer."""
    asked = list(dict.fromkeys(key.source_id for key in keys if key.source_id.isdecimal()))
    found: dict[str, Mapping[str, Any]] = {}
    if asked:
        query: dict[str, str | int] = {"ids": ",".join(asked), "limit": READ_LIMIT}
        persons = list_of(_persons(caller, api, query, set(fields)).get("data"))
        found = {number: person for person in map(object_of, persons) if (number := _number(person))}
    return [_as_read(key, found.get(key.source_id), set(fields)) for key in keys]


def _persons(
    caller: Caller, api: Api, query: Mapping[str, str | int], names: Collection[str]
) -> Mapping[str, Any]:
    """Return an answer with persons, and with what of them is left out unless it is named.

    Some of that comes with products that not every company has (Campaigns). Where Pipedrive refuses the call for
    it, the persons come without: then nothing is said of those fields.
    """
    more = _named(names)
    expected = (200, 400, 403) if more else (200,)
    reply = caller.call(api, "GET", PERSONS, query={**query, **more}, expected=expected)
    if reply.status != 200:
        reply = caller.call(api, "GET", PERSONS, query=query)
    answer = object_of(reply.json_or_none())
    if answer.get("success") is not True or not isinstance(answer.get("data"), list):
        raise BatchUnreadable("Pipedrive's answer is not a list of persons.")
    return answer


def _named(names: Collection[str]) -> dict[str, str]:
    included = sorted(INCLUDED & set(names))
    custom = sorted({name[:40] for name in names if CUSTOM.match(name)})
    named = {"include_fields": included, "custom_fields": custom if len(custom) <= CUSTOM_LIMIT else []}
    return {part: ",".join(values) for part, values in named.items() if values}


def _number(person: Mapping[str, Any]) -> str:
    number = person.get("id")
    return str(number) if isinstance(number, int) and not isinstance(number, bool) else ""


def _as_read(key: RecordKey, person: Mapping[str, Any] | None, names: Collection[str]) -> Read:
    if person is None or person.get("is_deleted") is True:
        return Read(key, key, None, None)
    try:
        changed_at = moment(person.get("update_time") or person.get("add_time"), "update_time")
    except Unclear:
        problem = "Pipedrive's answer does not say when the person was last changed."
        return Read(key, key, None, None, problem=problem)
    said = {name: value for name, value in fields_of(person).items() if name in names}
    # Whether unsubscribing counts as an update of the person is not documented. If not, the time stays as it was,
    # and of two reads with one time this one must count.
    order = f"read:{UNSUBSCRIBED}" if person.get(MARKETING) == UNSUBSCRIBED else "read"
    return Read(key, key, said, Version(changed_at, order))


# --- listing ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PersonLister:
    """Lists persons in the order of their ids: all of them, or those that changed since a moment.

    By id and not by the time of the change, although Pipedrive offers both: a person that changes while it is
    listed keeps its place, so no other is pushed over the edge of a page, and the place of the next page cannot
    run away with it. Whoever changes behind that place comes with the next list of changes. Pipedrive says of a
    place only that it marks the first person of the next page, and there is no other way to go through them.
    """

    caller: Caller = field(repr=False)

    def page(self, api: Api, fields: Sequence[str], after: str | None, since: datetime | None) -> Listed:
        """See `Lister.page`."""
        query: dict[str, str | int] = {"limit": LISTED, "sort_by": "id", "sort_direction": "asc"}
        if since is not None:
            query["updated_since"] = iso(since.replace(microsecond=0)).replace(".000000", "")
        if cursor := parts_of(after).get("cursor"):
            query["cursor"] = cursor
        names = set(fields)
        answer = _persons(self.caller, api, query, names)
        reads = []
        for person in map(object_of, list_of(answer.get("data"))):
            number = _number(person)
            if not number:
                raise BatchUnreadable("Pipedrive's answer holds something that is no person.")
            reads.append(_as_read(RecordKey(self.caller.connection, number), person, names))
        more = text_or_none(object_of(answer.get("additional_data")).get("next_cursor"))
        if more and more == cursor:
            raise BatchUnreadable("Pipedrive's answer is the page before, once again.")
        return Listed(reads, place_of(cursor=more) if more else None)


# --- writing ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PersonWriter:
    """Sets ``marketing_status`` to ``unsubscribed``, or a custom field of text to ``true``."""

    caller: Caller = field(repr=False)

    def opt_out(self, api: Api, source_id: str, name: str) -> None:
        """See `Writer.opt_out`."""
        if name == MARKETING:
            wanted: dict[str, Any] = {MARKETING: UNSUBSCRIBED}
        elif CUSTOM.fullmatch(name):
            wanted = {"custom_fields": {name: "true"}}
        else:
            raise SourceUnavailable(
                f"The field {name} of Pipedrive cannot say that somebody opted out. Name marketing_status, or the "
                "key of a custom field of text."
            )
        path = f"{PERSONS}/{segment(source_id)}"
        reply = self.caller.call(api, "PATCH", path, json=wanted, expected=(200, 404))
        if reply.status == 404:
            raise SourceUnavailable("Pipedrive does not know this person (HTTP 404); nothing was written.")
        answer = object_of(reply.json_or_none())
        person = object_of(answer.get("data"))
        held = fields_of(person).get(name)
        # A field with options takes no text, and the answer to that may be a success all the same.
        if answer.get("success") is not True or held not in (UNSUBSCRIBED, "true"):
            raise SourceUnavailable(f"Pipedrive did not take the opt-out: {name} holds something else afterwards.")


# --- registering -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WebhookRegistrar:
    """Creates the webhook that tells of everything that happens to persons. It sees what the token's user sees."""

    caller: Caller = field(repr=False)
    user: str
    password: Secret = field(repr=False)

    def register(self, api: Api, url: str, fields: Sequence[str], now: datetime) -> Registration:
        """See `Registrar.register`.

        A webhook that leads here otherwise (an old password, version 1, switched off) is replaced. Pipedrive may
        not say which password a webhook has: then only the user is compared. One that fails is deleted, and nobody
        is told: so it is registered again before long.
        """
        with discreetly(api):
            there = self._there(api, url)
            others = [number for number, one in there.items() if not self._is_right(one)]
            if len(others) < len(there):
                done = ["The webhook is there already."]
            else:
                self._create(api, url, others)
                done = ["Created the webhook: everything about persons, version 2."]
            removed = self._delete(api, others)
            return Registration([*done, *removed], expires_at=now + LOOKED_AFTER)

    def remove(self, api: Api, url: str) -> Sequence[str]:
        """See `Registrar.remove`."""
        with discreetly(api):
            return self._delete(api, self._there(api, url))

    def _there(self, api: Api, url: str) -> dict[str, Mapping[str, Any]]:
        """Return the webhooks that lead to *url*, by their numbers."""
        answer = object_of(self.caller.json(api, "GET", WEBHOOKS))
        found = answer.get("data")
        # Where there are none, it may say null.
        if answer.get("success") is not True or not isinstance(found, list | None):
            raise SourceUnavailable("Pipedrive's answer is not a list of webhooks.")
        webhooks = [object_of(one) for one in found or []]
        ours = [one for one in webhooks if one.get("subscription_url") == url]
        return {number: one for one in ours if (number := text_or_none(one.get("id")))}

    def _is_right(self, webhook: Mapping[str, Any]) -> bool:
        password = text_or_none(webhook.get("http_auth_password")) or ""
        told = bool(password.strip("*•"))  # and not only stars
        if told and not hmac.compare_digest(password.encode(), self.password.reveal().encode()):
            return False
        wanted = self._wanted()
        return bool(webhook.get("is_active", True)) and all(
            text_or_none(webhook[name]) == value for name, value in wanted.items() if name in webhook
        )

    def _wanted(self) -> dict[str, str]:
        return {"event_action": "*", "event_object": "person", "version": "2.0", "http_auth_user": self.user}

    def _create(self, api: Api, url: str, others: list[str]) -> None:
        """Create the webhook, beside the *others* if Pipedrive allows that, so that nothing is missed."""
        wanted = {**self._wanted(), "subscription_url": url, "http_auth_password": self.password.reveal()}
        try:
            self.caller.call(api, "POST", WEBHOOKS, json=wanted, expected=(200, 201))
        except BatchUnreadable:
            if not others:
                raise
            self._delete(api, others)
            others.clear()
            self.caller.call(api, "POST", WEBHOOKS, json=wanted, expected=(200, 201))

    def _delete(self, api: Api, numbers: Collection[str]) -> list[str]:
        for number in numbers:
            # Not there any more is as good as deleted.
            self.caller.call(api, "DELETE", f"{WEBHOOKS}/{segment(number)}", expected=(200, 204, 404, 410))
        return [f"Removed the webhook {number}." for number in numbers]
