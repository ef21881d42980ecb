"""The tokens in monday.com's ``Authorization`` header: JWTs, signed with HS256 and never with anything else.

A token says who asks whom until when. It does not cover the body of the request that it comes with.
https://developer.monday.com/apps/docs/authorization-header and https://www.rfc-editor.org/rfc/rfc7519
"""

from __future__ import annotations

import base64
import hmac
import json
import re
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from bridge.errors import BadPayload, BadSignature
from bridge.signing import EPOCH
from bridge.sources.reading import read_json

ALGORITHM = "HS256"
LIFE_S = 300
LEEWAY_S = 60  # by which monday.com's clock and ours may differ
LONGEST = 8192  # characters
_PART = re.compile(r"[A-Za-z0-9_-]+")


def made(key: bytes, audience: str, now: datetime) -> str:
    """Return a token for requests to *audience*, good for five minutes from *now*."""
    issued_at = int((now - EPOCH).total_seconds())
    claims = {"aud": audience, "exp": issued_at + LIFE_S, "iat": issued_at}
    content = f"{_encoded({'alg': ALGORITHM, 'typ': 'JWT'})}.{_encoded(claims)}"
    return f"{content}.{_signature(key, content)}"


def checked(
    header: str, keys: Sequence[bytes], audiences: Collection[str], now: datetime
) -> tuple[int, datetime | None]:
    """Return which of *keys* the token of an ``Authorization`` header was signed with, and when, if it says so.

    *audiences* are those of which it must name one, if it names any. All keys are tried, whichever matches.

    Raises:
        BadSignature: it is no such token, or is no longer good. The message never quotes what was sent.
    """
    head, content, signature = _parts(header)
    if head.get("alg") != ALGORITHM or "crit" in head:
        raise BadSignature("The token is not signed the way that monday.com signs (HS256).")
    matches = [hmac.compare_digest(_signature(key, content).encode(), signature.encode()) for key in keys]
    if not any(matches):
        raise BadSignature("The signature of the token does not match.")
    claims = _object(content.partition(".")[2])
    expires_at, not_before = _moment(claims.get("exp")), _moment(claims.get("nbf", 1))
    if expires_at is None:
        raise BadSignature("The token does not say when it ends.")
    if now > expires_at + timedelta(seconds=LEEWAY_S):
        raise BadSignature("The signature is right, but the token has ended.")
    if not_before is None or now < not_before - timedelta(seconds=LEEWAY_S):
        raise BadSignature("The signature is right, but the token is not good yet.")
    _check_audience(claims.get("aud"), audiences)
    return matches.index(True), _moment(claims.get("iat"))


def _check_audience(named: Any, audiences: Collection[str]) -> None:
    """Refuse a token that was made for requests to somebody else; one that names nobody is taken."""
    if named in (None, "", []):
        return
    given = named if isinstance(named, list) else [named]
    wanted = {audience.rstrip("/") for audience in audiences}
    if not any(isinstance(one, str) and one.rstrip("/") in wanted for one in given):
        raise BadSignature("The signature is right, but the token is for another URL than this one.")


def _parts(header: str) -> tuple[Mapping[str, Any], str, str]:
    """Return what the token's head says, the part of it that is signed, and its signature."""
    token = header.strip()
    if token[:7].lower() == "bearer ":
        token = token[7:].strip()
    if not token:
        raise BadSignature("The header authorization is missing: webhooks of an app have it, others do not.")
    parts = token.split(".") if len(token) <= LONGEST else []
    if len(parts) != 3 or not all(map(_PART.fullmatch, parts)):
        raise BadSignature("The header authorization holds no token of monday.com's.")
    return _object(parts[0]), f"{parts[0]}.{parts[1]}", parts[2]


def _object(part: str) -> Mapping[str, Any]:
    try:
        value = read_json(base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True))
    except (BadPayload, ValueError) as error:
        raise BadSignature("The header authorization holds no token of monday.com's.") from error
    if not isinstance(value, dict):
        raise BadSignature("The header authorization holds no token of monday.com's.")
    return value


def _moment(value: Any) -> datetime | None:
    """Return the moment of a number of seconds since 1970; None where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e11:
        return None
    return EPOCH + timedelta(seconds=value)


def _encoded(value: Mapping[str, Any]) -> str:
    return _base64(json.dumps(value, separators=(",", ":")).encode())


def _signature(key: bytes, content: str) -> str:
    return _base64(hmac.digest(key, content.encode(), "sha256"))


def _base64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")
