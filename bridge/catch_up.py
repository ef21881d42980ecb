"""Going through a CRM's list of contacts: all of them (backfill), or what was changed meanwhile (reconcile).

What is found goes the way of what webhooks say, but behind them. These are pure functions; how far one came is a
`bridge.model.CatchUp`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from enum import StrEnum

from bridge import schedule
from bridge.contact import is_empty
from bridge.model import RECONCILE, CatchUp, Delivery, Effects, Progress, Want

FEW = 20  # so many changes are no mistake of the rules yet, whatever their share
FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 900.0  # before a page is asked for again, doubled each time
TRIES = 12  # of a page: more than an hour
# A webhook may still be on its way for so long. A list is looked at again from so long before the last time, for
# what it showed late.
GRACE = timedelta(minutes=5)
OVERLAP = timedelta(minutes=10)


class Effect(StrEnum):
    """What would become of a contact at a target."""

    CREATE = "create"
    UPDATE = "update"
    CLEAR = "clear"  # a field of it, at least
    OPT_OUT = "opt_out"
    REMOVE = "remove"


def effect_of(want: Want, current: Delivery | None) -> Effect | None:
    """Return what would become of the contact at the target; None: nothing."""
    desired = want.desired
    if desired is None:
        return None
    linked = current is not None and current.target_id is not None
    if desired.gone:
        return Effect.REMOVE if linked else None
    if desired.opt_out and not (current and current.accepted_opt_out):
        return Effect.OPT_OUT
    accepted = current.accepted if current else None
    unmet = schedule.unmet(desired, accepted)
    if not linked:
        return Effect.CREATE if desired.create and not desired.opt_out else None
    if any(is_empty(desired.fields[name]) for name in unmet):
        return Effect.CLEAR
    return Effect.UPDATE if unmet else None


def added(effects: Effects, found: Iterable[tuple[str, Effect]]) -> Effects:
    """Return *effects* with those that were *found*, each with its target."""
    summed = {target: dict(counts) for target, counts in effects.items()}
    for target, effect in found:
        counts = summed.setdefault(target, {})
        counts[effect.value] = counts.get(effect.value, 0) + 1
    return summed


def why_asked(progress: CatchUp) -> str:
    """Return why somebody should look before *progress* is saved, "" if nobody needs to.

    An opt-out counts for nothing here: it only tightens, and is not to wait for anybody.
    """
    if progress.share >= 1.0:
        return ""  # somebody said so
    for target, counts in sorted(progress.effects.items()):
        changes = {name: count for name, count in counts.items() if name != Effect.OPT_OUT and count}
        many = sum(changes.values())
        if many > max(FEW, progress.share * progress.seen):
            parts = ", ".join(f"{WORDS[Effect(name)]}: {count:,}" for name, count in sorted(changes.items()))
            return (
                f"Of the first {progress.seen:,} contacts, {many:,} would be changed at {target} ({parts}): more "
                f"than {progress.share:.0%}. Nothing of the last page was saved; a person decides."
            )
    return ""


WORDS: Mapping[Effect, str] = {
    Effect.CREATE: "created",
    Effect.UPDATE: "updated",
    Effect.CLEAR: "with a field cleared",
    Effect.OPT_OUT: "opted out",
    Effect.REMOVE: "removed",
}


def failed(progress: CatchUp, why: str, retry_after_s: float, now: datetime) -> CatchUp:
    """Return *progress* after a page could not be read; the same page is asked for again later.

    A CRM may have forgotten a place in its list while nobody asked: to look for changes begins anew then, or it
    would never end, and nothing be looked for any more. A backfill waits for a person.
    """
    if progress.kind == RECONCILE and progress.tries % TRIES == TRIES - 1:
        progress = replace(progress, after=None)
    pause_s = max(min(FIRST_PAUSE_S * 2.0 ** min(progress.tries, 10), LONGEST_PAUSE_S), retry_after_s)
    return replace(
        progress, tries=progress.tries + 1, reason=why, due_at=now + timedelta(seconds=pause_s), updated_at=now
    )


def asked(progress: CatchUp, why: str, now: datetime) -> CatchUp:
    """Return *progress* as it waits for a person; at the place of before."""
    return replace(progress, state=Progress.ASKING, reason=why, due_at=None, updated_at=now)


def approved(progress: CatchUp, now: datetime) -> CatchUp:
    """Return *progress* as it goes on, however much it changes."""
    return replace(progress, state=Progress.RUNNING, reason="", share=1.0, due_at=now, updated_at=now)


def stopped(progress: CatchUp, by: str, now: datetime) -> CatchUp:
    reason = f"Stopped by {by}. What was read until then stays."
    return replace(progress, state=Progress.STOPPED, reason=reason, due_at=None, updated_at=now)
