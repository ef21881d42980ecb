"""Calendly: the webhooks about invitees, who book a meeting or cancel it.

An invitee is a booking and no person: whoever books twice is two invitees. The contact is therefore who has the
e-mail address, and its id a digest of that. https://developer.calendly.com/api-docs
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Literal, NoReturn

from bridge import signing
from bridge.contact import clamp
from bridge.errors import BadPayload, Complaints, SourceUnavailable
from bridge.model import Change, Event, InboundRequest, Kind, RecordKey, Secret, Value, Verified, Version, iso
from bridge.outbound import Api, segment
from bridge.sources.base import Genuine, Registration, SourceType, cannot_read
from bridge.sources.calling import Caller, list_of, object_of
from bridge.sources.discreet import discreetly
from bridge.sources.reading import Unclear, event_key, fingerprint, moment, read_json, short, text_or_none
from bridge.sources.sampling import SAMPLE_ID, Sampling, made_up

CREATED, CANCELED = "invitee.created", "invitee.canceled"
TOLERANCE_S = 180.0
LONGEST_NAME = 300  # characters of a question

# What of an invitee is a field of the contact, by the name it has in rules.
PERSON = ("email", "name", "first_name", "last_name", "text_reminder_number", "timezone")
BOOKING = ("status", "cancel_url", "reschedule_url")
MEETING = {"event_name": "name", "event_start": "start_time", "event_end": "end_time"}
TRACKING = ("utm_campaign", "utm_content", "utm_medium", "utm_source", "utm_term")
KNOWN_FIELDS = (*PERSON, *BOOKING, *MEETING, *TRACKING, "cancel_reason")


@dataclass(frozen=True, slots=True)
class Settings:
    """The webhooks of a Calendly organization, or of one user."""

    secrets: tuple[Secret, ...] = field(
        metadata={
            "help": "the signing key that the webhook subscription was made with; new first, old next",
            "variable": "SIGNING_KEY",
        }
    )
    tolerance_s: float = field(
        default=TOLERANCE_S,
        metadata={"help": "how many seconds a signature may be from our clock; Calendly recommends three minutes"},
    )
    require_token: bool = field(
        default=False, metadata={"help": "accept only the URL with a token, from 'bridge url'"}
    )
    token: Secret | None = field(
        default=None, metadata={"help": "a personal access token, for 'bridge register' only"}
    )
    scope: Literal["organization", "user"] = field(
        default="organization",
        metadata={"help": "whose meetings 'bridge register' subscribes to; only owners and admins have the first"},
    )
    api_base: str = field(default="https://api.calendly.com", metadata={"help": "where Calendly's API is called"})


class Calendly:
    """One webhook subscription. Raises `ValueError` where a signing key is unusable."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name = name
        with Complaints() as complaints:
            with complaints.look():
                scheme = replace(
                    SCHEME,
                    stamp=signing.Stamp(prefix="t=", past_s=settings.tolerance_s, future_s=settings.tolerance_s),
                )
                self._credentials = signing.credentials(
                    "secrets", settings.secrets, lambda secret: signing.credential(scheme, secret.reveal())
                )
            empty = settings.token is not None and not settings.token.reveal().strip()
            complaints.unless(not empty, "token: it is empty; leave the key out if it is not needed")

    def verify(self, request: InboundRequest, now: datetime) -> Genuine:
        proof = signing.verify(request, self._credentials, now)
        return Genuine(Verified(request), proof.index, proof.signed_at)

    def sign(self, request: InboundRequest, now: datetime) -> InboundRequest:
        return signing.sign(request, self._credentials[0], now)

    def parse(self, genuine: Genuine, received_at: datetime) -> list[Event]:
        body = read_json(genuine.request.body)
        kind = text_or_none(body.get("event")) if isinstance(body, dict) else None
        invitee = body.get("payload") if isinstance(body, dict) else None
        if not kind or not isinstance(invitee, dict):
            raise BadPayload("The body is no Calendly webhook: it has no 'event' with a 'payload'.")
        content = fingerprint(body)
        if kind not in {CREATED, CANCELED}:
            return [Event(content, ignored=f"'{short(kind)}' is not about a booking.", type=kind)]
        try:
            changes = self._changes(invitee, body, canceled=kind == CANCELED)
        except Unclear as error:
            return [Event(content, unreadable=str(error), type=kind)]
        uri = text_or_none(invitee.get("uri"))
        told_by = event_key(kind, uri) if uri else content
        return [Event(told_by, tuple(clamp(change, received_at) for change in changes), type=kind)]

    def _changes(self, invitee: Mapping[str, Any], body: Mapping[str, Any], *, canceled: bool) -> Iterable[Change]:
        """Return what is said of the person, as of the booking, and of the meeting, as of now.

        Whoever cancels an old booking has given a new number in a later one, perhaps: the old one is no news.
        """
        key = RecordKey(self.name, _contact_id(invitee))
        booked_at, changed_at = _moments(invitee, body)
        # A cancellation may tell the same moment as the booking; it is the later of the two all the same.
        order = f"{int(canceled)}:{_number(invitee) or fingerprint(invitee)[:32]}"
        said: dict[datetime, dict[str, Value]] = {booked_at: _person(invitee)}
        # The cancellation that is half of a rescheduling speaks of a meeting that was replaced.
        if not (canceled and invitee.get("rescheduled") is True):
            said.setdefault(changed_at, {}).update(_meeting(invitee, canceled=canceled))
        return [Change(key, Kind.CHANGED, Version(at, order), fields) for at, fields in said.items()]

    def can_read(self) -> bool:
        return False

    def read(self, api: Api, keys: Sequence[RecordKey], fields: Sequence[str]) -> NoReturn:
        cannot_read(self.name)


# https://developer.calendly.com/api-docs: "Webhook signatures". The key is used as it is written.
SCHEME = signing.Scheme(
    "calendly-webhook-signature",
    ("timestamp", "body"),
    separator=".",
    prefix="v1=",
    between=",",
    stamp=signing.Stamp(prefix="t=", past_s=TOLERANCE_S, future_s=TOLERANCE_S),
)


# --- an invitee ------------------------------------------------------------------------------------------

_INVITEE = re.compile(r"/invitees/([A-Za-z0-9_-]{1,100})/?$")


def _number(invitee: Mapping[str, Any]) -> str:
    """Return the invitee's own id, which is the end of its address: "" where it has none."""
    found = _INVITEE.search(text_or_none(invitee.get("uri")) or "")
    return found[1] if found else ""


def _contact_id(invitee: Mapping[str, Any]) -> str:
    """Return what one person's invitees have in common. Ids are told everywhere, so it is no address."""
    number = _number(invitee)
    if number == SAMPLE_ID:  # of nobody, whatever address it was made up with
        return number
    email = text_or_none(invitee.get("email")) or ""
    if "@" in email:
        return event_key("calendly", email.strip().casefold())[:32]
    if not number:
        raise Unclear("It does not say who the invitee is.")
    return number


def _moments(invitee: Mapping[str, Any], body: Mapping[str, Any]) -> tuple[datetime, datetime]:
    """Return when the invitee booked and when it last changed, by its own account.

    The moment of the webhook counts only where the invitee has none: a retry may be told with another.
    """
    cancellation = object_of(invitee.get("cancellation")).get("created_at")
    told = {
        "created_at": invitee.get("created_at"),
        "updated_at": invitee.get("updated_at"),
        "cancellation": cancellation,
    }
    moments = [moment(value, what) for what, value in told.items() if value is not None]
    if not moments:
        moments = [moment(body.get("created_at"), "created_at")]
    return moments[0], max(moments)


def _person(invitee: Mapping[str, Any]) -> dict[str, Value]:
    """Return what the booking says of the person; what it leaves open is not cleared by that."""
    told: dict[str, Any] = {name: invitee.get(name) for name in PERSON}
    tracking = object_of(invitee.get("tracking"))
    told |= {name: tracking.get(name) for name in TRACKING}
    for one in map(object_of, list_of(invitee.get("questions_and_answers"))):
        question = (text_or_none(one.get("question")) or "").strip()
        if question and len(question) <= LONGEST_NAME and question not in KNOWN_FIELDS:
            told[question] = one.get("answer")
    return _texts(told)


def _meeting(invitee: Mapping[str, Any], *, canceled: bool) -> dict[str, Value]:
    meeting = object_of(invitee.get("scheduled_event"))
    told = {name: invitee.get(name) for name in BOOKING}
    told |= {name: meeting.get(part) for name, part in MEETING.items()}
    if canceled:
        told |= {"status": "canceled", "cancel_reason": object_of(invitee.get("cancellation")).get("reason")}
    return _texts(told)


def _texts(told: Mapping[str, Any]) -> dict[str, Value]:
    return {name: text for name, value in told.items() if (text := text_or_none(value))}


# --- registering -----------------------------------------------------------------------------------------

SUBSCRIPTIONS = "/webhook_subscriptions"
_SUBSCRIPTION = re.compile(r"/webhook_subscriptions/([A-Za-z0-9_-]{1,100})/?$")
MOST_PAGES = 50
LOOKED_AFTER = timedelta(days=1)  # a subscription, which Calendly switches off after a day without success


@dataclass(frozen=True, slots=True)
class SubscriptionRegistrar:
    """Subscribes to bookings and cancellations, with the first of `secrets` as the signing key.

    Calendly never tells the signing key of a subscription, so a new one is not noticed: remove and register again.
    https://developer.calendly.com/api-docs
    """

    caller: Caller = field(repr=False)
    scope: str
    key: Secret = field(repr=False)

    def register(self, api: Api, url: str, fields: Sequence[str], now: datetime) -> Registration:
        """See `Registrar.register`.

        One that was switched off is made anew: Calendly has no other way, and tells nobody, so it is looked after.
        """
        with discreetly(api):
            whose = self._whose(api)
            there = self._there(api, url, whose)
            others = [number for number, one in there.items() if not _is_right(one)]
            removed = self._delete(api, others)
            if len(others) < len(there):
                return Registration(
                    [*removed, "The subscription is there already."], expires_at=now + LOOKED_AFTER
                )
            wanted = {
                "url": url, "events": [CREATED, CANCELED], "scope": self.scope, **whose,
                "signing_key": self.key.reveal().strip(),
            }  # fmt: skip
            self.caller.call(api, "POST", SUBSCRIPTIONS, json=wanted, expected=(200, 201))
            whom = "the organization" if self.scope == "organization" else "the user"
            done = [*removed, f"Subscribed to the bookings and cancellations of {whom}."]
            return Registration(done, expires_at=now + LOOKED_AFTER)

    def remove(self, api: Api, url: str) -> Sequence[str]:
        """See `Registrar.remove`."""
        with discreetly(api):
            return self._delete(api, self._there(api, url, self._whose(api)))

    def _whose(self, api: Api) -> dict[str, str]:
        """Return the organization, and the user where only one is meant, by Calendly's own addresses of them."""
        user = object_of(object_of(self.caller.json(api, "GET", "/users/me")).get("resource"))
        told = {"organization": user.get("current_organization"), "user": user.get("uri")}
        needed = ("organization",) if self.scope == "organization" else ("organization", "user")
        whose = {name: text for name in needed if (text := text_or_none(told[name]))}
        if len(whose) < len(needed):
            raise SourceUnavailable("Calendly does not say whose the access token is.")
        return whose

    def _there(self, api: Api, url: str, whose: Mapping[str, str]) -> dict[str, Mapping[str, Any]]:
        """Return the subscriptions that lead to *url*, by their numbers."""
        found: dict[str, Mapping[str, Any]] = {}
        query: dict[str, str | int] = {**whose, "scope": self.scope, "count": 100}
        for _ in range(MOST_PAGES):
            answer = object_of(self.caller.json(api, "GET", SUBSCRIPTIONS, query=query))
            page = answer.get("collection")
            if not isinstance(page, list):
                break
            for one in map(object_of, page):
                number = _SUBSCRIPTION.search(text_or_none(one.get("uri")) or "")
                if number and one.get("callback_url") == url:
                    found[number[1]] = one
            more = text_or_none(object_of(answer.get("pagination")).get("next_page_token"))
            if not more:
                return found
            query["page_token"] = more
        raise SourceUnavailable("Calendly's answer is not a list of subscriptions.")

    def _delete(self, api: Api, numbers: Sequence[str] | Mapping[str, Any]) -> list[str]:
        for number in numbers:
            # Not there any more is as good as deleted.
            self.caller.call(api, "DELETE", f"{SUBSCRIPTIONS}/{segment(number)}", expected=(200, 204, 404))
        return ["Removed a subscription that led here." for _ in numbers]


def _is_right(subscription: Mapping[str, Any]) -> bool:
    events = list_of(subscription.get("events"))
    return subscription.get("state") != "disabled" and CREATED in events and CANCELED in events


# --- what the type declares ------------------------------------------------------------------------------


def sample(wanted: Sampling) -> bytes:
    """Return a booking."""
    at = iso(wanted.at)
    base = "https://api.calendly.com"
    meeting = f"{base}/scheduled_events/bridge-sample"
    made = made_up([name for name in wanted.reads if name not in KNOWN_FIELDS])
    invitee = {
        "uri": f"{meeting}/invitees/{SAMPLE_ID}",
        "email": "ada@example.com",
        "name": "Ada Lovelace",
        "first_name": "Ada",
        "last_name": "Lovelace",
        "text_reminder_number": "+14155550123",
        "timezone": "Europe/London",
        "status": "active",
        "rescheduled": False,
        "created_at": at,
        "updated_at": at,
        "cancel_url": "https://calendly.com/cancellations/bridge-sample",
        "reschedule_url": "https://calendly.com/reschedulings/bridge-sample",
        "questions_and_answers": [
            {"question": question, "answer": answer, "position": position}
            for position, (question, answer) in enumerate(made.items())
        ],
        "tracking": dict.fromkeys(TRACKING),
        "event": meeting,
        "scheduled_event": {"uri": meeting, "name": "30 Minute Meeting", "start_time": at, "end_time": at},
    }
    body = {"event": CREATED, "created_at": at, "created_by": f"{base}/users/bridge-sample", "payload": invitee}
    return json.dumps(body, separators=(",", ":")).encode()


def _registrar(name: str, settings: Settings) -> SubscriptionRegistrar | None:
    if settings.token is None:
        return None
    headers = {"Authorization": f"Bearer {settings.token.reveal().strip()}"}
    caller = Caller("Calendly", name, headers, "webhooks, on a paid plan")
    return SubscriptionRegistrar(caller, settings.scope, settings.secrets[0])


SOURCE = SourceType(
    name="calendly",
    title="Calendly",
    settings=Settings,
    make=Calendly,
    kept_headers=("content-type", "user-agent"),
    read_base_url=lambda settings: str(settings.api_base),
    known_fields=KNOWN_FIELDS,
    sample=sample,
    usual={
        "email": "email",
        "phone": "text_reminder_number",
        "mobile": "text_reminder_number",
        "first_name": "first_name",
        "last_name": "last_name",
        "name": "name",
    },
    steps=(
        "Make a long random text of letters and digits, the signing key, and put it into the environment variable "
        "that `bridge.toml` names under `secrets`.",
        "In Calendly open *Integrations and apps → API and webhooks* and choose *Generate new token*, as an owner "
        "or admin of the organization. Put the token into the environment variable that `bridge.toml` names under "
        "`token`. Webhooks need a paid plan.",
        "Run `bridge register {name}`: it subscribes to `invitee.created` and `invitee.canceled` of the whole "
        "organization, and the worker looks twice a day whether Calendly has switched that off. Calendly has no "
        "page for it.",
        "By hand it is a POST to `https://api.calendly.com/webhook_subscriptions` with `url` (the one that "
        "`bridge url {name}` prints), `events`, `organization`, `scope` and `signing_key`.",
    ),
    manual="https://developer.calendly.com/api-docs",
    registrar=_registrar,
)
