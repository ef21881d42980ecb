"""Merging is commutative and idempotent: any order, any repeats, the same contact."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge import contact as contacts
from bridge.model import Change, Contact, Kind, RecordKey, Value, Version
from bridge.pipeline.merging import load, merge_all

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
KEY = RecordKey("crm", "84213")

versions = st.builds(
    Version,
    st.integers(0, 5).map(lambda minutes: NOON + timedelta(minutes=minutes)),
    st.sampled_from(["e1", "e2", "e3"]),
)
values: st.SearchStrategy[Value] = st.sampled_from([None, "", "a", "b", "true", 1, True, ["x"], {"k": "v"}])
changes = st.builds(
    Change,
    key=st.just(KEY),
    kind=st.sampled_from([kind for kind in Kind if kind not in {Kind.STOPPED, Kind.STARTED}]),
    version=versions,
    fields=st.dictionaries(st.sampled_from(["email", "phone", "optout"]), values, max_size=3),
    thin=st.booleans(),
    survivor=st.sampled_from(["s1", "s2"]),
)


def merged(history: list[Change]) -> Contact | None:
    contact: Contact | None = None
    for change in history:
        contact = contacts.merge(contact, change)
    return contact


@given(
    st.lists(changes, min_size=1, max_size=8).flatmap(lambda h: st.tuples(st.just(h), st.permutations(h + h[:3])))
)
def test_any_order_and_any_repeats_end_in_the_same_contact(
    histories: tuple[list[Change], list[Change]],
) -> None:
    history, shuffled = histories
    assert merged(history) == merged(shuffled)


@given(st.lists(changes, min_size=1, max_size=8))
def test_the_newest_value_of_a_field_wins(history: list[Change]) -> None:
    contact = merged(history)
    assert contact is not None
    if contact.erased:
        assert not contact.fields
        return
    for name, state in contact.fields.items():
        said = [change for change in history if name in change.fields]
        assert state.version == max(change.version for change in said)


@given(st.lists(changes, min_size=1, max_size=8))
def test_clearing_does_not_unsay(history: list[Change]) -> None:
    contact = merged([change for change in history if change.kind is not Kind.ERASED])
    for name, state in (contact.fields if contact else {}).items():
        words = [c for c in history if c.kind is not Kind.ERASED and not contacts.is_empty(c.fields.get(name))]
        assert (state.said is None) == (not words)
        assert state.said_version == max((change.version for change in words), default=None)


def test_a_late_update_does_not_resurrect_the_deleted() -> None:
    deleted = Change(KEY, Kind.DELETED, Version(NOON, "e1"))
    late = Change(KEY, Kind.CHANGED, Version(NOON - timedelta(minutes=1), "e0"), {"email": "a@example.com"})
    later = Change(KEY, Kind.CHANGED, Version(NOON + timedelta(minutes=1), "e2"), {"email": "b@example.com"})
    contact = merged([deleted, late, later])
    assert contact is not None
    assert not contact.alive


def test_a_restore_brings_back_and_an_older_one_does_not() -> None:
    deleted = Change(KEY, Kind.DELETED, Version(NOON, "e1"))
    restored = Change(KEY, Kind.CREATED, Version(NOON + timedelta(minutes=1), "e2"))
    stale = Change(KEY, Kind.CREATED, Version(NOON - timedelta(minutes=1), "e0"))
    assert contacts.merge(merged([deleted]), restored).alive
    assert not contacts.merge(merged([deleted]), stale).alive


def test_erased_is_for_good_and_keeps_nothing() -> None:
    said = Change(KEY, Kind.CREATED, Version(NOON, "e1"), {"email": "a@example.com"})
    erased = Change(KEY, Kind.ERASED, Version(NOON - timedelta(days=1), "e0"))
    contact = merged([said, erased, said])
    assert contact is not None
    assert not contact.alive
    assert not contact.fields
    assert "example.com" not in repr(contact)


def test_a_clock_that_runs_ahead_does_not_own_the_field() -> None:
    ahead = Change(KEY, Kind.CHANGED, Version(NOON + timedelta(days=365), "e1"), {"email": "a@example.com"})
    assert contacts.clamp(ahead, NOON).version == Version(NOON, "e1")
    slightly = Change(KEY, Kind.CHANGED, Version(NOON + timedelta(minutes=1), "e1"), {})
    assert contacts.clamp(slightly, NOON) is slightly


def test_an_heir_has_the_newest_of_both() -> None:
    old = merged([Change(KEY, Kind.CHANGED, Version(NOON, "e1"), {"email": "old@example.com", "phone": "1"})])
    heir = RecordKey("crm", "9")
    new = contacts.merge(None, Change(heir, Kind.CHANGED, Version(NOON + timedelta(1), "e2"), {"phone": "2"}))
    assert old is not None
    both = contacts.inherit(new, old)
    assert {name: state.value for name, state in both.fields.items()} == {"email": "old@example.com", "phone": "2"}
    assert (both.inherits, both.absorbed) == (("84213",), ("84213",))
    assert contacts.inherit(both, old) == both


# --- one person under several ids ---

A, B, C, D, E = (RecordKey("crm", letter) for letter in "ABCDE")


def fields_of(key: RecordKey, minute: int) -> list[Change]:
    said: dict[str, Value] = {"email": f"{key.source_id}@example.com", "optout": "true"}
    return [Change(key, Kind.CHANGED, at(minute), said)]


def merge_into(survivor: RecordKey, minute: int, *losers: RecordKey) -> list[Change]:
    """Return what a merge says; the survivor is the first loser under a new id."""
    return [
        Change(loser, Kind.MERGED, at(minute), survivor=survivor.source_id, heir_of=loser == losers[0])
        for loser in losers
    ]


def erasure(key: RecordKey, minute: int) -> list[Change]:
    return [Change(key, Kind.ERASED, at(minute))]


def at(minute: int) -> Version:
    return Version(NOON + timedelta(minutes=minute), f"e{minute}")


def processed(rounds: list[list[Change]]) -> dict[RecordKey, Contact]:
    """Return all contacts after *rounds*, each of which loads and saves only what it bears upon."""
    stored: dict[RecordKey, Contact] = {}

    def find(keys: Collection[RecordKey]) -> dict[RecordKey, Contact]:
        return {key: stored[key] for key in keys if key in stored}

    for changes in rounds:
        spoken_of = {change.key for change in changes}
        spoken_of |= {RecordKey("crm", change.survivor) for change in changes if change.survivor}
        known = load(find, spoken_of)
        before = dict(known)
        touched = merge_all(known, changes)
        assert all(known[key] == before.get(key) for key in known.keys() - touched)
        stored |= {key: known[key] for key in touched}
    return stored


MERGE = [fields_of(A, 1), fields_of(B, 2), merge_into(C, 3, A, B), fields_of(C, 4)]
CHAIN = [*MERGE, fields_of(D, 5), merge_into(E, 6, C, D), fields_of(E, 7)]


@pytest.mark.parametrize("people", [MERGE, CHAIN], ids=["merge", "chain"])
@given(data=st.data())
def test_erasing_one_record_of_a_person_erases_all_in_any_order(
    people: list[list[Change]], data: st.DataObject
) -> None:
    keys = {change.key for event in people for change in event}
    history = [*people, erasure(data.draw(st.sampled_from(sorted(keys)), label="erased"), 8)]
    in_order = processed(history)
    shuffled = data.draw(st.permutations(history), label="order")
    assert processed(shuffled) == in_order
    assert processed([[change for event in shuffled for change in event]]) == in_order
    assert in_order.keys() == keys
    assert all(contact.erased == at(8) and not contact.fields for contact in in_order.values())
    assert "example.com" not in repr(in_order)


@given(st.data())
def test_of_two_erasures_of_a_person_the_newest_counts(data: st.DataObject) -> None:
    history = [*MERGE, erasure(A, 5), erasure(C, 6)]
    assert {contact.erased for contact in processed(data.draw(st.permutations(history))).values()} == {at(6)}


@given(st.permutations(CHAIN))
def test_merged_records_end_in_the_same_lineage_in_any_order(shuffled: list[list[Change]]) -> None:
    contacts_then = processed(shuffled)
    assert {key: replace(contact, fields={}) for key, contact in contacts_then.items()} == {
        key: replace(contact, fields={}) for key, contact in processed(CHAIN).items()
    }
    assert contacts_then[E].absorbed == ("C", "D")
    assert not any(contact.erased for contact in contacts_then.values())


def test_a_merge_that_arrives_after_the_erasure_is_erased_too() -> None:
    contacts_then = processed([fields_of(C, 4), erasure(C, 5), fields_of(A, 1), merge_into(C, 3, A, B)])
    assert contacts_then[A].erased == contacts_then[B].erased == at(5)
    assert (contacts_then[C].absorbed, contacts_then[A].merged_into) == (("A", "B"), "C")
