"""One push under way: what it works with, and what it has come to so far."""

from __future__ import annotations

from dataclasses import dataclass, field

from bridge.model import Mode, Value
from bridge.targets.activecampaign.account import Account, is_blank
from bridge.targets.activecampaign.client import Client
from bridge.targets.base import Job, changed


@dataclass(slots=True)
class Progress:
    client: Client
    account: Account
    job: Job
    new: bool = False  # this push made the contact
    # An earlier try of this push may have made it and then broken off: what only a creation may set is then still
    # to be set, where it is blank.
    young: bool = False
    wrote: bool = False
    accepted: dict[str, Value] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        known = self.job.accepted or {}
        self.accepted = {name: known[name] for name in self.job.desired.fields if name in known}

    def wanted(self) -> dict[str, Value]:
        """Return the fields that may have to be written."""
        return {name: value for name, value in changed(self.job).items() if self._may_write(name)}

    def _may_write(self, name: str) -> bool:
        mode = self._mode(name)
        if mode is Mode.CREATE_ONLY:
            return self.new
        return mode is Mode.ALWAYS or is_blank((self.job.accepted or {}).get(name))

    def only_blank(self, name: str) -> bool:
        """Say whether the field is left alone once the platform has a value of it."""
        return self._mode(name) is Mode.IF_BLANK

    def _mode(self, name: str) -> Mode:
        mode = self.job.desired.mode(name)
        return Mode.IF_BLANK if mode is Mode.CREATE_ONLY and self.young and not self.new else mode

    def leave_out(self, name: str, why: str) -> None:
        self.accepted.pop(name, None)
        self.notes.append(f"{name} was left out: {why}.")
