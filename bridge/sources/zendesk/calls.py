"""What Zendesk's API can do for bridge beside reading single users."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bridge.errors import Permanent, Retryable, SourceUnavailable
from bridge.model import RecordKey, Secret
from bridge.outbound import Api, segment
from bridge.sources.base import Listed, Registration
from bridge.sources.calling import Caller, list_of, object_of, parts_of, place_of
from bridge.sources.reading import short, text_or_none
from bridge.sources.zendesk.users import as_read, custom_key, users_of

PAGE = 500  # users of one page of the export, which takes up to 1,000: an answer is read up to 4 MiB
OVERLAP_S = 300  # the export leaves out the last minute, and refuses to begin in it
HOOKS_PAGE, MOST_PAGES = 100, 50
SUBSCRIPTIONS = tuple(
    f"zen:event-type:user.{action}"
    for action in (
        "active_changed", "alias_changed", "created", "custom_field_changed", "deleted", "details_changed",
        "external_id_changed", "identity_changed", "identity_created", "identity_deleted", "merged",
        "name_changed", "notes_changed", "organization_membership_created", "organization_membership_deleted",
        "role_changed", "suspended_changed", "tags_changed", "time_zone_changed",
    )
)  # fmt: skip
OF_TRIGGERS = "conditional_ticket_events"  # instead of events: such a webhook belongs to triggers and automations
WORKING = {"http_method": "POST", "request_format": "json", "status": "active"}


def caller(name: str, token: Secret | None, email: str) -> Caller | None:
    """Return who calls with an API token of *email*'s, or with an OAuth access token; None without a token."""
    if token is None:
        return None
    secret = token.reveal().strip()
    login = base64.b64encode(f"{email.strip()}/token:{secret}".encode()).decode()
    access = f"Basic {login}" if email else f"Bearer {secret}"
    return Caller("Zendesk", name, {"Authorization": access}, scope="the access of an admin")


@dataclass(frozen=True, slots=True)
class Export:
    """Lists users in the order of their last change; a user who is changed meanwhile comes again at the end.

    Ten calls a minute: https://developer.zendesk.com/api-reference/ticketing/ticket-management/incremental_exports/
    """

    name: str
    caller: Caller

    def page(self, api: Api, fields: Sequence[str], after: str | None, since: datetime | None) -> Listed:
        """See `Lister.page`. Changes of the last minute are not in it yet: the next list begins before its end."""
        cursor = text_or_none(parts_of(after).get("cursor"))
        start = max(int(since.timestamp()) - OVERLAP_S, 0) if since else 0
        begin: dict[str, str | int] = {"cursor": cursor} if cursor else {"start_time": start}
        path = "/api/v2/incremental/users/cursor.json"
        answer = object_of(self.caller.json(api, "GET", path, query={**begin, "per_page": PAGE}))
        reads = (as_read(RecordKey(self.name, one), user, fields) for one, user in users_of(answer))
        records = [read for read in reads if read.fields is not None]  # the deleted are listed, too
        if answer.get("end_of_stream") is True:
            return Listed(records, None)
        following = text_or_none(answer.get("after_cursor"))
        if not following or following == cursor:
            raise SourceUnavailable("Zendesk's list of users does not say where it goes on. Bridge tries again.")
        return Listed(records, place_of(cursor=following))


@dataclass(frozen=True, slots=True)
class Hooks:
    """Registers a webhook of user events. One that triggers use is never touched.

    https://developer.zendesk.com/api-reference/webhooks/webhooks-api/webhooks/
    """

    caller: Caller
    secrets: Sequence[Secret]  # that are configured already

    def register(self, api: Api, url: str, fields: Sequence[str], now: datetime) -> Registration:
        hook = next(self._ours(api, url), None)
        if hook is None:
            hook_id, done = self._create(api, url), "Created a webhook of user events in Zendesk."
        else:
            hook_id, done = _hook_id(hook), self._mend(api, hook)
        secret = self._secret(api, hook_id)
        if any(hmac.compare_digest(secret.encode(), one.reveal().strip().encode()) for one in self.secrets):
            return Registration([done, "Its signing secret is already under secrets."])
        said = "Put its signing secret first under secrets, and start bridge again."
        return Registration([done, said], {"secrets": Secret(secret)})

    def remove(self, api: Api, url: str) -> Sequence[str]:
        done = []
        for hook in list(self._ours(api, url)):
            path = f"/api/v2/webhooks/{segment(_hook_id(hook))}"
            self.caller.call(api, "DELETE", path, expected=(200, 204, 404))
            done.append("Removed the webhook of user events from Zendesk.")
        return done

    def _ours(self, api: Api, url: str) -> Iterator[Mapping[str, Any]]:
        """Yield the webhooks of events that lead to *url*."""
        for hook in self._all(api):
            if hook.get("endpoint") == url and OF_TRIGGERS not in list_of(hook.get("subscriptions")):
                yield hook

    def _all(self, api: Api) -> Iterator[Mapping[str, Any]]:
        query: dict[str, str | int] = {"page[size]": HOOKS_PAGE}
        for _ in range(MOST_PAGES):
            answer = object_of(self.caller.json(api, "GET", "/api/v2/webhooks", query=query))
            if not isinstance(answer.get("webhooks"), list):
                raise SourceUnavailable("Zendesk's answer is not a list of webhooks.")
            yield from map(object_of, answer["webhooks"])
            meta = object_of(answer.get("meta"))
            following = text_or_none(meta.get("after_cursor"))
            if meta.get("has_more") is not True or not following:
                return
            query["page[after]"] = following
        raise SourceUnavailable("Zendesk lists more webhooks than bridge looks through.")

    def _create(self, api: Api, url: str) -> str:
        hook = {"name": "bridge (contact sync)", "endpoint": url, "subscriptions": SUBSCRIPTIONS, **WORKING}
        answer = self.caller.json(api, "POST", "/api/v2/webhooks", json={"webhook": hook}, expected=(200, 201))
        return _hook_id(object_of(object_of(answer).get("webhook")))

    def _mend(self, api: Api, hook: Mapping[str, Any]) -> str:
        """Have *hook* send all that bridge needs; what else it sends it goes on sending."""
        subscribed = [one for one in list_of(hook.get("subscriptions")) if isinstance(one, str)]
        missing = [one for one in SUBSCRIPTIONS if one not in subscribed]
        if not missing and all(hook.get(name) == value for name, value in WORKING.items()):
            return "The webhook of user events is in Zendesk already, as it should be."
        path = f"/api/v2/webhooks/{segment(_hook_id(hook))}"
        changed = {"subscriptions": [*subscribed, *missing], **WORKING}
        self.caller.call(api, "PATCH", path, json={"webhook": changed}, expected=(200, 204))
        return "Put the webhook of user events in Zendesk right."

    def _secret(self, api: Api, hook_id: str) -> str:
        path = f"/api/v2/webhooks/{segment(hook_id)}/signing_secret"
        try:
            # Not by the caller: nothing of this answer may be kept.
            reply = api.call("GET", path, headers=self.caller.headers, confidential=True)
        except (Retryable, Permanent) as error:
            raise SourceUnavailable(f"Zendesk cannot be called now: {error}") from error
        if reply.status != 200:
            self.caller.refuse(reply)
        secret = object_of(object_of(reply.json_or_none()).get("signing_secret")).get("secret")
        if not isinstance(secret, str) or not secret.strip():
            raise SourceUnavailable("Zendesk does not tell the signing secret of its webhook.")
        return secret.strip()


def _hook_id(hook: Mapping[str, Any]) -> str:
    found = text_or_none(hook.get("id"))
    if not found:
        raise SourceUnavailable("Zendesk's answer does not name a webhook.")
    return found


@dataclass(frozen=True, slots=True)
class Checkbox:
    """Ticks a custom field of the user."""

    caller: Caller

    def opt_out(self, api: Api, source_id: str, name: str) -> None:
        custom = custom_key(name)
        if custom is None:
            raise SourceUnavailable(
                f"'{short(name)}' is a field of Zendesk's own, which says nothing of opt-outs."
            )
        path = f"/api/v2/users/{segment(source_id)}.json"
        answer = self.caller.json(api, "PUT", path, json={"user": {"user_fields": {custom: True}}})
        # A key that is none of its fields is taken without a word.
        held = object_of(object_of(object_of(answer).get("user")).get("user_fields")).get(custom)
        if held is not True:
            raise SourceUnavailable(
                f"Zendesk did not take the opt-out: its users need a custom field of the type checkbox with the "
                f"field key '{short(custom)}'."
            )
