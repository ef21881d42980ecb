"""What every target adapter keeps, on its strict fake, under every setting of every switch that can matter.

A new platform gets these tests by adding its harness to `HARNESSES`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import wraps
from typing import Any

import pytest

from bridge.demo.fakes.base import Call
from bridge.errors import Ambiguous, Permanent, Refused, Retryable
from bridge.model import Desired, Mode, Receipt, RecordKey, Value, utc_now
from bridge.targets.base import Job
from tests.targets import harness_activecampaign, harness_artu, harness_clerk_chat, harness_sakari

HARNESSES: tuple[Any, ...] = (
    harness_activecampaign.Harness,
    harness_sakari.Harness,
    harness_clerk_chat.Harness,
    harness_artu.Harness,
)

MISSING_ID = "00000000-0000-4000-8000-000000000000"  # the form of Artu's ids, and nobody's on any platform


def promise(test: Callable[..., None]) -> Callable[..., None]:
    """Have *test* run on every platform: as its fake is by default, then under each other value of each switch.

    A switch that nobody looked at in the first run cannot change that run, whatever its value: both go the same
    way as long as it is not looked at. Only those that were looked at are turned.
    """

    @wraps(test)
    def run(harness: Any, subtests: pytest.Subtests, **given: Any) -> None:
        with harness() as h:
            test(h, **given)
        for switch in sorted(h.fake.switches.looked_at):
            for value in harness.switches[switch][1:]:
                with subtests.test(f"{switch}={value}"), harness(**{switch: value}) as turned:
                    test(turned, **given)

    others = list(inspect.signature(test).parameters.values())[1:]
    ours = list(inspect.signature(run, follow_wrapped=False).parameters.values())[:2]
    vars(run)["__signature__"] = inspect.Signature([*ours, *others])
    on_all: Callable[..., None] = pytest.mark.parametrize("harness", HARNESSES, ids=lambda one: one.title)(run)
    return on_all


@pytest.mark.parametrize("harness", HARNESSES, ids=lambda one: one.title)
def test_what_decides_over_a_switch_is_noticed(harness: Any) -> None:
    with harness() as h:
        before = set(h.fake.switches.looked_at)
        h.target.deliver(h.api(), job(h))
        h.target.deliver(h.api(), job(h, h.changed(h.person(1))))
        assert h.fake.switches.looked_at > before
    assert h.fake.switches.keys() == harness.switches.keys()


def job(h: Any, fields: dict[str, Value] | None = None, **how: Any) -> Job:
    """Return a job for the sample person 1, as a first push unless *how* says otherwise."""
    n = how.pop("n", 1)
    desired = Desired(
        fields=h.person(n) if fields is None else fields,
        modes=how.pop("modes", {}),
        opt_out=how.pop("opt_out", False),
        create=how.pop("create", True),
        gone=how.pop("gone", False),
    )
    base = Job(RecordKey("crm", str(84000 + n)), desired, accepted=None, target_id=None, now=utc_now())
    return replace(base, **how)


def again(h: Any, receipt: Receipt, fields: dict[str, Value], **how: Any) -> Job:
    """Return the job that follows *receipt*."""
    return job(h, fields, accepted=receipt.accepted, target_id=receipt.target_id, **how)


def holds(h: Any, person: dict[str, Value]) -> None:
    """Assert that the platform holds every field of *person*."""
    stored = h.stored(person[h.identity])
    assert stored is not None
    assert {name: stored.get(name) for name in person} == person


def only_reads(call: Call) -> bool:
    """Say whether *call* cannot have changed a contact."""
    return call.method == "GET" or call.path.endswith(("/oauth2/token", "/contact-methods/list", "/clients/list"))


@promise
def test_a_new_person_is_created_with_every_field(h: Any) -> None:
    receipt = h.target.deliver(h.api(), job(h))
    assert receipt.outcome == "created"
    assert receipt.target_id
    assert receipt.accepted == h.person(1)
    assert h.count() == 1
    holds(h, h.person(1))


@promise
def test_a_person_who_is_there_already_is_found_by_the_exact_key(h: Any) -> None:
    first = h.target.deliver(h.api(), job(h))
    second = h.target.deliver(h.api(), job(h))  # a worker that lost its memory
    assert second.target_id == first.target_id
    assert h.count() == 1


@promise
def test_a_change_reaches_the_stored_id(h: Any) -> None:
    first = h.target.deliver(h.api(), job(h))
    person = h.changed(h.person(1))
    second = h.target.deliver(h.api(), again(h, first, person))
    assert (second.outcome, second.target_id) == ("updated", first.target_id)
    assert second.accepted == person
    holds(h, person)
    assert h.count() == 1


@promise
def test_repeating_a_push_changes_nothing(h: Any) -> None:
    first = h.target.deliver(h.api(), job(h))
    h.target.deliver(h.api(), again(h, first, h.person(1)))
    h.target.deliver(h.api(), job(h, target_id=first.target_id))
    holds(h, h.person(1))
    assert h.count() == 1


@promise
def test_two_persons_stay_two(h: Any) -> None:
    first = h.target.deliver(h.api(), job(h, n=1))
    second = h.target.deliver(h.api(), job(h, n=2))
    assert first.target_id != second.target_id
    holds(h, h.person(1))
    holds(h, h.person(2))


@promise
def test_the_link_is_remembered_before_the_contact_is_written_to_again(h: Any) -> None:
    first = h.target.deliver(h.api(), job(h))
    linked: list[str] = []
    before = len(h.fake.calls)

    def link(target_id: str) -> None:
        linked.append(target_id)
        raise Ambiguous("Another contact of the source is linked to it.")

    with pytest.raises(Ambiguous):
        h.target.deliver(h.api(), job(h, h.changed(h.person(1)), link=link))
    assert linked == [first.target_id]
    assert all(only_reads(call) for call in h.fake.calls[before:])
    holds(h, h.person(1))


@promise
def test_what_others_put_there_survives(h: Any) -> None:
    first = h.target.deliver(h.api(), job(h))
    h.set_foreign(first.target_id)
    h.target.deliver(h.api(), again(h, first, h.changed(h.person(1))))
    assert h.foreign_intact(first.target_id)


@promise
def test_absent_persons_are_not_created_against_the_route(h: Any) -> None:
    receipt = h.target.deliver(h.api(), job(h, create=False))
    assert receipt.outcome == "absent"
    assert h.count() == 0


@promise
def test_a_person_who_opted_out_is_never_created(h: Any) -> None:
    receipt = h.target.deliver(h.api(), job(h, opt_out=True))
    assert receipt.outcome == "absent"
    assert h.count() == 0


@promise
def test_an_opt_out_of_somebody_who_cannot_be_found_writes_nothing(h: Any) -> None:
    h.target.deliver(h.api(), job(h))
    receipt = h.target.deliver(h.api(), job(h, {}, n=2, opt_out=True, create=False))
    assert (receipt.outcome, receipt.target_id) == ("absent", None)
    holds(h, h.person(1))


@promise
def test_an_opt_out_reaches_a_linked_contact_whose_fields_are_not_known(h: Any) -> None:
    first = h.target.deliver(h.api(), job(h))
    receipt = h.target.deliver(h.api(), again(h, first, {}, opt_out=True, create=False))
    assert h.opted_out(first.target_id) or receipt.notes
    holds(h, h.person(1))


@promise
def test_an_opt_out_in_the_crm_tightens_or_says_what_a_person_must_do(h: Any) -> None:
    first = h.target.deliver(h.api(), job(h))
    receipt = h.target.deliver(h.api(), again(h, first, h.person(1), opt_out=True))
    assert h.opted_out(first.target_id) or receipt.notes
    assert receipt.opted_out == h.opted_out(first.target_id)
    assert h.count() == 1


@promise
def test_an_opt_out_at_the_platform_is_seen_and_never_lifted(h: Any) -> None:
    if not getattr(h, "has_opt_out", True):
        # The platform has no such thing: nothing of it may be claimed either.
        assert h.target.deliver(h.api(), job(h)).opted_out is False
        return
    first = h.target.deliver(h.api(), job(h))
    h.opt_out_in_platform(first.target_id)
    receipt = h.target.deliver(h.api(), again(h, first, h.changed(h.person(1))))
    assert receipt.opted_out
    assert h.opted_out(first.target_id)
    receipt = h.target.deliver(h.api(), again(h, receipt, h.person(1)))
    assert h.opted_out(first.target_id)


@promise
def test_if_blank_never_overwrites(h: Any) -> None:
    first = h.target.deliver(h.api(), job(h))
    person = h.changed(h.person(1))
    modes = {name: Mode.IF_BLANK for name in person if person[name] != h.person(1)[name]}
    assert modes
    h.target.deliver(h.api(), again(h, first, person, modes=modes))
    holds(h, h.person(1))


@promise
def test_create_only_fields_are_set_once(h: Any) -> None:
    person = h.person(1)
    modes = {name: Mode.CREATE_ONLY for name in person if name != h.identity}
    first = h.target.deliver(h.api(), job(h, person, modes=modes))
    holds(h, person)
    h.target.deliver(h.api(), again(h, first, h.changed(person), modes=modes))
    holds(h, person)


@promise
def test_a_cleared_field_is_cleared_or_said_not_to_be(h: Any) -> None:
    if h.clearable is None:
        assert all(not field.clearable for field in h.type.fields if field.name in h.person(1))
        return
    first = h.target.deliver(h.api(), job(h))
    person: dict[str, Value] = {**h.person(1), h.clearable: None}
    receipt = h.target.deliver(h.api(), again(h, first, person))
    stored = h.stored(person[h.identity])
    assert stored is not None
    assert not stored.get(h.clearable) or receipt.notes
    others = {name: value for name, value in h.person(1).items() if name != h.clearable}
    assert {name: stored.get(name) for name in others} == others


@promise
def test_removal(h: Any) -> None:
    first = h.target.deliver(h.api(), job(h))
    gone = again(h, first, {}, gone=True)
    if not h.type.can_remove:
        with pytest.raises(Permanent):
            h.target.remove(h.api(), gone)
        return
    assert h.target.remove(h.api(), gone).outcome == "removed"
    assert h.stored(h.person(1)[h.identity]) is None
    assert h.target.remove(h.api(), gone).outcome == "removed"  # gone already


@promise
def test_a_create_that_timed_out_leads_to_a_search_and_never_to_a_second_contact(h: Any) -> None:
    h.fake.trouble(how="drop_after", method=h.create_method, path=h.create_path)
    with pytest.raises(Retryable):
        h.target.deliver(h.api(), job(h))
    assert h.count() == 1
    unsure = job(h, unsure_since=utc_now(), settled=False)
    receipt = h.target.deliver(h.api(), unsure)
    assert receipt.target_id
    assert h.count() == 1
    holds(h, h.person(1))


@promise
def test_nothing_is_created_while_the_fate_of_a_create_is_open(h: Any) -> None:
    unsure = job(h, unsure_since=utc_now() - timedelta(seconds=1), settled=False)
    with pytest.raises(Retryable) as caught:
        h.target.deliver(h.api(), unsure)
    assert caught.value.code == "unsure"
    assert h.count() == 0


@promise
@pytest.mark.parametrize("status", [500, 502, 503, 504, 429, 408])
def test_trouble_is_retryable_with_what_the_platform_asks_for(h: Any, status: int) -> None:
    trouble = h.fake.trouble(status=status, times=99, headers={"Retry-After": "7"})
    with pytest.raises(Retryable) as caught:
        h.target.deliver(h.api(), job(h))
    assert not isinstance(caught.value, Refused)
    assert caught.value.status == status
    assert (caught.value.retry_after_s == 7) or status not in {429, 503}
    trouble.times = 0
    h.target.deliver(h.api(), job(h))
    assert h.count() == 1


@promise
@pytest.mark.parametrize("body", ["", "<html>maintenance</html>", "[]", "null", '"text"', "{", "[[[[1]]]]"])
def test_nonsense_is_an_error_of_ours_and_writes_nothing(h: Any, body: str) -> None:
    trouble = h.fake.trouble(status=200, body=body, times=99)
    with pytest.raises((Retryable, Permanent)):
        h.target.deliver(h.api(), job(h))
    trouble.times = 0
    assert h.count() == 0


@promise
def test_refused_credentials_are_told_apart(h: Any) -> None:
    trouble = h.fake.trouble(status=401, body={"message": "no"}, times=99)
    with pytest.raises(Refused):
        h.target.deliver(h.api(), job(h))
    with pytest.raises(Refused):
        h.target.check(h.api())
    trouble.times = 0
    assert h.target.check(h.api())


@promise
def test_an_id_that_is_gone_is_resolved_once_by_the_exact_key(h: Any) -> None:
    first = h.target.deliver(h.api(), job(h))
    receipt = h.target.deliver(h.api(), job(h, h.changed(h.person(1)), accepted=h.person(1), target_id=MISSING_ID))
    assert receipt.target_id == first.target_id
    holds(h, h.changed(h.person(1)))
    assert h.count() == 1


@promise
def test_messages_name_no_person(h: Any) -> None:
    h.fake.trouble(status=422, body={"message": f"{h.person(1)[h.identity]} is bad"}, times=99)
    with pytest.raises((Retryable, Permanent)) as caught:
        h.target.deliver(h.api(), job(h))
    for value in h.person(1).values():
        assert str(value) not in str(caught.value)
