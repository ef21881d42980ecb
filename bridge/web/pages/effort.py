"""How much a retry will take: calls, from what attempts took lately, and time, from each target's quota."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from math import ceil

from bridge.config import Config
from bridge.store.looking import Activity
from bridge.store.protocol import TargetStatus

LOOK_BACK = timedelta(days=7)
CALLS_EACH = 2.0  # where there was no attempt lately: find the contact, and write it


@dataclass(frozen=True, slots=True)
class Effort:
    """What a retry takes at one target. Without a *rate_per_s* the target is not configured any more."""

    target: str
    title: str
    deliveries: int
    calls_each: float
    measured: bool  # False: `CALLS_EACH` was taken
    rate_per_s: float | None
    status: TargetStatus

    @property
    def calls(self) -> int:
        return ceil(self.deliveries * self.calls_each)

    @property
    def seconds(self) -> float | None:
        """How long the calls take when the target answers and nothing else uses its quota; None: nobody knows."""
        return self.calls / self.rate_per_s if self.rate_per_s else None

    @property
    def waits_for(self) -> str:
        """Say what must happen before anything is sent; "" when nothing must."""
        if self.rate_per_s is None:
            return "It is no longer in the configuration, so nothing is sent there."
        if self.status.mode == "paused":
            return "It is paused: nothing is sent until somebody resumes it."
        if self.status.mode == "held":
            return "Bridge holds it because its access is refused: nothing is sent until that is mended."
        return ""


def effort(
    config: Config, counts: Mapping[str, int], lately: Sequence[Activity], statuses: Mapping[str, TargetStatus]
) -> Sequence[Effort]:
    """Return what *counts* (target -> deliveries) take, by target; *lately* are the totals of `LOOK_BACK`."""
    return [
        _of_target(config, target, count, lately, statuses.get(target, TargetStatus(target)))
        for target, count in sorted(counts.items())
    ]


def _of_target(
    config: Config, target: str, deliveries: int, lately: Sequence[Activity], status: TargetStatus
) -> Effort:
    attempts = [one for one in lately if one.kind == "delivery" and one.target == target and one.calls]
    tries = sum(one.count for one in attempts)
    connection = config.targets.get(target)
    return Effort(
        target=target,
        title=connection.type.title if connection else target,
        deliveries=deliveries,
        calls_each=sum(one.calls for one in attempts) / tries if tries else CALLS_EACH,
        measured=bool(tries),
        rate_per_s=connection.rate_per_s if connection else None,
        status=status,
    )


def seconds_in_all(efforts: Sequence[Effort]) -> float:
    """Return how long it takes until the slowest target is done; those that wait for a person do not count."""
    return max((one.seconds or 0.0 for one in efforts if not one.waits_for), default=0.0)
