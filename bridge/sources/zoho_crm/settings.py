"""What a section of type ``zoho_crm`` holds."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from bridge.errors import Complaints
from bridge.model import Secret

SHORTEST, LONGEST = 16, 50  # characters of a secret; Zoho takes no longer token of a channel
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,99}")  # of a module or a field, as Zoho's API has it
KEPT_HEADERS = ("content-type", "user-agent")
_BASE = re.compile(r"(https://[^/?#@\s]+|http://(localhost|127\.0\.0\.1|\[::1\])(:[0-9]+)?)(/[^?#@\s]*)?")


@dataclass(frozen=True, slots=True)
class Settings:
    """A module of a Zoho CRM account: its notification channel, and workflows that call a webhook."""

    secrets: tuple[Secret, ...] = field(
        metadata={
            "help": "the token of the notification channel, which is also what a workflow's webhook shows in "
            "the header; 16 to 50 characters, new first, old next"
        }
    )
    channel_id: int | str | None = field(
        default=None,
        metadata={"help": "the number of the notification channel; default: one made of the connection's name"},
    )
    header: str = field(
        default="X-Bridge-Token", metadata={"help": "the header in which a workflow's webhook shows the secret"}
    )
    module: str = field(
        default="Contacts", metadata={"help": "the API name of the module whose records are the contacts"}
    )
    client_id: Secret | None = field(
        default=None,
        metadata={"help": "of the OAuth client, from api-console.zoho.com: contacts can then be read"},
    )
    client_secret: Secret | None = field(default=None, metadata={"help": "of the OAuth client"})
    refresh_token: Secret | None = field(
        default=None, metadata={"help": "of the OAuth client, for the user as whom bridge reads"}
    )
    accounts_base: str = field(
        default="https://accounts.zoho.com",
        metadata={"help": "where access tokens are given out; it depends on the account's data centre"},
    )
    api_base: str = field(
        default="https://www.zohoapis.com",
        metadata={"help": "where contacts are read; it depends on the account's data centre"},
    )
    require_token: bool = field(
        default=False, metadata={"help": "accept only the URL with a token, from 'bridge url'"}
    )

    @property
    def can_call(self) -> bool:
        return all(map(_shown, (self.client_id, self.client_secret, self.refresh_token)))

    @property
    def form(self) -> Mapping[str, str]:
        """What an access token is asked for with."""
        return {
            "grant_type": "refresh_token",
            "client_id": _shown(self.client_id),
            "client_secret": _shown(self.client_secret),
            "refresh_token": _shown(self.refresh_token),
        }

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(secret.reveal().strip() for secret in self.secrets)

    def channel(self, name: str) -> str:
        """Return the number of the channel of the connection *name*."""
        if self.channel_id is not None:
            return str(self.channel_id).strip()
        return str(10**12 + int(hashlib.sha256(f"zoho_crm:{name}".encode()).hexdigest()[:10], 16))

    def check(self) -> None:
        """Complain about what cannot work.

        Raises:
            ValueError: with a line for each complaint.
        """
        with Complaints() as complaints:
            complaints.unless(bool(self.secrets), "secrets: at least one is needed, or anyone could send")
            fits = all(
                SHORTEST <= len(key) <= LONGEST and key.isascii() and key.isprintable() for key in self.keys
            )
            complaints.unless(fits, "secrets: 16 to 50 plain characters each; Zoho takes no longer ones")
            number = self.channel("x")
            fits = re.fullmatch(r"[1-9][0-9]{0,18}", number) is not None and int(number) < 2**63
            complaints.unless(fits, "channel_id: a whole number of at most 19 digits, below 9223372036854775808")
            header = re.fullmatch(r"[A-Za-z0-9_-]+", self.header) and self.header.lower() not in KEPT_HEADERS
            complaints.unless(bool(header), "header: this cannot be the name of a header for a secret")
            complaints.unless(NAME.fullmatch(self.module) is not None, "module: this is no API name of a module")
            some = any((self.client_id, self.client_secret, self.refresh_token))
            complaints.unless(
                self.can_call or not some,
                "refresh_token: to read contacts, client_id, client_secret and refresh_token are needed together",
            )
            usable = _BASE.fullmatch(self.accounts_base) is not None
            complaints.unless(usable, "accounts_base: this is no URL such as https://accounts.zoho.com")


def _shown(secret: Secret | None) -> str:
    return secret.reveal().strip() if secret else ""
