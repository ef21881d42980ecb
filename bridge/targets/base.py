"""What every target adapter promises, and the few things they share.

An adapter turns a desired state into calls. It knows no store, no clock and no other target: whatever it needs
beyond its own settings comes in the `Job`. Adding one is a file here, a line in ``targets/__init__.py``, a fake
in ``bridge/demo/fakes`` and a page in ``docs/targets``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, NoReturn, Protocol

from bridge.errors import Permanent, Refused, Retryable
from bridge.model import Desired, Receipt, RecordKey, Value
from bridge.outbound import Api, Reply
from bridge.targets.feedback import Consent


class FieldKind(StrEnum):
    """What the rules must hand over for a target field."""

    TEXT = "text"  # str
    EMAIL = "email"  # str: one plausible address, lower-case
    PHONE = "phone"  # str: E.164, "+442071838750"
    BOOLEAN = "boolean"  # bool
    NAMES = "names"  # list[str], without repeats
    ANY = "any"  # str, int, float, bool or list[str]: the adapter writes it as the platform wants it


@dataclass(frozen=True, slots=True)
class TargetField:
    """A field that a platform takes. A name ending in ``.*`` stands for any name under that prefix."""

    name: str
    kind: FieldKind = FieldKind.TEXT
    clearable: bool = True  # ``empty = "clear"`` has a sure way on this platform
    help: str = ""


@dataclass(frozen=True, slots=True)
class TargetType:
    """One platform: what its section in ``bridge.toml`` holds, what it takes, and how to make its adapter."""

    name: str  # the ``type`` in bridge.toml
    title: str  # for people: "ActiveCampaign"
    settings: type[Any]  # a frozen dataclass; its fields are the keys of the section
    fields: tuple[TargetField, ...]
    # A contact can be found or created only with all fields of one of these groups.
    identities: tuple[tuple[str, ...], ...]
    lanes: int  # how many calls the platform takes in parallel
    rate_per_s: float  # calls a second that bridge allows itself, over all its processes
    burst: int
    make: Callable[[Any], Target]
    base_url: Callable[[Any], str]  # of the settings: the one base that is called
    can_remove: bool = True
    can_opt_out: bool = True  # an opt-out can be written there
    # What its own webhooks tell of consent; raises BadPayload. None: it sends none.
    feedback: Callable[[bytes], Sequence[Consent]] | None = None

    @property
    def keys(self) -> frozenset[str]:
        """The fields by which the platform tells contacts apart."""
        return frozenset(name for group in self.identities for name in group)


@dataclass(frozen=True, slots=True)
class Job:
    """All that an adapter may know of one push."""

    key: RecordKey
    desired: Desired
    accepted: Mapping[str, Value] | None  # what the target last took; None: nothing yet
    target_id: str | None  # the platform's own id, once known
    now: datetime
    # A create of unknown fate was sent at this moment (time-out, crash): search, and create only when settled.
    unsure_since: datetime | None = None
    settled: bool = True
    # What it was last known to hold, whether or not that is still believed: for finding it by an older key.
    before: Mapping[str, Value] = field(default_factory=dict)
    # What a push whose outcome was not heard may have written: the same, for a key that changed in it.
    tried: Mapping[str, Value] = field(default_factory=dict)
    opted_out: bool = False  # the target was last known to hold an opt-out of this person
    # Remember, durably and before the first write, that this contact is that target contact.
    # Raises Ambiguous when another contact of the same source is linked to it already.
    link: Callable[[str], None] = field(default=lambda target_id: None)

    def last(self, name: str) -> Value:
        """Return what the target was last known to hold in the field *name*, believed or not."""
        return (self.accepted or {}).get(name) or self.before.get(name)

    def may_create(self) -> bool:
        """Say whether a contact that was not found may be created.

        Raises:
            Retryable: a create of unknown fate was sent; the search goes on until it is settled.
        """
        self.check_settled()
        return self.desired.create and not self.desired.opt_out and not self.opted_out

    def check_settled(self) -> None:
        """Call this before saying that a contact which was not found is not there.

        Raises:
            Retryable: a create of unknown fate was sent; the search goes on until it is settled.
        """
        if self.unsure_since is not None and not self.settled:
            raise Retryable(
                "An earlier attempt to create this contact may have succeeded, but it cannot be found yet. "
                "Bridge searches again before it creates anything.",
                code="unsure",
            )


class Target(Protocol):
    """An adapter for one configured account."""

    def deliver(self, api: Api, job: Job) -> Receipt:
        """Make the target hold *job.desired*: find or create, update, clear, opt out. Repeatable.

        Order of finding: `job.target_id`, then the platform's exact key. An id that is gone is re-resolved once.
        Only what differs is written. Nothing that the target holds of an opt-out is ever loosened, and a
        read-merge-write adapter proves so by reading after the write.

        Raises:
            Retryable, Refused, Permanent, Ambiguous: as the platform answered.
        """
        ...

    def remove(self, api: Api, job: Job) -> Receipt:
        """Remove the contact from the target; one that is gone already is a success.

        Raises:
            Permanent: the platform has no way to do this; the message says what a person can do.
        """
        ...

    def check(self, api: Api) -> str:
        """Call the cheapest harmless endpoint; return one sentence about the account.

        Raises:
            Refused, Retryable: the credentials do not work, or the platform does not answer.
        """
        ...


def fail(platform: str, reply: Reply, *, doing: str, detail: str = "") -> NoReturn:
    """Raise what *reply*, an answer that is no success, means on most platforms.

    *doing* completes "… while" for a person: "updating the contact". *detail* is what the platform said, already
    free of personal values or quoted from an error code.

    Raises:
        Retryable: 408, 425, 429, 5xx. Refused: 401, 402, 403. Permanent: any other.
    """
    said = f": {detail}" if detail else ""
    if reply.status in {408, 425, 429} or reply.status >= 500:
        limited = reply.status == 429
        what = "asks for fewer calls" if limited else "has trouble"
        raise Retryable(
            f"{platform} {what} (HTTP {reply.status}) while {doing}{said}.",
            code="rate_limited" if limited else "unavailable",
            status=reply.status,
            retry_after_s=reply.retry_after_s,
        )
    if reply.status in {401, 402, 403}:
        raise Refused(
            f"{platform} refuses our credentials or plan (HTTP {reply.status}) while {doing}{said}.",
            status=reply.status,
        )
    raise Permanent(f"{platform} refused {doing} (HTTP {reply.status}){said}.", status=reply.status)


def quotable(said: object, sent: object = None) -> str:
    """Return what a platform *said* if it may stand in the audit log, else "".

    That is one short line with nothing in it that looks like a person's value (an address, a long number), and no
    text that was *sent*: platforms like to repeat what they refuse.
    """
    if not isinstance(said, str):
        return ""
    line = " ".join(said.split()).rstrip(".")
    telling = "@" in line or re.search(r"\d[\d .()/-]{3,}\d", line) is not None
    if telling or len(line) > 200 or any(text.casefold() in line.casefold() for text in _texts(sent)):
        return ""
    return line


def _texts(sent: object) -> Iterator[str]:
    if isinstance(sent, str):
        if len(sent) > 1:
            yield sent
    elif isinstance(sent, Mapping | list | tuple):
        for value in sent.values() if isinstance(sent, Mapping) else sent:
            yield from _texts(value)


def changed(job: Job) -> dict[str, Value]:
    """Return the desired fields that the target is not known to hold, by what it last accepted."""
    accepted = job.accepted or {}
    return {
        name: value
        for name, value in job.desired.fields.items()
        if name not in accepted or accepted[name] != value
    }
