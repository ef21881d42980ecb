"""Any sender that signs with a shared secret, by a scheme that the configuration declares.

What GitHub, Stripe and Slack do are cases of it; docs/sources/hmac.md spells them out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from bridge import signing
from bridge.errors import Complaints, ConfigError, Problem
from bridge.model import InboundRequest, Secret, Verified
from bridge.sources.base import Genuine, SourceType
from bridge.sources.payload import Declared, Payload, as_json, sample

KEPT_HEADERS = ("content-type", "user-agent")


@dataclass(frozen=True, slots=True)
class Signature:
    """Where the signature stands and what it is made of."""

    header: str = field(metadata={"help": "the header that holds the signature", "example": "X-Signature"})
    digest: Literal["sha1", "sha256", "sha384", "sha512"] = field(
        default="sha256", metadata={"help": "the hash that it is made with"}
    )
    encoding: Literal["hex", "base64"] = field(default="hex", metadata={"help": "how the signature is written"})
    prefix: str = field(default="", metadata={"help": "what stands before the signature: 'sha256='"})
    parts: tuple[str, ...] = field(
        default=("body",),
        metadata={"help": "what is signed, in order: body, timestamp, method, url, header:<name>, text:<literal>"},
    )
    separator: str = field(default="", metadata={"help": "what stands between the parts: '.' or ':'"})
    between: str = field(
        default="", metadata={"help": "what separates the entries of a header that lists several: ',' or ' '"}
    )
    key: Literal["text", "hex", "base64"] = field(
        default="text", metadata={"help": "how the secret is written; its text is the key, unless said otherwise"}
    )


@dataclass(frozen=True, slots=True)
class Timestamp:
    """Where the signed moment stands: in a header of its own, or behind a prefix in the signature's header."""

    header: str = field(default="", metadata={"help": "the header that holds it, where it has one of its own"})
    prefix: str = field(default="", metadata={"help": "of its entry in the signature's header: 't='"})
    unit: Literal["s", "ms", "iso"] = field(
        default="s", metadata={"help": "seconds or milliseconds since 1970, or ISO 8601"}
    )
    tolerance_s: float = field(default=300, metadata={"help": "how far it may be from our clock, either way"})


@dataclass(frozen=True, slots=True)
class Settings:
    """A sender that signs with a shared secret."""

    secrets: tuple[Secret, ...] = field(
        metadata={"help": "the shared secret; several while it is being changed: new first, old next"}
    )
    signature: Signature = field(metadata={"help": "where the signature stands and what it is made of"})
    timestamp: Timestamp | None = field(
        default=None,
        metadata={"help": "the signed moment; without it a copied request stays good for ever"},
    )
    payload: Payload = field(default_factory=Payload, metadata={"help": "where things are in the body"})
    require_token: bool = field(
        default=False, metadata={"help": "accept only the URL with a token, from 'bridge url'"}
    )


class HmacSource(Declared):
    """One sender. Raises `ValueError` where the scheme proves nothing or a secret is unusable."""

    def __init__(self, name: str, settings: Settings) -> None:
        with Complaints() as complaints:
            scheme = signing.Scheme("x-signature", ("body",))  # for looking at the secrets, where there is none
            with complaints.look():
                scheme = _scheme(settings.signature, settings.timestamp)
            with complaints.look():
                self._credentials = signing.credentials(
                    "secrets",
                    settings.secrets,
                    lambda secret: signing.credential(scheme, secret.reveal(), settings.signature.key),
                )
            with complaints.look():
                super().__init__(name, settings.payload, as_json)

    def verify(self, request: InboundRequest, now: datetime) -> Genuine:
        proof = signing.verify(request, self._credentials, now)
        return Genuine(Verified(request), proof.index, proof.signed_at)

    def sign(self, request: InboundRequest, now: datetime) -> InboundRequest:
        """See `Source.sign`.

        Raises:
            ConfigError: a header that is to be signed is not in the request.
        """
        try:
            return signing.sign(request, self._credentials[0], now)
        except ValueError as error:
            raise ConfigError(
                Problem(f"sources.{self.name}.signature.parts", str(error), "put the header into what is sent")
            ) from error


def _scheme(signature: Signature, timestamp: Timestamp | None) -> signing.Scheme:
    if "secret" in signature.parts or "decoded_url" in signature.parts:
        raise ValueError(
            "signature.parts: body, timestamp, method, url, header:<name> and text:<literal> are parts"
        )
    try:
        return signing.Scheme(
            signature.header.lower(),
            signature.parts,
            separator=signature.separator,
            digest=signature.digest,
            encoding=signing.Encoding(signature.encoding),
            prefix=signature.prefix,
            between=signature.between,
            stamp=_stamp(timestamp) if timestamp else None,
        )
    except ValueError as error:
        raise ValueError(f"signature: {error}") from error


def _stamp(timestamp: Timestamp) -> signing.Stamp:
    return signing.Stamp(
        timestamp.header.lower(),
        timestamp.prefix,
        signing.Unit(timestamp.unit),
        past_s=timestamp.tolerance_s,
        future_s=timestamp.tolerance_s,
    )


SOURCE = SourceType(
    name="hmac",
    title="Signed JSON (HMAC)",
    settings=Settings,
    make=HmacSource,
    kept_headers=KEPT_HEADERS,
    sample=sample,
    steps=(
        "In the sender add a webhook with the URL that `bridge url {name}` prints and the format JSON.",
        "Copy its secret into the environment variable that `bridge.toml` names under `secrets`, and start "
        "bridge again.",
    ),
    keeps_others=True,
)
