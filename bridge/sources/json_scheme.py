"""Any sender of JSON that cannot sign, but can show a token or a password; or can at least keep its URL secret."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from bridge import signing
from bridge.errors import BadSignature, Complaints
from bridge.model import InboundRequest, Secret, Verified
from bridge.sources import shown
from bridge.sources.base import Genuine, Proof, SourceType
from bridge.sources.payload import Declared, Payload, as_json, sample

KEPT_HEADERS = ("content-type", "user-agent")


@dataclass(frozen=True, slots=True)
class Login:
    """A user and passwords for HTTP Basic."""

    user: str = field(metadata={"help": "without a colon", "example": "bridge"})
    passwords: tuple[Secret, ...] = field(
        metadata={"help": "several while it is being changed: new first, old next"}
    )


@dataclass(frozen=True, slots=True)
class Settings:
    """A sender of JSON that shows a token, or a password."""

    secrets: tuple[Secret, ...] = field(
        metadata={
            "help": "what the sender shows in the header; new first, old next; [] where it can show none, and "
            "then login or require_token is needed"
        }
    )
    header: str = field(default=shown.HEADER, metadata={"help": "the header that shows a secret"})
    prefix: str = field(default="", metadata={"help": "what stands before the secret: 'Bearer '"})
    login: Login | None = field(
        default=None, metadata={"help": "user and passwords of HTTP Basic, either of which is as good as a secret"}
    )
    payload: Payload = field(default_factory=Payload, metadata={"help": "where things are in the body"})
    require_token: bool = field(
        default=False, metadata={"help": "accept only the URL with a token, from 'bridge url'"}
    )


class Shown(Declared):
    """One sender. Raises `ValueError` where anybody could send, or a secret or an expression is unusable."""

    def __init__(self, name: str, settings: Settings, content: Callable[[InboundRequest], Any]) -> None:
        with Complaints() as complaints:
            with complaints.look():
                self._shown = shown.in_header(settings.secrets, settings.header, settings.prefix)
            with complaints.look():
                self._logins = _logins(settings.login)
            with complaints.look():
                super().__init__(name, settings.payload, content)
            complaints.unless(
                bool(settings.secrets or settings.login) or settings.require_token,
                "require_token: without secrets and login nothing else proves a request: give one of them, or "
                "write require_token = true",
            )

    def verify(self, request: InboundRequest, now: datetime) -> Genuine:
        """See `Source.verify`. Where nothing is shown, the URL's token is the proof, which is checked before."""
        return Genuine(Verified(shown.without(request, self._shown.header)), self._index(request, now))

    def _index(self, request: InboundRequest, now: datetime) -> int:
        if not self._shown.values and not self._logins:
            return 0
        reason: BadSignature | None = None
        if self._shown.values:
            try:
                return self._shown.match(request)
            except BadSignature as error:
                reason = error
        if self._logins:
            try:
                return len(self._shown.values) + signing.verify(request, self._logins, now).index
            except BadSignature as error:
                reason = reason or error
        raise reason or BadSignature("The request shows nothing.")

    def sign(self, request: InboundRequest, now: datetime) -> InboundRequest:
        if self._shown.values:
            return self._shown.show(request)
        return signing.sign(request, self._logins[0], now) if self._logins else request


def _logins(login: Login | None) -> tuple[signing.Credential, ...]:
    if login is None:
        return ()
    user = login.user
    return signing.credentials(
        "login", login.passwords, lambda password: signing.basic_credential(user, password.reveal())
    )


STEPS = (
    "Make a long random text, for instance with `openssl rand -hex 32`, and put it into the environment variable "
    "that `bridge.toml` names under `secrets`.",
    "In the sender add a webhook with the method POST, the URL that `bridge url {name}` prints, the format %s, "
    "and a header of its own: `X-Bridge-Token` with that text as its value.",
    "Where the sender can show a user and a password only, give them under `login`. Where it can show nothing, "
    "write `secrets = []` and `require_token = true`: the URL is the secret then.",
)

SOURCE = SourceType(
    name="json",
    title="Any sender of JSON",
    settings=Settings,
    make=lambda name, settings: Shown(name, settings, as_json),
    kept_headers=KEPT_HEADERS,
    proof=Proof.SHOWN,
    sample=sample,
    steps=tuple(step.replace("%s", "JSON") for step in STEPS),
    keeps_others=True,
)
