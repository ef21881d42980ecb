"""Merging is commutative and idempotent: any order, any repeats, the same contact."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from bridge import contact as contacts
from bridge.model import Change, Contact, Kind, RecordKey, Value, Version

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
    kind=st.sampled_from(list(Kind)),
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
