"""Signature schemes as data, and the one piece of code that verifies and signs all of them.

A scheme says which header holds the signature, what is signed and how the result is written down. A credential
is a scheme with one secret; whatever takes one takes several, so that a secret is changed without downtime.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar

from bridge.errors import BadSignature, Complaints
from bridge.model import InboundRequest

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DIGESTS = ("sha1", "sha256", "sha384", "sha512")
DAY_S = 86_400
MAX_ENTRIES = 32  # of a header that lists signatures; every one costs a comparison

# What the word for a part of the signed content stands for; "header:<name>" and "text:<literal>" are parts too.
PARTS = ("secret", "method", "url", "decoded_url", "body", "timestamp")


class Algorithm(StrEnum):
    HMAC = "hmac"
    DIGEST = "digest"  # a plain hash; the secret is one of the parts
    ED25519 = "ed25519"
    GIVEN = "given"  # the secret itself is shown: HTTP Basic


class Encoding(StrEnum):
    HEX = "hex"
    BASE64 = "base64"


class Unit(StrEnum):
    SECONDS = "s"
    MILLISECONDS = "ms"
    ISO = "iso"


@dataclass(frozen=True, slots=True)
class Stamp:
    """Where the signed moment stands, and how far it may be from our clock.

    It has a header of its own, or is the entry of the signature's header that begins with *prefix*.
    """

    header: str = ""  # lower-case
    prefix: str = ""
    unit: Unit = Unit.SECONDS
    past_s: float = 300
    future_s: float = 300
    lasting: bool = False  # the sender may repeat a request for days, with the moment of the first try


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a request is signed.

    Raises:
        ValueError: the scheme contradicts itself, or would prove nothing; the message is for a person.
    """

    header: str  # lower-case; holds the signature
    parts: tuple[str, ...] = ("body",)
    separator: str = ""  # stands between the parts
    algorithm: Algorithm = Algorithm.HMAC
    digest: str = "sha256"
    encoding: Encoding = Encoding.HEX
    prefix: str = ""  # stands before the signature
    any_case: bool = False  # the prefix is read in any case of letters
    between: str = ""  # separates the entries of a header that lists several signatures; "": there is one
    stamp: Stamp | None = None

    def __post_init__(self) -> None:
        for part in self.parts:
            if part not in PARTS and not part.startswith(("header:", "text:")):
                raise ValueError(
                    f"'{part}' cannot be a part of what is signed; the parts are {', '.join(PARTS[1:])}, "
                    "header:<name> and text:<literal>"
                )
        if not self.header.isascii() or not self.header:
            raise ValueError("the signature needs the name of the header that holds it")
        if self.digest not in DIGESTS:
            raise ValueError(f"'{self.digest}' is no digest that bridge knows; they are {', '.join(DIGESTS)}")
        if self.algorithm is not Algorithm.GIVEN and "body" not in self.parts:
            raise ValueError("a signature that leaves out the body proves nothing: add 'body' to the parts")
        if ("timestamp" in self.parts) != (self.stamp is not None):
            raise ValueError(
                "a timestamp protects only when it is signed: say where it is, and put 'timestamp' in the parts"
            )
        if self.stamp is not None and bool(self.stamp.header) == bool(self.stamp.prefix):
            raise ValueError(
                "the timestamp stands either in a header of its own or behind a prefix in the signature's header"
            )
        if self.stamp is not None:
            # Longer than a day only where code knows why: nobody should need to write it into a configuration.
            longest_s, said = (4 * DAY_S, "four days") if self.stamp.lasting else (DAY_S, "a day")
            if not all(0 < s <= longest_s for s in (self.stamp.past_s, self.stamp.future_s)):
                raise ValueError(
                    f"the tolerance of a timestamp is more than nothing and at most {said} ({longest_s} s)"
                )
        if self.stamp is not None and self.stamp.prefix and not self.between:
            raise ValueError("a timestamp inside the signature's header needs to know what separates the entries")


@dataclass(frozen=True, slots=True)
class Credential:
    """A scheme with one secret, ready for use. Made by `credential`."""

    scheme: Scheme
    key: bytes = field(repr=False)  # ed25519: the public key
    signing_key: bytes | None = field(repr=False)  # None: it can only verify


@dataclass(frozen=True, slots=True)
class Proof:
    """That a request is genuine: by which credential (from 0), and when it says it was signed."""

    index: int
    signed_at: datetime | None


# --- the schemes that have a name ------------------------------------------------------------------------

# https://developers.hubspot.com/docs/apps/legacy-apps/authentication/validating-requests
HUBSPOT_V1 = Scheme("x-hubspot-signature", ("secret", "body"), algorithm=Algorithm.DIGEST)
HUBSPOT_V2 = Scheme("x-hubspot-signature", ("secret", "method", "url", "body"), algorithm=Algorithm.DIGEST)
HUBSPOT_V3 = Scheme(
    "x-hubspot-signature-v3",
    ("method", "decoded_url", "body", "timestamp"),
    encoding=Encoding.BASE64,
    stamp=Stamp("x-hubspot-request-timestamp", unit=Unit.MILLISECONDS, past_s=300, future_s=60),
)


def standard_webhooks(names: str, algorithm: Algorithm) -> Scheme:
    """Return the scheme of https://www.standardwebhooks.com with headers ``<names>-id`` and so on."""
    return Scheme(
        f"{names}-signature",
        (f"header:{names}-id", "timestamp", "body"),
        separator=".",
        algorithm=algorithm,
        encoding=Encoding.BASE64,
        # A key of one kind never checks a signature of the other kind.
        prefix="v1a," if algorithm is Algorithm.ED25519 else "v1,",
        between=" ",
        stamp=Stamp(f"{names}-timestamp"),
    )


# https://docs.stripe.com/webhooks#verify-manually. Entries of other versions ("v0", for tests) count for nothing.
STRIPE = Scheme(
    "stripe-signature", ("timestamp", "body"), separator=".", prefix="v1=", between=",", stamp=Stamp(prefix="t=")
)

# https://docs.slack.dev/authentication/verifying-requests-from-slack
SLACK = Scheme(
    "x-slack-signature",
    ("text:v0", "timestamp", "body"),
    separator=":",
    prefix="v0=",
    stamp=Stamp("x-slack-request-timestamp"),
)

# https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries
GITHUB = Scheme("x-hub-signature-256", prefix="sha256=")

# RFC 7617; the secret is "user:password".
BASIC = Scheme(
    "authorization",
    (),
    algorithm=Algorithm.GIVEN,
    encoding=Encoding.BASE64,
    prefix="Basic ",
    any_case=True,
)


# --- secrets ---------------------------------------------------------------------------------------------


Given = TypeVar("Given")


def credentials(key: str, given: Sequence[Given], make: Callable[[Given], Credential]) -> tuple[Credential, ...]:
    """Return what *make* makes of each secret that stands under *key* in a section of the configuration.

    Raises:
        ValueError: there is none, or one is unusable; the message begins with *key*.
    """
    if not given:
        raise ValueError(f"{key}: at least one is needed, or anyone could send")
    made = []
    with Complaints() as complaints:
        for one in given:
            try:
                made.append(make(one))
            except ValueError as error:
                complaints.unless(False, f"{key}: {error}")
    return tuple(made)


def credential(scheme: Scheme, secret: str, key_encoding: str = "text") -> Credential:
    """Return *scheme* with *secret*, whose key is its ``text``, or what it means as ``hex`` or ``base64``.

    Raises:
        ValueError: the secret is empty (anyone could sign with it) or not in that encoding.
    """
    key = _key(secret, key_encoding)
    return Credential(scheme, key, key)


def standard_credential(names: str, secret: str) -> Credential:
    """Return a Standard Webhooks credential: ``whsec_`` (shared), ``whpk_`` (public) or ``whsk_`` (private).

    Raises:
        ValueError: the secret is empty, or no key of its kind.
    """
    kind, underscore, rest = secret.strip().partition("_")
    if not underscore:  # some senders show a shared secret without its prefix
        kind, rest = "whsec", secret
    if kind not in {"whsec", "whpk", "whsk"}:
        raise ValueError("the secret begins with none of whsec_, whpk_ and whsk_")
    key = _key(rest, "base64")
    if kind == "whsec":
        return Credential(standard_webhooks(names, Algorithm.HMAC), key, key)
    scheme = standard_webhooks(names, Algorithm.ED25519)
    if kind == "whpk":
        if len(key) != 32:
            raise ValueError("a public key (whpk_) has 32 bytes, this one has another length")
        return Credential(scheme, key, None)
    if len(key) not in {32, 64}:
        raise ValueError("a private key (whsk_) has 32 bytes, or 64 with the public one; this has another length")
    public = _ed25519(key[:32]).public_key().public_bytes_raw()
    if len(key) == 64 and not hmac.compare_digest(key[32:], public):
        raise ValueError("the two halves of this private key (whsk_) do not belong together")
    return Credential(scheme, public, key[:32])


def basic_credential(user: str, password: str) -> Credential:
    """Return an HTTP Basic credential.

    Raises:
        ValueError: the user has a colon (it would end there), or one of the two is empty.
    """
    if not user or ":" in user:
        raise ValueError("the user of HTTP Basic must not be empty and must not hold a colon")
    if not password:
        raise ValueError("the password is empty: anyone could send with it")
    return credential(BASIC, f"{user}:{password}")


def _key(secret: str, key_encoding: str) -> bytes:
    text = secret.strip()  # a secret read from a file often ends in a newline
    if not text:
        raise ValueError("the secret is empty: anyone could sign with it")
    try:
        if key_encoding == "hex":
            key = bytes.fromhex(text)
        elif key_encoding == "base64":
            key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
        else:
            key = text.encode()
    except ValueError:
        # "from None": the cause would quote the secret.
        raise ValueError(f"the secret is not written in {key_encoding}") from None
    return key


# --- verifying and signing -------------------------------------------------------------------------------


def verify(request: InboundRequest, credentials: Sequence[Credential], now: datetime) -> Proof:
    """Return which of *credentials* the request was signed with; all are tried, whichever matches.

    Raises:
        BadSignature: none matches, or the request is stale. The message never quotes what was sent.
    """
    proof: Proof | None = None
    reason: BadSignature | None = None
    for index, one in enumerate(credentials):
        try:
            signed_at = _check(request, one, now)
        except BadSignature as error:
            reason = reason or error
        else:
            proof = proof or Proof(index, signed_at)
    if proof is None:
        raise reason or BadSignature("No secret is configured that could prove this request.")
    return proof


def sign(request: InboundRequest, with_: Credential, now: datetime) -> InboundRequest:
    """Return *request* with the headers that make it genuine at *now*.

    Raises:
        ValueError: the credential is a public key, or a header that is to be signed is missing.
    """
    scheme = with_.scheme
    if with_.signing_key is None:
        raise ValueError("a public key can check signatures, but it cannot make them")
    headers = dict(request.headers)
    timestamp = ""
    entries: list[str] = []
    if scheme.stamp is not None:
        timestamp = _written(now, scheme.stamp.unit)
        if scheme.stamp.header:
            headers[scheme.stamp.header] = timestamp
        else:
            entries.append(scheme.stamp.prefix + timestamp)
    try:
        content = _content(replace(request, headers=headers), with_, timestamp)
    except BadSignature as error:
        raise ValueError(str(error)) from error
    entries.append(scheme.prefix + _signature(with_, with_.signing_key, content))
    headers[scheme.header] = scheme.between.join(entries)
    return replace(request, headers=headers)


def _check(request: InboundRequest, one: Credential, now: datetime) -> datetime | None:
    entries = _entries(request.headers, one.scheme)
    candidates = _behind(one.scheme.prefix, entries, any_case=one.scheme.any_case)
    if not candidates:
        raise BadSignature(f"The header {one.scheme.header} holds no signature of the configured kind.")
    timestamp = _timestamp(request.headers, one.scheme, entries)
    signed_at = _moment(timestamp, one.scheme.stamp.unit) if one.scheme.stamp else None
    if not _matches(one, _content(request, one, timestamp), candidates):
        raise BadSignature("The signature does not match.")
    if one.scheme.stamp and signed_at:
        age_s = (now - signed_at).total_seconds()
        if age_s > one.scheme.stamp.past_s:
            raise BadSignature("The signature is right, but it was made too long ago.")
        if age_s < -one.scheme.stamp.future_s:
            raise BadSignature("The signature is right, but its time is in the future.")
    return signed_at


def _header(headers: Mapping[str, str], name: str) -> str:
    value = headers.get(name, "")
    if not value:
        raise BadSignature(f"The header {name} is missing.")
    if not value.isascii():
        raise BadSignature(f"The header {name} holds characters that no signature has.")
    return value


def _entries(headers: Mapping[str, str], scheme: Scheme) -> list[str]:
    value = _header(headers, scheme.header)
    if not scheme.between:
        # A header sent twice arrives joined by a comma, and no single signature holds one.
        if "," in value:
            raise BadSignature(f"The header {scheme.header} came more than once.")
        return [value]
    entries = value.split(scheme.between, MAX_ENTRIES)
    if len(entries) > MAX_ENTRIES:
        raise BadSignature(f"The header {scheme.header} lists more than {MAX_ENTRIES} entries.")
    return [entry.strip() for entry in entries]


def _behind(prefix: str, entries: Sequence[str], *, any_case: bool = False) -> list[str]:
    def fits(entry: str) -> bool:
        start = entry[: len(prefix)]
        return start.lower() == prefix.lower() if any_case else start == prefix

    return [entry[len(prefix) :] for entry in entries if fits(entry)]


def _timestamp(headers: Mapping[str, str], scheme: Scheme, entries: Sequence[str]) -> str:
    if scheme.stamp is None:
        return ""
    if scheme.stamp.header:
        return _header(headers, scheme.stamp.header)
    found = _behind(scheme.stamp.prefix, entries)
    if len(found) != 1:
        raise BadSignature(f"The header {scheme.header} must hold exactly one time.")
    return found[0]


# Strict on purpose: a lenient parser turns nonsense into a time that passes the check of its age.
_SHAPES = {
    Unit.SECONDS: re.compile(r"[0-9]{10}"),
    Unit.MILLISECONDS: re.compile(r"[0-9]{13}"),
    Unit.ISO: re.compile(
        r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?(Z|[+-][0-9]{2}:[0-9]{2})"
    ),
}


def _moment(text: str, unit: Unit) -> datetime:
    if not _SHAPES[unit].fullmatch(text):
        raise BadSignature("The time of the signature is not written as it should be.")
    if unit is Unit.SECONDS:
        return EPOCH + timedelta(seconds=int(text))
    if unit is Unit.MILLISECONDS:
        return EPOCH + timedelta(milliseconds=int(text))
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise BadSignature("The time of the signature is no time.") from error


def _written(moment: datetime, unit: Unit) -> str:
    if unit is Unit.ISO:
        return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return str((moment - EPOCH) // timedelta(**{"seconds" if unit is Unit.SECONDS else "milliseconds": 1}))


# HubSpot decodes exactly these, and nothing else, before it signs (v3).
_DECODED = {
    "3A": ":", "2F": "/", "3F": "?", "40": "@", "21": "!", "24": "$",
    "27": "'", "28": "(", "29": ")", "2A": "*", "2C": ",", "3B": ";",
}  # fmt: skip
_DECODED_PATTERN = re.compile("%(" + "|".join(_DECODED) + ")", re.IGNORECASE)


def decode_url(url: str) -> str:
    """Return *url* with HubSpot's twelve escapes decoded, in one pass: ``%252F`` keeps its ``%25``."""
    return _DECODED_PATTERN.sub(lambda match: _DECODED[match[1].upper()], url)


def _content(request: InboundRequest, one: Credential, timestamp: str) -> bytes:
    return _utf8(one.scheme.separator).join(_part(part, request, one, timestamp) for part in one.scheme.parts)


def _part(part: str, request: InboundRequest, one: Credential, timestamp: str) -> bytes:
    kind, _, rest = part.partition(":")
    if kind == "header":
        return _utf8(_header(request.headers, rest.lower()))
    if kind == "text":
        return _utf8(rest)
    if kind == "body":
        return request.body
    if kind == "secret":
        return one.key
    texts = {
        "method": request.method.upper(),
        "url": request.url,
        "decoded_url": decode_url(request.url),
        "timestamp": timestamp,
    }
    return _utf8(texts[kind])


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # garbage must end in a mismatch, not in an error


def _signature(one: Credential, key: bytes, content: bytes) -> str:
    """Return what stands behind the prefix when *content* is signed."""
    if one.scheme.algorithm is Algorithm.HMAC:
        made = hmac.digest(key, content, one.scheme.digest)
    elif one.scheme.algorithm is Algorithm.DIGEST:
        made = hashlib.new(one.scheme.digest, content).digest()
    elif one.scheme.algorithm is Algorithm.ED25519:
        made = _ed25519(key).sign(content)
    else:
        made = key
    return made.hex() if one.scheme.encoding is Encoding.HEX else base64.b64encode(made).decode()


def _matches(one: Credential, content: bytes, candidates: Sequence[str]) -> bool:
    """Compare with every candidate, without stopping at the first that matches."""
    if one.scheme.algorithm is Algorithm.ED25519:
        return sum(_ed25519_matches(one.key, content, text) for text in candidates) > 0
    expected = _signature(one, one.key, content).encode()
    # Hex means the same in both cases of letters, base64 does not.
    hexadecimal = one.scheme.encoding is Encoding.HEX
    given = [(text.lower() if hexadecimal else text).encode() for text in candidates]
    return sum(hmac.compare_digest(text, expected) for text in given) > 0


# cryptography brings an OpenSSL of its own, which takes 5 MB in every process: only these keys need it.


def _ed25519(private: bytes) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(private)


def _ed25519_matches(public: bytes, content: bytes, text: str) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        signature = base64.b64decode(text, validate=True)
        Ed25519PublicKey.from_public_bytes(public).verify(signature, content)
    except (binascii.Error, InvalidSignature, ValueError):
        return False
    return base64.b64encode(signature).decode() == text  # one spelling only, as with every other scheme
