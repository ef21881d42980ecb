"""What a section of type ``dynamics365`` holds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from bridge.errors import Complaints
from bridge.model import Secret

KEPT_HEADERS = (
    "content-type",
    "user-agent",
    "x-ms-dynamics-organization",
    "x-ms-dynamics-entity-name",
    "x-ms-dynamics-request-name",
    "x-ms-dynamics-msg-size-exceeded",
    "x-ms-correlation-request-id",
)
_BASE = re.compile(r"(https://[^/?#@\s]+|http://(localhost|127\.0\.0\.1|\[::1\])(:[0-9]+)?)(/[^?#@\s]*)?")
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_SHOWABLE = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class Key:
    """A pair that was registered for the webhook: a header and what it holds."""

    header: str = field(metadata={"help": "the name of the header", "example": "X-Bridge-Key"})
    value: Secret = field(metadata={"help": "what it holds", "variable": "KEY"})


@dataclass(frozen=True, slots=True)
class Settings:
    """The webhooks of a Dataverse environment about contacts."""

    keys: tuple[Key, ...] = field(
        metadata={
            "help": "{ header, value } as registered with the authentication HttpHeader; each proves a request: "
            "several while one is being changed, new first, old next"
        }
    )
    api_base: str = field(
        metadata={
            "help": "the URL of the environment, where contacts are read",
            "example": "https://acme.crm.dynamics.com",
        }
    )
    organization_id: str | None = field(
        default=None,
        metadata={"help": "the only organisation to listen to; default: the first that is heard"},
    )
    tenant_id: Secret | None = field(
        default=None, metadata={"help": "of the Entra ID tenant in which the application is registered"}
    )
    client_id: Secret | None = field(
        default=None, metadata={"help": "of the application; with the other two, contacts can be read"}
    )
    client_secret: Secret | None = field(default=None, metadata={"help": "of the application"})
    login_base: str = field(
        default="https://login.microsoftonline.com",
        metadata={"help": "where access tokens are given out; another one in national clouds"},
    )
    require_token: bool = field(
        default=False, metadata={"help": "accept only the URL with a token, from 'bridge url'"}
    )

    @property
    def can_call(self) -> bool:
        return all(map(shown, (self.tenant_id, self.client_id, self.client_secret)))

    @property
    def base(self) -> str:
        return self.api_base.rstrip("/")

    @property
    def form(self) -> Mapping[str, str]:
        """What an access token is asked for with."""
        return {
            "grant_type": "client_credentials",
            "client_id": shown(self.client_id),
            "client_secret": shown(self.client_secret),
            "scope": f"{self.base}/.default",
        }

    def check(self) -> None:
        """Complain about what cannot work.

        Raises:
            ValueError: with a line for each complaint.
        """
        with Complaints() as complaints:
            complaints.unless(bool(self.keys), "keys: at least one is needed, or anyone could send")
            for key in self.keys:
                free = _NAME.fullmatch(key.header) and key.header.lower() not in KEPT_HEADERS
                complaints.unless(bool(free), "keys: a header cannot have this name, or is Dataverse's own")
                fits = _SHOWABLE.fullmatch(shown(key.value)) is not None
                complaints.unless(fits, "keys: a value is empty, or holds something else than plain characters")
            some = any((self.tenant_id, self.client_id, self.client_secret))
            complaints.unless(
                self.can_call or not some,
                "client_secret: to read contacts, tenant_id, client_id and client_secret are needed together",
            )
            tenant = shown(self.tenant_id)
            complaints.unless(
                not tenant or bool(re.fullmatch(r"[A-Za-z0-9._-]+", tenant)), "tenant_id: this is none"
            )
            usable = _BASE.fullmatch(self.login_base) is not None
            complaints.unless(usable, "login_base: this is no URL such as https://login.microsoftonline.com")


def shown(secret: Secret | None) -> str:
    return secret.reveal().strip() if secret else ""
