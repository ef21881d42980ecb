"""What ``bridge.toml`` may say, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from bridge.errors import Complaints, Problem
from bridge.model import Mode
from bridge.rules import Empty, OnDelete, Route
from bridge.sources.base import Lister, Proof, Registrar, Source, SourceType, Writer
from bridge.targets.base import Target, TargetType

# --- what the file may say ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BridgeSettings:
    """The section ``[bridge]``."""

    public_url: str = field(
        default="",
        metadata={"help": "the URL that senders call, without /hooks; some sign it. Default: $PUBLIC_URL"},
    )
    default_region: str = field(
        default="",
        metadata={
            "help": "two letters such as 'US': where phone numbers without a country code are from. "
            "Without it such a number is an error of its field",
            "example": "US",
        },
    )
    retention_days: int = field(
        default=90, metadata={"help": "how long requests and calls are kept with their contents; facts stay"}
    )
    max_body_bytes: int = field(
        default=4 * 1024 * 1024, metadata={"help": "larger webhooks are answered with 413"}
    )
    settle_s: float = field(
        default=60.0,
        metadata={
            "help": "how long a create that got no answer is searched for before the contact is created again; "
            "longer than the platform takes to show a new contact in a search"
        },
    )
    trusted_proxies: int = field(
        default=0,
        metadata={
            "help": "how many proxies of yours a request passes, one behind the other: so many entries of "
            "X-Forwarded-For are believed, from the right. Only where nobody reaches bridge but through them"
        },
    )

    def __post_init__(self) -> None:
        with Complaints() as complaints:
            complaints.unless(1 <= self.retention_days <= 3650, "retention_days: from 1 to 3650")
            most = 64 * 1024 * 1024
            complaints.unless(1024 <= self.max_body_bytes <= most, f"max_body_bytes: from 1024 to {most} (64 MiB)")
            complaints.unless(0 <= self.settle_s <= 3600, "settle_s: from 0 to 3600")
            complaints.unless(0 <= self.trusted_proxies <= 10, "trusted_proxies: from 0 to 10")


@dataclass(frozen=True, slots=True)
class TargetLimits:
    """Keys that every ``[targets.<name>]`` may have beside those of its type."""

    rate_per_s: float | None = field(
        default=None, metadata={"help": "calls a second that bridge allows itself, over all its processes"}
    )
    burst: int | None = field(default=None, metadata={"help": "calls that may be made at once after a pause"})
    lanes: int | None = field(
        default=None, metadata={"help": "calls under way at the same time; a change moves contacts between lanes"}
    )

    def __post_init__(self) -> None:
        with Complaints() as complaints:
            rate, burst, lanes = self.rate_per_s, self.burst, self.lanes
            complaints.unless(rate is None or 0 < rate <= 1000, "rate_per_s: more than 0, up to 1000")
            complaints.unless(burst is None or 1 <= burst <= 1000, "burst: from 1 to 1000")
            complaints.unless(lanes is None or 1 <= lanes <= 64, "lanes: from 1 to 64")


@dataclass(frozen=True, slots=True)
class WriteBack:
    """What the CRM is told of."""

    opt_out: str = field(
        metadata={"help": "the CRM's field that is to say that a person opted out at a target, by its name there"}
    )

    def __post_init__(self) -> None:
        if not self.opt_out.strip():
            raise ValueError("opt_out: it is empty")


@dataclass(frozen=True, slots=True)
class SourceHabits:
    """What every source may have beside its type's own keys."""

    reconcile_minutes: float = field(
        default=60.0,
        metadata={
            "help": "how often the CRM is asked for what was changed, where its type can list contacts and has "
            "a credential to; 0: never"
        },
    )

    write_back: WriteBack | None = field(
        default=None, metadata={"help": "what the CRM is told of; default: nothing"}
    )

    def __post_init__(self) -> None:
        if not 0 <= self.reconcile_minutes <= 10_080:
            raise ValueError("reconcile_minutes: from 0 (never) to 10080 (a week)")


@dataclass(frozen=True, slots=True)
class FieldSettings:
    """A field rule that is more than an expression."""

    value: str = field(metadata={"help": "the expression"})
    mode: Mode = field(
        default=Mode.ALWAYS,
        metadata={"help": "if_blank: never overwrite; create_only: only in the call that creates the contact"},
    )
    empty: Empty = field(
        default=Empty.LEAVE, metadata={"help": "clear: a field that the source cleared is cleared in the target"}
    )


@dataclass(frozen=True, slots=True)
class RouteSettings:
    """One ``[[routes]]``."""

    source: str = field(metadata={"help": "the name of a source"})
    target: str = field(metadata={"help": "the name of a target"})
    fields: Mapping[str, FieldSettings] = field(
        metadata={"help": "target field = expression, or { value, mode, empty }"}
    )
    when: str = field(
        default="", metadata={"help": "an expression: only contacts for which it is true; default: all"}
    )
    create: bool = field(default=True, metadata={"help": "false: only update contacts that exist in the target"})
    on_delete: OnDelete = field(
        default=OnDelete.KEEP, metadata={"help": "what a deletion in the CRM does to the target's contact"}
    )
    opt_out: str = field(default="", metadata={"help": "an expression: true means the person said stop"})


# --- what comes of it -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SourceConnection:
    name: str
    type: SourceType
    source: Source
    settings: Any  # of `type.settings`
    reconcile_s: float = 0.0  # how often the CRM is asked what was changed; 0: never
    write_back: str = ""  # the CRM's field that is to say that a person opted out at a target; "": it is not told

    @property
    def base_url(self) -> str:
        """Where the CRM's API is."""
        return self.type.read_base_url(self.settings) if self.type.read_base_url else ""

    def lister(self) -> Lister | None:
        return self.type.lister(self.name, self.settings) if self.type.lister and self.base_url else None

    def registrar(self) -> Registrar | None:
        return self.type.registrar(self.name, self.settings) if self.type.registrar and self.base_url else None

    def writer(self) -> Writer | None:
        if not self.write_back:
            return None
        return self.type.writer(self.name, self.settings) if self.type.writer and self.base_url else None

    @property
    def needs_token(self) -> bool:
        """Say whether requests are only taken at the URL with a secret token."""
        return self.type.proof is Proof.URL or bool(getattr(self.settings, "require_token", False))


@dataclass(frozen=True, slots=True)
class TargetConnection:
    name: str
    type: TargetType
    target: Target
    settings: Any  # of `type.settings`
    base_url: str
    rate_per_s: float
    burst: int
    lanes: int


@dataclass(frozen=True)
class Config:
    """A configuration without problems. *warnings* are what a person should know all the same."""

    bridge: BridgeSettings
    sources: Mapping[str, SourceConnection]
    targets: Mapping[str, TargetConnection]
    routes: tuple[Route, ...]
    warnings: tuple[Problem, ...] = ()
    path: Path | None = None
    # The routes as the file has them, with the names of environment variables and not their values.
    written: tuple[Mapping[str, Any], ...] = ()
    # The values of those variables, and of no others: for whoever reads the routes once more.
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)

    @cached_property
    def _by_source(self) -> Mapping[str, tuple[Route, ...]]:
        return {name: tuple(r for r in self.routes if r.source == name) for name in self.sources}

    def routes_of(self, source: str) -> tuple[Route, ...]:
        return self._by_source.get(source, ())

    def reads(self, source: str) -> frozenset[str]:
        """Return the source fields that any rule needs."""
        return frozenset[str]().union(*(route.reads for route in self.routes_of(source)))
