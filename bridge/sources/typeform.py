"""Typeform: the webhooks of forms. Each holds one response, which is whole once it was submitted.

The answers are the fields, by the reference of their question. https://www.typeform.com/developers/webhooks/
"""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NoReturn

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

RESPONSE = "form_response"
LOOKED_AFTER = timedelta(days=1)  # a webhook, which Typeform switches off when it fails for long
UNFILLED = "xxxxx"  # what a form's own link has in the place of a hidden field
PLAIN = frozenset({"boolean", "date", "email", "file_url", "number", "phone_number", "text", "url"})
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,99}")

# https://www.typeform.com/developers/webhooks/secure-your-webhooks/
SCHEME = signing.Scheme("typeform-signature", encoding=signing.Encoding.BASE64, prefix="sha256=")


@dataclass(frozen=True, slots=True)
class Settings:
    """The webhooks of the forms of a Typeform account."""

    secrets: tuple[Secret, ...] = field(
        metadata={"help": "the secret that the webhooks were set up with; new first, old next"}
    )
    contact_id: str = field(
        default="",
        metadata={
            "help": "the hidden field, or the reference of the question, that tells contacts apart; default: the "
            "e-mail address that was given, else each response is a contact"
        },
    )
    require_token: bool = field(
        default=False, metadata={"help": "accept only the URL with a token, from 'bridge url'"}
    )
    token: Secret | None = field(
        default=None,
        metadata={
            "help": "a personal token with webhooks:read and webhooks:write, for 'bridge register' only",
            "rare": True,
        },
    )
    forms: tuple[str, ...] = field(
        default=(), metadata={"help": "the ids of the forms whose webhooks 'bridge register' sets up"}
    )
    api_base: str = field(
        default="https://api.typeform.com",
        metadata={"help": "where Typeform's API is called; in the EU: https://api.eu.typeform.com"},
    )


class Typeform:
    """The webhooks of some forms. Raises `ValueError` where a secret is unusable."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name = name
        self._contact_id = settings.contact_id.strip()
        with Complaints() as complaints:
            with complaints.look():
                self._credentials = signing.credentials(
                    "secrets", settings.secrets, lambda secret: signing.credential(SCHEME, secret.reveal())
                )
            empty = settings.token is not None and not settings.token.reveal().strip()
            complaints.unless(not empty, "token: it is empty; leave the key out if it is not needed")
            both = (settings.token is None) == (not settings.forms)
            complaints.unless(both, "forms: it goes with token; give both, or neither")

    def verify(self, request: InboundRequest, now: datetime) -> Genuine:
        proof = signing.verify(request, self._credentials, now)
        return Genuine(Verified(request), proof.index)

    def sign(self, request: InboundRequest, now: datetime) -> InboundRequest:
        return signing.sign(request, self._credentials[0], now)

    def parse(self, genuine: Genuine, received_at: datetime) -> list[Event]:
        body = read_json(genuine.request.body)
        kind = text_or_none(body.get("event_type")) if isinstance(body, dict) else None
        if not kind:
            raise BadPayload("The body is no Typeform webhook: it has no 'event_type'.")
        content = fingerprint(body)
        if kind != RESPONSE:
            return [Event(content, ignored=f"'{short(kind)}' is no submitted response.", type=kind)]
        response = object_of(body.get("form_response"))
        token = text_or_none(response.get("token")) or ""
        try:
            fields = _fields(response)
            key = RecordKey(self.name, self._id(response, fields, token))
            at = moment(response.get("submitted_at") or response.get("landed_at"), "submitted_at")
        except Unclear as error:
            return [Event(content, unreadable=str(error), type=kind)]
        version = Version(at, token if _ID.fullmatch(token) else content)
        change = Change(key, Kind.CHANGED, version, fields)
        told_by = text_or_none(body.get("event_id")) or token
        return [Event(event_key(told_by) if told_by else content, (clamp(change, received_at),), type=kind)]

    def _id(self, response: Mapping[str, Any], fields: Mapping[str, Value], token: str) -> str:
        """Return what tells the contact apart. Ids are told everywhere, so what somebody typed in is no id."""
        if token == SAMPLE_ID:  # of nobody, whatever it was made up with
            return token
        if self._contact_id:
            hidden = text_or_none(object_of(response.get("hidden")).get(self._contact_id)) or ""
            if hidden != UNFILLED and _ID.fullmatch(hidden):
                return hidden
            typed = text_or_none(fields.get(self._contact_id)) or ""
            if not typed.strip():
                raise Unclear(
                    "It does not say whose response it is: what contact_id names is empty, or not there."
                )
            return _digest(typed)
        email = next(
            (answer["email"] for answer in _answers(response) if text_or_none(answer.get("email"))),
            fields.get("email"),
        )
        if isinstance(email, str) and "@" in email:
            return _digest(email)
        if not _ID.fullmatch(token):
            raise Unclear("It does not say whose response it is.")
        return token

    def can_read(self) -> bool:
        return False

    def read(self, api: Api, keys: Sequence[RecordKey], fields: Sequence[str]) -> NoReturn:
        cannot_read(self.name)


# --- a response ------------------------------------------------------------------------------------------


def _digest(text: str) -> str:
    return event_key("typeform", text.strip().casefold())[:32]


def _answers(response: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [object_of(answer) for answer in list_of(response.get("answers"))]


def _fields(response: Mapping[str, Any]) -> dict[str, Value]:
    """Return the form's id, the score, the hidden fields, and the answers by the reference of their question.

    A question without an answer is not among the answers: nothing is said of it.
    """
    fields: dict[str, Value] = {}
    if form := text_or_none(response.get("form_id")):
        fields["form_id"] = form
    score = object_of(response.get("calculated")).get("score")
    if isinstance(score, int | float) and not isinstance(score, bool):
        fields["score"] = score
    for name, value in object_of(response.get("hidden")).items():
        if (hidden := text_or_none(value)) and hidden != UNFILLED:
            fields[name] = hidden
    for answer in _answers(response):
        question = object_of(answer.get("field"))
        ref = text_or_none(question.get("ref")) or text_or_none(question.get("id"))
        given = _value(answer)
        if ref and given is not None:
            fields[ref] = given
    return fields


def _value(answer: Mapping[str, Any]) -> Value:
    """Return what was answered, None where it is nothing that a field can hold."""
    kind = text_or_none(answer.get("type")) or ""
    given = answer.get(kind)
    if kind == "choice":
        choice = object_of(given)
        return text_or_none(choice.get("label")) or text_or_none(choice.get("other"))
    if kind == "choices":
        choices = object_of(given)
        labels = [*list_of(choices.get("labels")), choices.get("other")]
        return [label for label in labels if isinstance(label, str)]
    return given if kind in PLAIN and isinstance(given, str | int | float) else None


# --- registering -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FormsRegistrar:
    """Sets up one webhook for each form, with the first of `secrets`.

    https://www.typeform.com/developers/webhooks/reference/create-or-update-webhook/
    """

    caller: Caller = field(repr=False)
    forms: tuple[str, ...]
    secret: Secret = field(repr=False)

    def register(self, api: Api, url: str, fields: Sequence[str], now: datetime) -> Registration:
        """See `Registrar.register`.

        What Typeform tells of a webhook may lack its secret. It is then written again, which changes nothing if it
        was right. One that fails is switched off, and nobody is told: so it is registered again before long.
        """
        done = []
        with discreetly(api):
            for form in self.forms:
                there = self._there(api, form, url)
                if any(self._is_right(one) for one in there.values()):
                    done.append(f"The webhook of the form {form} is there already.")
                    continue
                # Its name is this address's own, so that another bridge's webhook is never overwritten.
                tag = next(iter(there), f"bridge-{event_key(url)[:12]}")
                self.caller.call(api, "PUT", _webhook(form, tag), json=self._wanted(url), expected=(200, 201))
                done.append(f"The webhook of the form {form} leads here, with our secret.")
        return Registration(done, expires_at=now + LOOKED_AFTER)

    def remove(self, api: Api, url: str) -> Sequence[str]:
        """See `Registrar.remove`."""
        done = []
        with discreetly(api):
            for form in self.forms:
                for tag in self._there(api, form, url):
                    # Not there any more is as good as deleted.
                    self.caller.call(api, "DELETE", _webhook(form, tag), expected=(200, 204, 404))
                    done.append(f"Removed the webhook of the form {form}.")
        return done

    def _there(self, api: Api, form: str, url: str) -> dict[str, Mapping[str, Any]]:
        """Return a form's webhooks that lead to *url*, by their tags."""
        answer = object_of(self.caller.json(api, "GET", f"/forms/{segment(form)}/webhooks"))
        items = answer.get("items")
        if not isinstance(items, list):
            raise SourceUnavailable("Typeform's answer is not a list of webhooks.")
        webhooks = [object_of(one) for one in items]
        return {tag: one for one in webhooks if one.get("url") == url and (tag := text_or_none(one.get("tag")))}

    def _wanted(self, url: str) -> dict[str, Any]:
        return {
            "url": url,
            "enabled": True,
            "verify_ssl": True,
            "secret": self.secret.reveal().strip(),
            "event_types": {RESPONSE: True},
        }

    def _is_right(self, webhook: Mapping[str, Any]) -> bool:
        secret = text_or_none(webhook.get("secret")) or ""
        events = object_of(webhook.get("event_types"))
        return (
            hmac.compare_digest(secret.encode(), self.secret.reveal().strip().encode())
            and webhook.get("enabled") is True
            and webhook.get("verify_ssl") is not False
            and (not events or events.get(RESPONSE) is True)
        )


def _webhook(form: str, tag: str) -> str:
    return f"/forms/{segment(form)}/webhooks/{segment(tag)}"


# --- what the type declares ------------------------------------------------------------------------------


def sample(wanted: Sampling) -> bytes:
    """Return a response to a form whose questions go by the names that rules read."""
    at = iso(wanted.at)
    made = made_up(wanted.reads) or {"email": "ada@example.com", "first_name": "Ada", "phone": "+14155550123"}
    answers = [
        {"type": "text", "text": value, "field": {"id": f"q{number}", "type": "short_text", "ref": name}}
        for number, (name, value) in enumerate(made.items())
    ]
    response = {
        "form_id": SAMPLE_ID,
        "token": SAMPLE_ID,
        "landed_at": at,
        "submitted_at": at,
        "definition": {"id": SAMPLE_ID, "title": "A sample", "fields": [one["field"] for one in answers]},
        "answers": answers,
    }
    body = {"event_id": event_key("typeform", at)[:26], "event_type": RESPONSE, "form_response": response}
    return json.dumps(body, separators=(",", ":")).encode()


def _registrar(name: str, settings: Settings) -> FormsRegistrar | None:
    if settings.token is None:
        return None
    headers = {"Authorization": f"Bearer {settings.token.reveal().strip()}"}
    caller = Caller("Typeform", name, headers, "webhooks:read and webhooks:write")
    return FormsRegistrar(caller, settings.forms, settings.secrets[0])


SOURCE = SourceType(
    name="typeform",
    title="Typeform",
    settings=Settings,
    make=Typeform,
    kept_headers=("content-type", "user-agent"),
    read_base_url=lambda settings: str(settings.api_base),
    known_fields=("email", "first_name", "last_name", "phone", "form_id", "score"),
    sample=sample,
    usual={"email": "email", "phone": "phone", "first_name": "first_name", "last_name": "last_name"},
    steps=(
        "Make a long random text of letters and digits, the secret, and put it into the environment variable that "
        "`bridge.toml` names under `secrets`.",
        "In Typeform open the form and give each question that a rule reads a name: *⋯ → Block reference* "
        "(`email`, `phone`, `first_name`). The names are then the same in all forms.",
        "Open *Connect → Webhooks* and choose *Add a webhook*: the URL that `bridge url {name}` prints. Under "
        "*Edit* enter the secret and leave *SSL verification* on, then switch the webhook on.",
        "With `token` and `forms`, the command `bridge register {name}` does the third step for every form, and "
        "the worker looks twice a day whether Typeform has switched a webhook off.",
    ),
    manual="https://www.typeform.com/developers/webhooks/",
    registrar=_registrar,
)
