"""What a ``[sources.<name>]`` of the type salesforce may say, and what is wrong with it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
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
class Certificate:
    """What a proxy says of the client certificate that Salesforce showed to it."""

    header: str = field(metadata={"help": "the header that the proxy sets, over whatever came in", "example": ""})
    subjects: tuple[str, ...] = field(metadata={"help": "what it may hold, letter by letter", "example": []})


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
    secrets: tuple[Secret, ...] = field(
        default=(),
        metadata={
            "help": "what a flow's callouts show in secret_header; new first, old next. Outbound messages cannot "
            "show any, so they are refused then",
        },
    )
    secret_header: str = field(
        default="X-Bridge-Secret", metadata={"help": "the header in which callouts show one of the secrets"}
    )
    client_certificate: Certificate | None = field(
        default=None,
        metadata={
            "help": "only where a proxy of yours checks Salesforce's client certificate and says whose it is"
        },
    )
    instance_url: str = field(
        default="", metadata={"help": "where contacts are read: the organization's My Domain URL"}
    )
    login_url: str = field(
        default="", metadata={"help": "where access tokens are given out; default: the instance_url"}
    )
    client_id: str = field(
        default="", metadata={"help": "the consumer key of an app that may read contacts; default: none are read"}
    )
    client_secret: Secret | None = field(default=None, metadata={"help": "the app's consumer secret"})
    refresh_token: Secret | None = field(
        default=None, metadata={"help": "where the app has one; without it the client credentials flow is used"}
    )
    api_version: str = field(default="v63.0", metadata={"help": "the version of the REST API"})


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
        for said in [*_wrong_with(settings), *_wrong_with_app(settings)]:
            complaints.unless(False, said)


def _wrong_with(settings: Settings) -> list[str]:
    """Return what is wrong with how requests prove themselves, "key: what" each."""
    wrong = []
    if not all(secret.reveal().strip().isascii() and secret.reveal().strip() for secret in settings.secrets):
        wrong.append("secrets: one is empty (anyone could show it), or holds characters that no header has")
    if settings.secrets and not _is_header(settings.secret_header):
        wrong.append("secret_header: this is no name of a header of its own")
    certificate = settings.client_certificate
    if certificate is not None and not (_is_header(certificate.header) and all(certificate.subjects)):
        wrong.append("client_certificate: it needs the name of a header of its own, and no empty subject")
    if certificate is not None and not certificate.subjects:
        wrong.append("client_certificate: at least one subject is needed, or nobody could send")
    if odd := [name for name in settings.selected_fields if not FIELD.fullmatch(name)]:
        wrong.append(f"selected_fields: '{odd[0]}' is no API name of a field")
    if not re.fullmatch(r"v[0-9]{2,3}\.0", settings.api_version):
        wrong.append("api_version: it is written like v63.0")
    return wrong


def _wrong_with_app(settings: Settings) -> list[str]:
    wrong = []
    app = bool(settings.client_id or settings.client_secret or settings.refresh_token)
    if app and not settings.client_id:
        wrong.append(
            "client_id: it is missing; leave client_secret and refresh_token out if nothing is to be read"
        )
    if app and not {"client_secret", "refresh_token"} & set(_form(replace(settings, client_id="x"))):
        wrong.append("client_secret: it is missing or empty, and there is no refresh_token")
    if app and not settings.instance_url:
        wrong.append("instance_url: contacts are read there, such as https://example.my.salesforce.com")
    if settings.login_url and not _is_safe(settings.login_url):
        wrong.append("login_url: it is an address with https://, such as https://login.salesforce.com")
    return wrong


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
    """Return the way to the contacts; None where no credential is configured."""
    form = _form(settings)
    if not form or not settings.instance_url:
        return None
    tokens = AccessTokens(
        title="Salesforce",
        connection=name,
        base_url=settings.login_url or settings.instance_url,
        path="/services/oauth2/token",
        form=form,
    )
    caller = Caller(
        "Salesforce", name, scope="the OAuth scope api, and a user who may see contacts", tokens=tokens
    )
    return Contacts(name, f"/services/data/{settings.api_version}", caller)


def _form(settings: Settings) -> dict[str, str]:
    """Return what a token is asked for with; nothing where no app is configured."""
    if not settings.client_id:
        return {}
    given = {
        "client_id": settings.client_id,
        "client_secret": settings.client_secret.reveal().strip() if settings.client_secret else "",
        "refresh_token": settings.refresh_token.reveal().strip() if settings.refresh_token else "",
    }
    grant = "refresh_token" if given["refresh_token"] else "client_credentials"
    return {"grant_type": grant, **{name: value for name, value in given.items() if value}}
