"""What every source promises.

A source turns bytes into changes. It knows no store, no settings but its own, and no clock. Adding one is a file
here, a line in ``sources/__init__.py``, recordings in ``tests/fixtures/sources`` and a page in ``docs/sources``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from itertools import islice
from typing import Any, NoReturn, Protocol

from bridge.errors import SourceUnavailable
from bridge.model import Change, Event, InboundRequest, RecordKey, Secret, Value, Verified, Version
from bridge.outbound import Api
from bridge.sources.sampling import Sampling


class Proof(StrEnum):
    """What the requests of a source prove, from strong to weak."""

    SIGNED = "signed"  # that whoever has the secret said just this
    SHOWN = "shown"  # that whoever sent it has the secret, which it shows: a password, or a token
    URL = "url"  # that whoever sent it knows the URL, which therefore has a secret token in it


@dataclass(frozen=True, slots=True)
class Genuine:
    """A request that passed its check."""

    request: Verified
    secret_index: int  # which configured secret matched, from 0; the value is never kept
    signed_at: datetime | None = None  # the signed timestamp, where the scheme has one


@dataclass(frozen=True, slots=True)
class Read:
    """What a CRM said of one record that was asked for.

    *fields* None: the CRM does not know it (deleted, or the made-up id of a test event). *key* differs from the
    one asked for when the record was merged into another. *problem*: one sentence saying why nothing was learnt of
    this record, whatever the others came to; *fields* is None then, too.
    """

    asked: RecordKey
    key: RecordKey
    fields: Mapping[str, Value] | None
    version: Version | None  # of every field: the record's own time of last change
    account: str | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Listed:
    """One page of a CRM's contacts, each with ``asked == key``.

    *after* is where the next page begins: handed back, now or after a restart, it gives that page. None: this was
    the last. *total*: how many contacts there are in all, where the CRM says so.
    """

    records: Sequence[Read]
    after: str | None
    total: int | None = None


class Lister(Protocol):
    """Lists the contacts of one configured CRM account."""

    def page(self, api: Api, fields: Sequence[str], after: str | None, since: datetime | None) -> Listed:
        """Return a page of all contacts, or of those that changed at *since* or later, only the named *fields*.

        Every contact that is there all along comes at least once, however many there are and whatever is changed
        meanwhile. Some may come twice.

        Raises:
            SourceUnavailable: the CRM cannot be read now; the same page can be asked for again.
        """
        ...


@dataclass(frozen=True, slots=True)
class Registration:
    """What was done at the CRM so that it sends webhooks.

    *done*: a sentence each, for a person. *secrets*: what the CRM made up just now and tells once, by the key of
    the section that must have it. *expires_at*: it must be registered again before.
    """

    done: Sequence[str]
    secrets: Mapping[str, Secret] = field(default_factory=dict)
    expires_at: datetime | None = None


class Registrar(Protocol):
    """Creates, updates and removes the subscriptions of one configured CRM account."""

    def register(self, api: Api, url: str, fields: Sequence[str], now: datetime) -> Registration:
        """Have the CRM send to *url* whatever concerns contacts, of which rules use *fields*.

        Called again it changes nothing that is right already. Subscriptions that lead elsewhere are left alone.

        Raises:
            SourceUnavailable: the CRM cannot be called now, or refuses.
        """
        ...

    def remove(self, api: Api, url: str) -> Sequence[str]:
        """Remove what leads to *url*; say what was removed, a sentence each.

        Raises:
            SourceUnavailable: the CRM cannot be called now, or refuses.
        """
        ...


class Writer(Protocol):
    """Writes an opt-out, and nothing else, into one configured CRM account."""

    def opt_out(self, api: Api, source_id: str, name: str) -> None:
        """Have the contact's field *name* say that the person opted out.

        Raises:
            SourceUnavailable: the CRM cannot be called now, or refuses.
        """
        ...


class BatchUnreadable(SourceUnavailable):
    """The CRM refuses, or answers with nonsense, this one call. Asked for fewer records it may do better."""


class Source(Protocol):
    """One configured CRM connection."""

    name: str  # of the connection, as in ``[sources.<name>]``

    def verify(self, request: InboundRequest, now: datetime) -> Genuine:
        """Prove that *request* is from the source. Constant-time; garbage never raises anything else.

        Raises:
            BadSignature: it is not, or is stale. The message says why, for the audit log only.
        """
        ...

    def parse(self, genuine: Genuine, received_at: datetime) -> list[Event]:
        """Return the events of a genuine request, in the order they stand in it. Pure: same bytes, same events.

        Raises:
            BadPayload: the body is not what this source sends (no JSON, another shape altogether).
        """
        ...

    def sign(self, request: InboundRequest, now: datetime) -> InboundRequest:
        """Return *request* with the headers that make it genuine, as the CRM would send it at *now*.

        Raises:
            ConfigError: what is configured can verify, but not sign.
        """
        ...

    def can_read(self) -> bool:
        """Say whether whole records can be read from the CRM (a token is configured)."""
        ...

    def read(self, api: Api, keys: Sequence[RecordKey], fields: Sequence[str]) -> list[Read]:
        """Read up to `SourceType.read_limit` records, only the named *fields*. One `Read` for each key.

        Raises:
            BatchUnreadable: not these records together; others, or each alone, perhaps.
            SourceUnavailable: the CRM cannot be read now; nothing was learnt.
        """
        ...


@dataclass(frozen=True, slots=True)
class Answer:
    """The body of a 200, for a sender that wants to read more than that we have stored its request."""

    body: bytes
    content_type: str
    headers: Mapping[str, str] = field(default_factory=dict)  # more of them


# What a sender whose fields are its own affair may call them.
USUAL = {"email": "email", "phone": "phone", "first_name": "firstname", "last_name": "lastname"}


@dataclass(frozen=True, slots=True)
class SourceType:
    """One CRM or scheme: what its section in ``bridge.toml`` holds and how to make a connection of it."""

    name: str  # the ``type`` in bridge.toml
    title: str  # for people: "HubSpot"
    settings: type[Any]  # a frozen dataclass; its fields are the keys of the section
    make: Callable[[str, Any], Source]  # (connection name, settings)
    kept_headers: tuple[str, ...]  # lower-case; what `parse` and the audit log need of a request
    proof: Proof = Proof.SIGNED
    read_limit: int = 100
    read_base_url: Callable[[Any], str] | None = None  # of the settings: where `read` calls
    # The names of fields that this source can supply; None: any name (the CRM's users define their own).
    known_field: Callable[[str], bool] | None = None
    known_fields: tuple[str, ...] = ()  # for suggestions
    # The body of a webhook that could come, for trying things out. None: it depends on the sender.
    sample: Callable[[Sampling], bytes] | None = None
    # What a person clicks so that webhooks come, a step each; *emphasis* and `code` as in Markdown, and {name} for
    # the connection's name. The type's page in docs/sources says the same. *manual* is the vendor's own page.
    steps: tuple[str, ...] = ()
    manual: str = ""
    # Where the usual things about a person are, for the first rules that `bridge init` writes: email, phone,
    # mobile, first_name, last_name, name, opt_out.
    usual: Mapping[str, str] = field(default_factory=lambda: USUAL)
    keeps_others: bool = False  # the configuration may name any header, so all are kept but those that are secret
    accepted: Answer | None = None  # what this sender must read to believe that it was heard; None: bridge's JSON
    # What the CRM's API lets bridge do beside reading: of a connection's name and settings. None of them: the CRM
    # has no such call. None made: no credential is configured for it. All call where `read` does.
    lister: Callable[[str, Any], Lister | None] | None = None
    registrar: Callable[[str, Any], Registrar | None] | None = None
    writer: Callable[[str, Any], Writer | None] | None = None
    # The answer to a question that is asked when the URL is registered, None when the request is none. It is
    # asked unsigned, so nothing is stored or believed.
    handshake: Callable[[InboundRequest], Answer | None] | None = None

    def keeps(self, headers: Mapping[str, str]) -> dict[str, str]:
        """Return the headers of a request that are stored with it."""
        return {
            name: value
            for name, value in headers.items()
            if name in self.kept_headers or (self.keeps_others and not is_confidential(name))
        }


def cannot_read(name: str) -> NoReturn:
    """Refuse to read records, where a source has no way to do it."""
    raise SourceUnavailable(f"The source {name} has no way to read single contacts.")


# Parts of the names of headers that carry a credential, or the address of whoever sent the request.
_CONFIDENTIAL = (
    "authorization", "cookie", "signature", "token", "secret", "password", "api-key", "apikey",
    "forwarded", "real-ip", "connecting-ip", "client-ip",
)  # fmt: skip


@lru_cache(maxsize=1024)  # a sender's headers have the same names each time
def is_confidential(name: str) -> bool:
    """Say whether a header of this lower-case name carries a credential, or the address of whoever sent it."""
    return any(part in name for part in _CONFIDENTIAL)


TYPES_KEPT = 5
LONGEST_TYPE = 100  # characters


def event_types(events: Sequence[Event]) -> tuple[str, ...]:
    """Return what the sender calls *events*: a few names at most, each once, fit to be kept for good and shown."""
    names = filter(None, map(_type_name, dict.fromkeys(event.type for event in events)))
    return tuple(islice(dict.fromkeys(names), TYPES_KEPT))


def _type_name(text: str) -> str:
    # A sender may put anything there. What could be somebody's address or number is no name of a type.
    name = "".join(letter for letter in text[:LONGEST_TYPE] if letter.isprintable()).strip()
    return name if "@" not in text and any(letter.isalpha() for letter in name) else ""


def change_fields(changes: Sequence[Change]) -> tuple[str, ...]:
    """Return the names of the fields that *changes* speak of, sorted."""
    return tuple(sorted({name for change in changes for name in change.fields}))
