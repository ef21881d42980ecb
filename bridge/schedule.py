"""The life of a delivery: pure functions from its row, and what happened, to its next row.

The stores call these inside their transactions, so that a decision is always made on the row as it is. Every
state that leaves here says why it is so and what happens next.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from bridge.errors import Ambiguous, DeliveryFailed, Refused, Retryable
from bridge.model import Delivery, Desired, Mode, Receipt, State, Value, Want
from bridge.store.protocol import TargetStatus

BASE_S = 1.0
CAP_S = 1800.0
# A target that is away is waited for (about two days at the cap); one that cannot make sense of this one contact,
# again and again, is not.
TRIES = 200
TRIES_OF: Mapping[str, int] = {"nonsense": 8, "missing": 12, "unverified": 12, "conflict": 12, "tls": 30}

# In a burst each further change puts a delivery off a little, but never for longer than this.
LONGEST_QUIET_S = 5.0

SENDING = "It is being sent right now."
THEN = f"{SENDING} Then: "
NOTHING = "The rules ask for nothing to be sent now."
DUE_NOW = "Due now; it is sent as soon as the target has a free turn."


def wait_s(attempts: int, *, draw: float, code: str = "", retry_after_s: float = 0) -> float | None:
    """Return seconds to wait after *attempts* tries, or None to give up.

    Exponential with full jitter: *draw* is a random number of [0, 1). What the platform asked for
    (*retry_after_s*) is a lower bound, with some jitter on top so that not everybody comes back at once.
    """
    if attempts >= TRIES_OF.get(code, TRIES):
        return None
    backoff = draw * min(CAP_S, BASE_S * 2.0 ** min(attempts, 30))
    return max(backoff, retry_after_s + draw * min(1.0, retry_after_s)) if retry_after_s else backoff


def plan(current: Delivery | None, want: Want, *, held: TargetStatus, now: datetime) -> Delivery:
    """Return the delivery's row after processing decided *want*; *current* itself where nothing is to be done."""
    row = current or Delivery(want.target, want.key, State.WAITING, "", now)
    if want.forget:
        row = forgotten(row, want.desired)
    desired = _tightened(row, want)
    same = current is not None and row.desired == desired and row.left_out == want.dropped
    if same and desired is not None and not want.again:
        return row
    revision = row.revision if row.desired == desired else row.revision + 1
    inbound_id = row.inbound_id if revision == row.revision else want.inbound_id or row.inbound_id
    row = replace(row, desired=desired, revision=revision, left_out=want.dropped, inbound_id=inbound_id)
    if row.state is State.SENDING:
        # What is under way ends first; `succeeded` and `failed` see the revision.
        low = row.low and want.low and not (desired and desired.opt_out)
        return replace(row, updated_at=now, reason=SENDING if desired else THEN + want.reason, low=low)
    if desired is None:
        planned = _settled(row, State.WAITING, want.reason)
    elif (done := _already(row, desired)) is not None and not (want.again and row.state in _PARKED):
        planned = done
    elif row.state is State.RETRYING and not want.again and not _tightens(desired, current):
        # The target is in trouble: the new state goes with the next try, and has all its tries before it.
        planned = replace(row, attempts=0, low=row.low and want.low)
    else:
        low = want.low and not desired.opt_out and (row.low or row.state not in _UNSENT)
        planned = _due(replace(row, low=low), held, now, quiet_s=0 if desired.opt_out else want.quiet_s)
    return planned if planned == current else replace(planned, updated_at=now)


_PARKED = frozenset({State.FAILED, State.AMBIGUOUS, State.WAITING})
_UNSENT = frozenset({State.PENDING, State.RETRYING, State.HELD})


def _tightens(desired: Desired, current: Delivery | None) -> bool:
    """Say whether an opt-out is new: it waits for nothing."""
    return desired.opt_out and not (current and current.desired and current.desired.opt_out)


def forgotten(row: Delivery, desired: Desired | None) -> Delivery:
    """Return the row of an erased person without anything personal.

    Only while a create of unknown fate must be found, to be removed, is kept by what it is found.
    """
    searching = desired is not None and desired.gone and row.unsure_since is not None
    attempted = row.attempted if searching or row.attempted is None else {}
    return replace(row, accepted=None, attempted=attempted)


def _tightened(row: Delivery, want: Want) -> Desired | None:
    """Keep what was said of an opt-out where the rules cannot tell, or where only we still know of it."""
    desired = want.desired
    if desired is None and want.unclear and row.desired is not None and row.desired.opt_out:
        return Desired(opt_out=True, create=False)
    # A person who opted out at the target stays so when the contact was removed there: it is not made anew.
    if desired and row.accepted_opt_out and row.target_id is None and not desired.gone and not desired.opt_out:
        return replace(desired, opt_out=True)
    return desired


def unmet(desired: Desired, accepted: Mapping[str, Value] | None) -> tuple[str, ...]:
    """Return the names of desired fields that the target is not known to hold, sorted."""
    known = accepted or {}
    return tuple(
        sorted(
            name
            for name, value in desired.fields.items()
            if (name not in known or known[name] != value)
            # A linked contact never gets these again.
            and not (accepted is not None and desired.mode(name) is Mode.CREATE_ONLY)
        )
    )


def _already(row: Delivery, desired: Desired) -> Delivery | None:
    """Return the row at rest if the target is known to hold *desired*, so that no call is needed."""
    if row.attempted is not None:
        return None  # a push whose outcome was not heard may have written something else meanwhile
    if desired.gone:
        if row.target_id is None and row.accepted is None and row.unsure_since is None:
            reason = "Gone from the CRM; the target holds nothing of it from bridge."
            return _settled(row, State.REMOVED, reason)
        return None
    if row.target_id is None or row.accepted is None or unmet(desired, row.accepted):
        return None
    if desired.opt_out and not row.accepted_opt_out:
        return None
    return _rest(row, desired)


def _rest(row: Delivery, desired: Desired) -> Delivery:
    left_out = _left_out(row)
    if desired.opt_out:
        return _settled(row, State.OPTED_OUT, f"The CRM says that the person opted out.{left_out}")
    if row.accepted_opt_out:
        reason = (
            "The person opted out at the target. Bridge keeps other fields up to date and never lifts an opt-out; "
            f"only the person can, there.{left_out}"
        )
        return _settled(row, State.OPTED_OUT, reason)
    return _settled(row, State.SYNCED, f"The target holds what the CRM says.{left_out}")


def _left_out(row: Delivery) -> str:
    if not row.left_out:
        return ""
    return " Left out: " + "; ".join(f"{name} ({why})" for name, why in sorted(row.left_out.items())) + "."


def _settled(row: Delivery, state: State, reason: str) -> Delivery:
    """At rest: nothing is due, and what went wrong before is over."""
    return replace(
        row,
        state=state,
        reason=reason,
        due_at=None,
        attempts=0,
        error=None,
        status=None,
        wanted_at=None,
        low=False,
    )


def _due(row: Delivery, held: TargetStatus, now: datetime, *, quiet_s: float = 0.0) -> Delivery:
    wanted_at = row.wanted_at or now
    latest = max(now, wanted_at + timedelta(seconds=LONGEST_QUIET_S))
    due_at = min(now + timedelta(seconds=quiet_s), latest)
    state, reason = (State.PENDING, DUE_NOW) if held.mode == "open" else (State.HELD, held_reason(held))
    return replace(row, attempts=0, due_at=due_at, wanted_at=wanted_at, state=state, reason=reason)


def held_reason(held: TargetStatus) -> str:
    """Say why deliveries of a closed target wait, and for what."""
    if held.mode == "paused":
        return f"The target is paused ({held.reason or 'no reason given'}); it is sent when somebody resumes it."
    return f"The target is held: {held.reason} Bridge tries again by itself; then this is sent."


def begun(row: Delivery, now: datetime) -> Delivery:
    """Return the row while it is sent. Until an outcome is heard, the target may hold any of what is tried."""
    attempted = row.attempted
    if row.unsure_since is None or attempted is None:
        attempted = _may_hold(attempted or {}, (row.desired or Desired()).fields)
    return replace(row, state=State.SENDING, reason=SENDING, attempted=attempted, updated_at=now)


def _may_hold(before: Mapping[str, Value], tried: Mapping[str, Value]) -> dict[str, Value]:
    """Return *tried* over *before*; of lists (tags), all that either has."""
    both = {**before, **tried}
    for name, value in before.items():
        other = tried.get(name)
        if isinstance(value, list) and isinstance(other, list):
            both[name] = sorted({*map(str, value), *map(str, other)})
    return both


def believed(row: Delivery) -> Mapping[str, Value] | None:
    """Return what the target is known to hold, for telling what to write.

    In doubt nothing is, and an adapter compares with what it reads. Lists are told all the same: what is not in
    them was never put there by bridge.
    """
    if row.attempted is None or row.accepted is None:
        return row.accepted
    held = _may_hold(row.accepted, row.attempted)
    return {name: value for name, value in held.items() if isinstance(value, list)}


def called_off(current: Delivery, before: Delivery, now: datetime) -> Delivery:
    """Return the row of a retry that was called off: as it was *before*, unless something is on its way."""
    if current.state not in _UNSENT or current.revision != before.revision:
        return current
    return replace(
        current,
        state=before.state,
        reason=before.reason,
        error=before.error,
        status=before.status,
        attempts=before.attempts,
        due_at=None,
        updated_at=now,
    )


def interrupted(row: Delivery, now: datetime) -> Delivery:
    """Return the row of a push whose runner died: due again."""
    reason = "The process was stopped in the middle of sending; it is sent again now."
    return replace(row, state=State.PENDING, reason=reason, due_at=now, updated_at=now)


def succeeded(
    current: Delivery, sent: Delivery, receipt: Receipt, *, held: TargetStatus, now: datetime
) -> Delivery:
    """Return the row after a push of *sent* that came to *receipt*; *current* may hold newer desires by now."""
    gone = receipt.outcome in {"removed", "absent"}
    row = replace(
        current,
        target_id=None if gone else receipt.target_id or current.target_id,
        accepted=None if gone else dict(receipt.accepted),
        # What a removed contact held of an opt-out is remembered here, or nobody would know any more.
        accepted_opt_out=receipt.opted_out or (gone and current.accepted_opt_out),
        unsure_since=None,
        attempted=None,
        attempts=0,
        error=None,
        status=None,
        updated_at=now,
    )
    if current.revision != sent.revision:
        return _newer(row, held, now)
    desired = sent.desired or Desired()
    notes = "".join(f" {note}" for note in receipt.notes)
    if desired.gone:
        return _settled(row, State.REMOVED, f"Gone from the CRM, and removed from the target.{notes}")
    if receipt.outcome == "absent":
        if desired.opt_out or receipt.opted_out:
            reason = f"The person opted out and is not in the target; bridge never creates them there.{notes}"
            return _settled(row, State.OPTED_OUT, reason)
        reason = (
            "Waiting: the target does not have this contact, and it is not to be created there. "
            f"It is looked up again with the next change.{notes}"
        )
        return _settled(row, State.WAITING, reason)
    rest = _rest(row, desired)
    return replace(rest, reason=rest.reason + notes)


def failed(
    current: Delivery, sent: Delivery, error: DeliveryFailed, *, held: TargetStatus, now: datetime, draw: float
) -> Delivery:
    """Return the row after a push of *sent* that failed with *error*."""
    attempts = current.attempts + (error.code != "quota")  # waiting for a turn is no attempt
    row = replace(current, attempts=attempts, error=error.code, status=error.status, updated_at=now)
    if not isinstance(error, Retryable):
        row = replace(row, due_at=None)
        if current.revision != sent.revision:
            return _newer(row, held, now)
        if isinstance(error, Ambiguous):
            return replace(row, state=State.AMBIGUOUS, reason=f"{error} Bridge does not guess: a person decides.")
        hint = "It is sent again when a new value comes or somebody replays it."
        return replace(row, state=State.FAILED, reason=f"{error} {hint}")
    if held.mode != "open":
        return replace(row, state=State.HELD, reason=held_reason(held), due_at=now)
    pause_s = wait_s(attempts, draw=draw, code=error.code, retry_after_s=error.retry_after_s)
    if isinstance(error, Refused) and pause_s is None:
        pause_s = CAP_S  # never given up: it is the account, not the contact
    if pause_s is None:
        reason = f"{error} Given up after {attempts} tries; it is sent again when a new value comes or on replay."
        return replace(row, state=State.FAILED, reason=reason, due_at=None)
    due_at = now + timedelta(seconds=pause_s)
    return replace(
        row,
        state=State.RETRYING,
        reason=f"{error} Bridge tries again by itself (tries so far: {attempts}).",
        due_at=due_at,
    )


def superseded(current: Delivery, *, held: TargetStatus, now: datetime) -> Delivery:
    """Return the row after a push that was stopped before a write because newer state arrived."""
    return _newer(replace(current, updated_at=now), held, now)


def _newer(row: Delivery, held: TargetStatus, now: datetime) -> Delivery:
    """A newer state arrived while one was being sent."""
    if row.desired is None:
        reason = row.reason.removeprefix(THEN) if row.reason.startswith(THEN) else NOTHING
        return _settled(row, State.WAITING, reason)
    return _already(row, row.desired) or _due(row, held, now)
