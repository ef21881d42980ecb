"""Any sender that follows https://www.standardwebhooks.com, or uses Svix.

Signed: the id, the time of the attempt and the raw body. The id stays the same in all attempts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial

from bridge import signing
from bridge.errors import Complaints, ConfigError, Problem
from bridge.model import InboundRequest, Secret, Verified
from bridge.sources.base import Genuine, SourceType
from bridge.sources.payload import Declared, Payload, as_json, sample
from bridge.sources.reading import event_key

NAMES = ("webhook", "svix")  # of the header sets: the standard's, and Svix's older one
STANDARD = ("webhook-id", "webhook-timestamp", "webhook-signature")
KEPT_HEADERS = ("webhook-id", "svix-id", "content-type", "user-agent")


@dataclass(frozen=True, slots=True)
class Settings:
    """A sender that signs by Standard Webhooks."""

    secrets: tuple[Secret, ...] = field(
        metadata={"help": "whsec_… (shared), or whpk_… (the sender's public key); new first, old next"}
    )
    payload: Payload = field(default_factory=Payload, metadata={"help": "where things are in the body"})
    require_token: bool = field(
        default=False, metadata={"help": "accept only the URL with a token, from 'bridge url'"}
    )


class StandardWebhooks(Declared):
    """One sender. Raises `ValueError` where a secret or an expression is unusable."""

    def __init__(self, name: str, settings: Settings) -> None:
        with Complaints() as complaints:
            with complaints.look():
                # Both header sets, each with all secrets: they are never mixed in one check.
                self._credentials = {
                    names: signing.credentials("secrets", settings.secrets, partial(_credential, names))
                    for names in NAMES
                }
            with complaints.look():
                super().__init__(name, settings.payload, as_json)

    def verify(self, request: InboundRequest, now: datetime) -> Genuine:
        proof = signing.verify(request, self._credentials[_names(request.headers)], now)
        return Genuine(Verified(request), proof.index, proof.signed_at)

    def sender_id(self, headers: Mapping[str, str]) -> str:
        return headers.get(f"{_names(headers)}-id", "")

    def sign(self, request: InboundRequest, now: datetime) -> InboundRequest:
        """See `Source.sign`; the id is made of the content where the request has none.

        Raises:
            ConfigError: only public keys are configured.
        """
        names = _names(request.headers)
        headers = {f"{names}-id": "msg_" + event_key(request.body.hex(), now)[:24], **request.headers}
        for one in self._credentials[names]:
            if one.signing_key is not None:
                return signing.sign(replace(request, headers=headers), one, now)
        raise ConfigError(
            Problem(
                f"sources.{self.name}.secrets",
                "these are public keys, which check signatures but cannot make them",
                "put the private key (whsk_…) there on a test machine",
            )
        )


def _credential(names: str, secret: Secret) -> signing.Credential:
    return signing.standard_credential(names, secret.reveal())


def _names(headers: Mapping[str, str]) -> str:
    """Return which header set counts: Svix's only where there is nothing of the standard's."""
    return "svix" if "svix-id" in headers and headers.keys().isdisjoint(STANDARD) else "webhook"


SOURCE = SourceType(
    name="standard_webhooks",
    title="Standard Webhooks",
    settings=Settings,
    make=StandardWebhooks,
    kept_headers=KEPT_HEADERS,
    sample=sample,
    steps=(
        "In the sender add an endpoint with the URL that `bridge url {name}` prints, and subscribe it to what "
        "concerns contacts.",
        "Copy the *signing secret*, with its `whsec_`, into the environment variable that `bridge.toml` names "
        "under `secrets`, and start bridge again.",
    ),
    manual="https://www.standardwebhooks.com",
    keeps_others=True,
)
