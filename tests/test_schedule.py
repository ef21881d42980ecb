"""The life of a delivery, step by step: what each outcome leads to, and that every state says why."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge import schedule
from bridge.errors import Ambiguous, DeliveryFailed, Permanent, Refused, Retryable
from bridge.model import Delivery, Desired, Mode, Receipt, RecordKey, State, Want
from bridge.store.protocol import TargetStatus

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
LATER = NOON + timedelta(hours=1)
KEY = RecordKey("crm", "84213")
OPEN = TargetStatus("sms")
HELD = TargetStatus("sms", mode="held", reason="The key is refused.")
ANA = Desired({"mobile": "+525512345678", "firstName": "Ana"})
ANITA = Desired({"mobile": "+525512345678", "firstName": "Anita"})
STOP = replace(ANA, opt_out=True)
GONE = Desired(gone=True)


def want(desired: Desired | None, reason: str = "", **how: bool) -> Want:
    return Want("sms", KEY, desired, reason, again=how.get("again", False), forget=how.get("forget", False))


def planned(*wants: Want, start: Delivery | None = None, held: TargetStatus = OPEN) -> Delivery:
    row = start
    for one in wants:
        row = schedule.plan(row, one, held=held, now=NOON)
    assert row is not None
    return row


def sending(row: Delivery) -> Delivery:
    return replace(row, state=State.SENDING, due_at=None)


def synced(desired: Desired = ANA, **how: bool) -> Delivery:
    row = sending(planned(want(desired)))
    receipt = Receipt("created", "t1", desired.fields, opted_out=how.get("opted_out", False))
    return schedule.succeeded(row, row, receipt, held=OPEN, now=NOON)


def test_a_new_desire_is_due_at_once() -> None:
    row = planned(want(ANA))
    assert (row.state, row.due_at, row.revision) == (State.PENDING, NOON, 1)


def test_an_equal_desire_costs_nothing() -> None:
    row = synced()
    assert row.state is State.SYNCED
    assert planned(want(ANA), start=row) is row
    assert planned(want(ANITA), want(ANA), start=row).state is State.SYNCED  # there and back before it was sent


def test_nothing_wanted_waits_with_the_reason() -> None:
    row = planned(want(None, "Waiting for mobile."))
    assert (row.state, row.reason, row.due_at) == (State.WAITING, "Waiting for mobile.", None)


def test_new_state_during_a_push_is_sent_after_it() -> None:
    first = sending(planned(want(ANA)))
    newer = planned(want(ANITA), start=first)
    assert newer.state is State.SENDING
    row = schedule.succeeded(newer, first, Receipt("created", "t1", ANA.fields), held=OPEN, now=LATER)
    assert (row.state, row.due_at, row.desired, row.accepted) == (State.PENDING, LATER, ANITA, ANA.fields)


def test_what_comes_live_while_a_listed_one_is_sent_does_not_wait_behind_the_list() -> None:
    first = sending(replace(planned(want(ANA)), low=True))
    for newer in (want(ANITA), replace(want(replace(ANITA, opt_out=True)), low=True)):
        row = planned(newer, start=first)
        row = schedule.succeeded(row, first, Receipt("created", "t1", ANA.fields), held=OPEN, now=LATER)
        assert (row.state, row.low) == (State.PENDING, False)
    row = planned(replace(want(ANITA), low=True), start=first)
    assert schedule.succeeded(row, first, Receipt("created", "t1", ANA.fields), held=OPEN, now=LATER).low


def test_state_that_went_there_and_back_during_a_push_is_at_rest() -> None:
    first = sending(planned(want(ANA)))
    newer = planned(want(ANITA), want(ANA), start=first)
    row = schedule.succeeded(newer, first, Receipt("created", "t1", ANA.fields), held=OPEN, now=LATER)
    assert row.state is State.SYNCED


def test_a_desire_withdrawn_during_a_push_waits() -> None:
    first = sending(planned(want(ANA)))
    newer = planned(want(None, "No."), start=first)
    row = schedule.succeeded(newer, first, Receipt("created", "t1", ANA.fields), held=OPEN, now=LATER)
    assert (row.state, row.due_at, row.target_id) == (State.WAITING, None, "t1")


def test_in_a_burst_a_delivery_waits_for_more_but_not_for_long() -> None:
    burst = replace(want(ANA), quiet_s=0.5)
    row = schedule.plan(None, burst, held=OPEN, now=NOON)
    assert row.due_at == NOON + timedelta(seconds=0.5)
    later = NOON + timedelta(seconds=0.4)
    row = schedule.plan(row, replace(want(ANITA), quiet_s=0.5), held=OPEN, now=later)
    assert (row.due_at, row.wanted_at) == (later + timedelta(seconds=0.5), NOON)
    late = NOON + timedelta(seconds=4.9)
    row = schedule.plan(row, burst, held=OPEN, now=late)
    assert row.due_at == NOON + timedelta(seconds=schedule.LONGEST_QUIET_S)
    row = schedule.plan(row, replace(want(STOP), quiet_s=0.5), held=OPEN, now=late)
    assert row.due_at == late  # an opt-out waits for nothing


def test_a_held_target_holds() -> None:
    row = planned(want(ANA), held=HELD)
    assert row.state is State.HELD
    assert "The key is refused." in row.reason


def test_trouble_is_tried_again_later_and_new_state_does_not_hurry_it() -> None:
    row = sending(planned(want(ANA)))
    error = Retryable("Sakari has trouble (HTTP 503).", status=503, retry_after_s=30)
    failed = schedule.failed(row, row, error, held=OPEN, now=NOON, draw=0.5)
    assert (failed.state, failed.attempts, failed.status) == (State.RETRYING, 1, 503)
    assert failed.due_at is not None
    assert failed.due_at >= NOON + timedelta(seconds=30)
    newer = planned(want(ANITA), start=failed)
    assert (newer.state, newer.due_at, newer.attempts) == (State.RETRYING, failed.due_at, 0)


def test_waiting_for_the_quota_is_no_attempt() -> None:
    row = sending(planned(want(ANA)))
    error = Retryable("The quota is used up.", code="quota", retry_after_s=3)
    assert schedule.failed(row, row, error, held=OPEN, now=NOON, draw=0).attempts == 0


def test_nonsense_is_given_up_in_the_end_and_refusals_never() -> None:
    row = sending(planned(want(ANA)))
    nonsense, refused = Retryable("Nonsense.", code="nonsense"), Refused("Refused.")
    for _ in range(8):
        row = schedule.failed(row, row, nonsense, held=OPEN, now=NOON, draw=0.5)
    assert row.state is State.FAILED
    row = replace(sending(planned(want(ANA))), attempts=1000)
    assert schedule.failed(row, row, refused, held=OPEN, now=NOON, draw=0.5).state is State.RETRYING


@pytest.mark.parametrize(
    ("error", "state"),
    [(Permanent("Invalid mobile."), State.FAILED), (Ambiguous("Two contacts fit."), State.AMBIGUOUS)],
)
def test_a_permanent_failure_waits_for_a_new_value_or_a_person(error: DeliveryFailed, state: State) -> None:
    row = sending(planned(want(ANA)))
    parked = schedule.failed(row, row, error, held=OPEN, now=NOON, draw=0.5)
    assert (parked.state, parked.due_at) == (state, None)
    assert planned(want(ANA), start=parked) is parked
    assert planned(want(ANA, again=True), start=parked).state is State.PENDING
    assert planned(want(ANITA), start=parked).state is State.PENDING


def test_a_permanent_failure_of_what_is_outdated_by_now_is_no_end() -> None:
    first = sending(planned(want(ANA)))
    newer = planned(want(ANITA), start=first)
    row = schedule.failed(newer, first, Permanent("Invalid."), held=OPEN, now=NOON, draw=0.5)
    assert row.state is State.PENDING


def test_an_opt_out_rests_as_opted_out_whoever_said_it() -> None:
    assert synced(STOP, opted_out=True).state is State.OPTED_OUT
    at_the_target = synced(ANA, opted_out=True)
    assert at_the_target.state is State.OPTED_OUT
    assert "never lifts" in at_the_target.reason
    assert planned(want(ANA), start=at_the_target).state is State.OPTED_OUT


def test_a_later_yes_of_the_crm_does_not_lift_what_the_target_holds() -> None:
    row = planned(want(ANA), start=synced(STOP, opted_out=True))
    assert row.state is State.OPTED_OUT
    assert row.accepted_opt_out


def test_removal_and_return() -> None:
    row = planned(want(GONE), start=synced())
    assert row.state is State.PENDING
    row = sending(row)
    removed = schedule.succeeded(row, row, Receipt("removed", "t1"), held=OPEN, now=NOON)
    assert (removed.state, removed.target_id, removed.accepted) == (State.REMOVED, None, None)
    assert planned(want(GONE), start=removed) is removed
    assert planned(want(ANA), start=removed).state is State.PENDING


def test_what_was_never_sent_needs_no_removal() -> None:
    assert planned(want(GONE)).state is State.REMOVED


def test_an_opt_out_of_a_removed_contact_is_remembered() -> None:
    row = sending(planned(want(GONE), start=synced(ANA, opted_out=True)))
    removed = schedule.succeeded(row, row, Receipt("removed", "t1", opted_out=True), held=OPEN, now=NOON)
    returned = planned(want(ANA), start=removed)
    assert returned.desired is not None
    assert returned.desired.opt_out


def test_erasing_forgets_what_the_target_accepted() -> None:
    row = planned(want(None, "Erased.", forget=True), start=synced())
    assert (row.accepted, row.desired) == (None, None)
    assert "Ana" not in repr(row)


def test_an_interrupted_push_is_due_again() -> None:
    row = schedule.interrupted(sending(planned(want(ANA))), LATER)
    assert (row.state, row.due_at) == (State.PENDING, LATER)


def test_fields_set_only_at_creation_are_met_once_linked() -> None:
    desired = replace(ANA, modes={"firstName": Mode.CREATE_ONLY})
    assert schedule.unmet(desired, None) == ("firstName", "mobile")
    assert schedule.unmet(desired, {"mobile": "+525512345678"}) == ()


@given(st.integers(1, 300), st.floats(0, 1, exclude_max=True), st.floats(0, 5000))
def test_waiting_is_bounded_and_never_shorter_than_asked(attempts: int, draw: float, asked_s: float) -> None:
    pause_s = schedule.wait_s(attempts, draw=draw, retry_after_s=asked_s)
    if attempts >= schedule.TRIES:
        assert pause_s is None
    else:
        assert pause_s is not None
        assert asked_s <= pause_s <= max(schedule.CAP_S, asked_s + 1)


desires = st.sampled_from([None, ANA, ANITA, STOP, GONE])
errors = st.sampled_from(
    [
        Retryable("Trouble."),
        Refused("Refused."),
        Permanent("Invalid."),
        Ambiguous("Two fit."),
        Retryable("N.", code="nonsense"),
    ]
)


def test_a_retry_that_is_called_off_leaves_no_trace() -> None:
    row = sending(planned(want(ANA)))
    error = Permanent("The number is refused.", status=422)
    before = schedule.failed(row, row, error, held=OPEN, now=NOON, draw=0.5)
    again = planned(want(ANA, again=True), start=before)
    assert again.state is State.PENDING
    assert schedule.called_off(again, before, LATER) == replace(before, updated_at=LATER)
    held = planned(want(ANA, again=True), start=before, held=HELD)
    assert schedule.called_off(held, before, LATER) == replace(before, updated_at=LATER)


def test_what_is_on_its_way_is_not_called_off() -> None:
    before = replace(planned(want(ANA)), state=State.FAILED, due_at=None)
    for row in (sending(before), synced(), planned(want(ANITA), start=before)):
        assert schedule.called_off(row, before, LATER) is row


steps = st.lists(
    st.one_of(
        st.tuples(st.just("want"), desires),
        st.tuples(st.just("send"), st.booleans()),
        st.tuples(st.just("fail"), errors),
    ),
    max_size=25,
)


@given(steps)
def test_every_row_says_why_and_what_is_due_is_what_is_wanted(history: list[tuple[str, object]]) -> None:
    row = planned(want(None, "Waiting for mobile."))
    for kind, what in history:
        if kind == "want":
            assert what is None or isinstance(what, Desired)
            row = planned(want(what, "The rules say so."), start=row)
        elif row.state in {State.PENDING, State.RETRYING}:
            claimed = sending(row)
            if isinstance(what, DeliveryFailed):
                row = schedule.failed(claimed, claimed, what, held=OPEN, now=NOON, draw=0.3)
            else:
                desired = claimed.desired or Desired()
                outcome = "removed" if desired.gone else "updated"
                receipt = Receipt(outcome, "t1", desired.fields, opted_out=bool(what) or desired.opt_out)
                row = schedule.succeeded(claimed, claimed, receipt, held=OPEN, now=NOON)
                assert row.state in {State.SYNCED, State.OPTED_OUT, State.REMOVED}
        assert row.reason
        assert (row.due_at is not None) == (row.state in {State.PENDING, State.RETRYING})
        assert row.desired is not None or row.state is State.WAITING
