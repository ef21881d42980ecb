"""What Intercom's API can do for bridge. It cannot register webhooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from bridge.errors import SourceUnavailable
from bridge.model import RecordKey, Secret
from bridge.outbound import Api, segment
from bridge.sources.base import BatchUnreadable, Listed, Read
from bridge.sources.calling import Caller, object_of, parts_of, place_of
from bridge.sources.intercom.contacts import ID, as_read, custom_name, is_contact
from bridge.sources.reading import short, text_or_none

VERSION = "2.11"  # of the API that is called; webhooks come in the version that the app has
PAGE = 100  # contacts of one page of a list, which takes up to 150
DAYS = timedelta(days=2)  # the search compares whole days, of nobody knows which time zone
EMAILS = "unsubscribed_from_emails"


def caller(name: str, token: Secret | None) -> Caller | None:
    """Return who calls with an app's access token; None without one."""
    if token is None:
        return None
    headers = {"Authorization": f"Bearer {token.reveal().strip()}", "Intercom-Version": VERSION}
    return Caller("Intercom", name, headers, scope="the permission 'Read and list users and companies'")


def read_one(calling: Caller, api: Api, key: RecordKey, names: Sequence[str]) -> Read:
    if not ID.fullmatch(key.source_id):
        return Read(key, key, None, None)
    try:
        reply = calling.call(api, "GET", f"/contacts/{segment(key.source_id)}", expected=(200, 404))
    except BatchUnreadable as error:
        return Read(key, key, None, None, problem=str(error))
    if reply.status == 404:
        return Read(key, key, None, None)
    contact = object_of(reply.json_or_none())
    if not is_contact(contact):
        return Read(key, key, None, None, problem="Intercom's answer is not a contact.")
    return as_read(key, contact, names, reply)


@dataclass(frozen=True, slots=True)
class Search:
    """Lists contacts in the order of their last change; one that is changed meanwhile comes again at the end.

    The place is the search's own, behind the last contact of a page; no number of contacts is too large for it.
    https://developers.intercom.com/docs/references/rest-api/api.intercom.io/contacts/searchcontacts
    """

    name: str
    caller: Caller

    def page(self, api: Api, fields: Sequence[str], after: str | None, since: datetime | None) -> Listed:
        cursor = text_or_none(parts_of(after).get("cursor"))
        pagination = {"per_page": PAGE, **({"starting_after": cursor} if cursor else {})}
        query = {
            "query": _everybody() if since is None else _changed_since(since),
            "sort": {"field": "updated_at", "order": "ascending"},
            "pagination": pagination,
        }
        answer = object_of(self.caller.json(api, "POST", "/contacts/search", json=query))
        if not isinstance(answer.get("data"), list):
            raise BatchUnreadable("Intercom's answer is not a list of contacts.")
        contacts = filter(is_contact, map(object_of, answer["data"]))
        reads = [as_read(RecordKey(self.name, contact["id"]), contact, fields) for contact in contacts]
        if since is not None:
            floor = since.replace(microsecond=0)
            reads = [one for one in reads if one.version is None or one.version.occurred_at >= floor]
        total = answer.get("total_count") if since is None else None
        return Listed(
            [one for one in reads if one.fields is not None],
            _following(answer, cursor),
            total if isinstance(total, int) else None,
        )


def _everybody() -> dict[str, Any]:
    roles = [{"field": "role", "operator": "=", "value": role} for role in ("user", "lead")]
    return {"operator": "OR", "value": roles}


def _changed_since(since: datetime) -> dict[str, Any]:
    return {"field": "updated_at", "operator": ">", "value": int((since - DAYS).timestamp())}


def _following(answer: Mapping[str, Any], cursor: str | None) -> str | None:
    """Return the place of the next page, None behind the last."""
    pages = object_of(answer.get("pages"))
    if pages and pages.get("next") is None:
        return None
    following = text_or_none(object_of(pages.get("next")).get("starting_after"))
    if not following or following == cursor:
        raise SourceUnavailable("Intercom's list of contacts does not say where it goes on. Bridge tries again.")
    return place_of(cursor=following)


@dataclass(frozen=True, slots=True)
class Attribute:
    """Unsubscribes a contact from e-mails, or sets a custom attribute of the type true or false."""

    caller: Caller

    def opt_out(self, api: Api, source_id: str, name: str) -> None:
        custom = custom_name(name)
        if custom is None and name != EMAILS:
            raise SourceUnavailable(
                f"'{short(name)}' is a field of Intercom's own, which is not for opt-outs. There is {EMAILS}, and "
                "there are custom attributes."
            )
        change = {EMAILS: True} if custom is None else {"custom_attributes": {custom: True}}
        answer = object_of(self.caller.json(api, "PUT", f"/contacts/{segment(source_id)}", json=change))
        held = answer.get(EMAILS) if custom is None else object_of(answer.get("custom_attributes")).get(custom)
        if held is not True:
            raise SourceUnavailable(
                f"Intercom did not take the opt-out: '{short(custom or name)}' has to be an attribute of contacts "
                "of the type true or false."
            )
