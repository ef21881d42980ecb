"""How much a retry will take: calls, from what attempts took lately, and time, from each target's quota."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from math import ceil

from bridge.config import Config
from bridge.model import State
from bridge.store.looking import Activity
from bridge.store.protocol import Health, TargetStatus

LOOK_BACK = timedelta(days=7)
CALLS_EACH = 2.0  # where there was no attempt lately: find the contact, and write it


@dataclass(frozen=True, slots=True)
class Effort:
    """What a retry takes at one target. Without a *rate_per_s* the target is not configured any more.

    *queued* are the deliveries that wait there already, whose turn comes first.
    """

    target: str
    title: str
    deliveries: int
    calls_each: float
    measured: bool  # False: `CALLS_EACH` was taken
    rate_per_s: float | None
    status: TargetStatus
    queued: int = 0

    @property
    def calls(self) -> int:
        return ceil(self.deliveries * self.calls_each)

    @property
    def seconds(self) -> float | None:
        """How long it takes until all are sent, when the target answers at once; None: nothing is sent."""
        if not self.rate_per_s:
            return None
        return (self.deliveries + self.queued) * self.calls_each / self.rate_per_s

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
    config: Config, counts: Mapping[str, int], lately: Sequence[Activity], seen: Health
) -> Sequence[Effort]:
    """Return what *counts* (target -> deliveries) take, by target; *lately* are the totals of `LOOK_BACK`."""
    return [_of_target(config, target, count, lately, seen) for target, count in sorted(counts.items())]


def _of_target(config: Config, target: str, deliveries: int, lately: Sequence[Activity], seen: Health) -> Effort:
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
        status=next((one for one in seen.targets if one.target == target), TargetStatus(target)),
        queued=seen.deliveries.get((target, State.PENDING.value), 0),
    )


def seconds_in_all(efforts: Sequence[Effort]) -> float:
    """Return how long it takes until the slowest target is done; those that wait for a person do not count."""
    return max((one.seconds or 0.0 for one in efforts if not one.waits_for), default=0.0)
