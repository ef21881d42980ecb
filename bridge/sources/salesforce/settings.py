"""What a ``[sources.<name>]`` of the type salesforce may say, and what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from bridge.errors import Complaints
from bridge.model import Secret
from bridge.sources.calling import Caller
from bridge.sources.oauth import AccessTokens
from bridge.sources.reading import Unclear
from bridge.sources.salesforce.ids import ORGANIZATION, full_id
from bridge.sources.salesforce.records import FIELD, Contacts

KEPT_HEADERS = ("content-type", "user-agent")


@dataclass(frozen=True, slots=True)
class Callouts:
    """What the callouts of flows show beside the URL."""

    secrets: tuple[Secret, ...] = field(
        metadata={
            "help": "what each request shows in the header; new first, old next. Outbound messages cannot show "
            "any, so they are refused then"
        }
    )
    header: str = field(default="X-Bridge-Secret", metadata={"help": "the header in which it is shown"})


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a proxy says of the client certificate that Salesforce showed to it."""

    header: str = field(
        metadata={
            "help": "the header that the proxy sets, over whatever came in by that name",
            "example": "X-Client-Subject",
        }
    )
    subjects: tuple[str, ...] = field(
        metadata={"help": "what it may hold, letter by letter", "example": ["CN=salesforce.example.com"]}
    )


@dataclass(frozen=True, slots=True)
class App:
    """An app of the organization, whose user may see contacts."""

    instance_url: str = field(
        metadata={
            "help": "where contacts are read: the organization's My Domain URL",
            "example": "https://example.my.salesforce.com",
        }
    )
    client_id: Secret = field(metadata={"help": "the app's consumer key"})
    client_secret: Secret | None = field(default=None, metadata={"help": "the app's consumer secret"})
    refresh_token: Secret | None = field(
        default=None, metadata={"help": "where the app has one; without it the client credentials flow is used"}
    )
    login_url: str = field(
        default="", metadata={"help": "where access tokens are given out; default: the instance_url"}
    )
    api_version: str = field(default="v63.0", metadata={"help": "the version of the REST API"})


@dataclass(frozen=True, slots=True)
class Settings:
    """The Outbound Messages and flows of a Salesforce organization."""

    organization_id: str = field(
        metadata={"help": "the Organization ID from Setup, Company Information: 15 or 18 characters, from 00D on"}
    )
    selected_fields: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "the fields that are ticked in the outbound message: one that it leaves out then reads as "
            "cleared; without this list it says nothing"
        },
    )
    app: App | None = field(default=None, metadata={"help": "an app that reads contacts whole; default: none do"})
    callouts: Callouts | None = field(
        default=None, metadata={"help": "only where flows call and no outbound messages: what they show"}
    )
    client_certificate: Certificate | None = field(
        default=None,
        metadata={
            "help": "only where a proxy of yours checks Salesforce's client certificate and says whose it is"
        },
    )


# --- checks ----------------------------------------------------------------------------------------------


def organization(text: str | None) -> str:
    """Return the 18 characters of an organization's id.

    Raises:
        ValueError: it is none.
    """
    try:
        return full_id(text, ORGANIZATION, "id of an organization")
    except Unclear as error:
        raise ValueError(
            "organization_id: it has 15 or 18 letters and digits, begins with 00D, and the case of its letters "
            "counts"
        ) from error


def check(settings: Settings) -> None:
    """Look at all that no type can say.

    Raises:
        ValueError: a setting is unusable; a line for each, "key: what is wrong".
    """
    with Complaints() as complaints:
        with complaints.look():
            organization(settings.organization_id)
        for said in _wrong_with(settings):
            complaints.unless(False, said)
        if settings.app is not None:
            for said in _wrong_with_app(settings.app):
                complaints.unless(False, f"app.{said}")


def _wrong_with(settings: Settings) -> Iterator[str]:
    """Yield what is wrong with how requests prove themselves and what is read of them, "key: what" each."""
    if (callouts := settings.callouts) is not None:
        secrets = [secret.reveal().strip() for secret in callouts.secrets]
        if not secrets:
            yield "callouts.secrets: at least one is needed, or anyone could send"
        if not all(secret and secret.isascii() and secret.isprintable() for secret in secrets):
            yield "callouts.secrets: one is empty (anyone could show it), or holds characters that no header has"
        if not _is_header(callouts.header):
            yield "callouts.header: this is no name for a header of its own"
    if (certificate := settings.client_certificate) is not None:
        if not _is_header(certificate.header):
            yield "client_certificate.header: this is no name for a header of its own"
        if not certificate.subjects or not all(one.strip() for one in certificate.subjects):
            yield "client_certificate.subjects: at least one is needed, and none that is empty"
    if odd := [name for name in settings.selected_fields if not FIELD.fullmatch(name)]:
        yield f"selected_fields: '{odd[0]}' is no API name of a field"


def _wrong_with_app(app: App) -> Iterator[str]:
    if not app.client_id.reveal().strip():
        yield "client_id: it is empty"
    if not {"client_secret", "refresh_token"} & set(_form(app)):
        yield "client_secret: it is missing or empty, and there is no refresh_token"
    for key, url in (("instance_url", app.instance_url), ("login_url", app.login_url or app.instance_url)):
        if not _is_safe(url):
            yield f"{key}: it is an address with https://, such as https://example.my.salesforce.com"
    if not re.fullmatch(r"v[0-9]{2,3}\.0", app.api_version):
        yield "api_version: it is written like v63.0"


def _is_header(name: str) -> bool:
    return bool(re.fullmatch(r"[A-Za-z0-9-]{1,60}", name)) and name.lower() not in KEPT_HEADERS


def _is_safe(url: str) -> bool:
    """Say whether a secret may be sent there: by TLS, or within this machine."""
    try:
        parts = urlsplit(url)
        plain = not (parts.username or parts.password or parts.query or parts.fragment)
        own = parts.scheme == "http" and parts.hostname in {"127.0.0.1", "::1", "localhost"}
        return plain and bool(parts.hostname) and (parts.scheme == "https" or own)
    except ValueError:
        return False


# --- access ----------------------------------------------------------------------------------------------


def contacts_of(name: str, settings: Settings) -> Contacts | None:
    """Return the way to the contacts; None where no app is configured."""
    if (app := settings.app) is None:
        return None
    tokens = AccessTokens(
        title="Salesforce",
        connection=name,
        base_url=app.login_url or app.instance_url,
        path="/services/oauth2/token",
        form=_form(app),
    )
    caller = Caller(
        "Salesforce", name, scope="the OAuth scope api, and a user who may see contacts", tokens=tokens
    )
    return Contacts(name, f"/services/data/{app.api_version}", caller)


def _form(app: App) -> dict[str, str]:
    """Return what a token is asked for with."""
    given = {
        "client_id": app.client_id.reveal().strip(),
        "client_secret": app.client_secret.reveal().strip() if app.client_secret else "",
        "refresh_token": app.refresh_token.reveal().strip() if app.refresh_token else "",
    }
    grant = "refresh_token" if given["refresh_token"] else "client_credentials"
    return {"grant_type": grant, **{name: value for name, value in given.items() if value}}
