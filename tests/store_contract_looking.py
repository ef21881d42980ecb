"""What every store promises of `bridge.store.looking`, and of lists that look at a bounded number of rows.

`LookingContract` is to a store what `StoreContract` is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge import schedule
from bridge.errors import Ambiguous, DeliveryFailed, Permanent
from bridge.lanes import deliver_lane, slot_of
from bridge.model import (
    AuditEntry,
    Contact,
    Delivery,
    Exchange,
    FieldState,
    Outcome,
    RecordKey,
    State,
    Version,
)
from bridge.store.looking import LATENCY_BOUNDS_MS, Activity, Bar, Bulk, BulkState, Hit, Role, User
from bridge.store.protocol import Attempt, Filter, InboundResult, Rules, Ruling, Store
from tests.store_contract import (
    JANE,
    JOHN,
    MAIL,
    MINUTE,
    NOW,
    OPEN,
    SECOND,
    MakeStore,
    all_pages,
    claim,
    commit,
    contact,
    delivery_of,
    fact,
    facts,
    inbound,
    numbered,
    push,
    retry,
    want,
)

OTHER = Delivery("mail", JANE, State.SYNCED, "", NOW)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


def fail(store: Store, lane: str, error: DeliveryFailed, now: datetime = NOW) -> RecordKey:
    """Claim the next of *lane*, and finish it as a push that came to *error*."""
    ticket = store.acquire(lane, "test", now)
    claimed = claim(store, ticket, now)
    store.finish(
        ticket,
        claimed,
        lambda row: schedule.failed(row or claimed, claimed, error, held=OPEN, now=now, draw=0.5),
        Attempt(now, error.code, str(error), 30, error.status, error.code),
    )
    return claimed.key


def fail_all(store: Store, count: int, target: str = "mail", now: datetime = NOW) -> list[RecordKey]:
    """Have *count* contacts whose delivery failed for good."""
    keys = list(numbered(count))
    commit(store, *(want(key, target) for key in keys), now=now)
    for _ in keys:
        fail(store, MAIL, Permanent("The e-mail address is refused.", status=422), now)
    return keys


def total(activities: Sequence[Activity], **wanted: Any) -> int:
    return sum(
        one.count for one in activities if all(getattr(one, name) == value for name, value in wanted.items())
    )


def found_bulk(store: Store, bulk_id: int) -> Bulk:
    bulk = store.bulk(bulk_id, NOW)
    assert bulk is not None
    return bulk


ENTRIES = st.builds(
    AuditEntry,
    at=st.integers(0, 3 * 86_400).map(lambda seconds: NOW + timedelta(seconds=seconds)),
    kind=st.sampled_from(["contact", "delivery", "target"]),
    outcome=st.sampled_from(["changed", "updated", "unavailable"]),
    source=st.sampled_from(["crm", "shop", None]),
    target=st.sampled_from(["mail", None]),
    error=st.sampled_from([None, "unavailable"]),
    status=st.sampled_from([None, 200, 503]),
    duration_ms=st.sampled_from([None, 7]),
    fields=st.sampled_from([(), ("email",), ("email", 'na,"me')]),
)


class LookingContract:
    """Subclasses have the fixture `make_store` of a `StoreContract`.

    And one `small_budget`, which has lists look at 10 rows only, take 4 contacts for too many hits, and count 5
    entries one by one; it returns those 10.
    """

    @pytest.fixture
    def store(self, make_store: MakeStore) -> Store:
        return make_store()

    # --- running totals ----------------------------------------------------------------------------------

    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
    @given(entries=st.lists(ENTRIES, max_size=12), cuts=st.tuples(st.integers(0, 5000), st.integers(0, 5000)))
    def test_totals_are_what_counting_the_entries_gives(
        self, make_store: MakeStore, entries: list[AuditEntry], cuts: tuple[int, int]
    ) -> None:
        store = make_store()
        try:
            store.note(entries)
            told = [one for one in facts(store) if one.kind != "replay"]
            since, until = sorted(NOW.replace(second=0, microsecond=0) + minutes * MINUTE for minutes in cuts)
            if until - since > 2 * DAY:  # such a span is told in hours
                since, until = (one.replace(minute=0) for one in (since, until))
            spans = [(store.totals(), told)]
            spans += [(store.activity(since, until), [one for one in told if since <= one.at < until])]
            for activities, counted in spans:
                expected = Counter(
                    (one.kind, one.outcome, one.source, one.target, one.error, one.status) for one in counted
                )
                assert expected == {
                    (one.kind, one.outcome, one.source, one.target, one.error, one.status): one.count
                    for one in activities
                }
                assert sum(one.duration_ms or 0 for one in counted) == sum(one.duration_ms for one in activities)
            for narrowed in (Filter(), Filter(source="crm", outcome="updated"), Filter(status=503, target="mail")):
                shown = facts(store, source=narrowed.source, outcome=narrowed.outcome) if narrowed.source else told
                shown = facts(store, status=503, target="mail") if narrowed.status else shown
                facets = store.facets(narrowed).values
                assert dict(facets["kind"]) == Counter(one.kind for one in shown)
                assert dict(facets["error"]) == Counter(one.error for one in shown if one.error)
                assert dict(facets["field"]) == Counter(name for one in shown for name in one.fields)
        finally:
            store.close()

    def test_calls_and_durations_of_pushes_are_summed(self, store: Store) -> None:
        commit(store, want(), want(JOHN))
        ticket = store.acquire(MAIL, "a", NOW)
        calls = [Exchange("GET", "https://x.example", 200, 5), Exchange("POST", "https://x.example", 200, 7)]
        for _ in range(2):
            claimed = claim(store, ticket)
            push(store, ticket, claimed, f"T{claimed.key.source_id}", exchanges=calls)
        [one] = store.activity(NOW - MINUTE, NOW + MINUTE)
        assert one == Activity("delivery", "created", 2, "crm", "mail", None, 200, calls=4, duration_ms=24)

    def test_changes_that_were_to_reach_a_target_are_counted_and_leave_no_entry(self, store: Store) -> None:
        announced = [replace(want(), changes=3), replace(want(JOHN), changes=1, inbound_id=5)]
        commit(store, *announced, replace(want(JOHN, "sms"), desired=None, changes=4))
        commit(store, want())
        assert total(store.totals(), kind="announced", target="mail", source="crm") == 4
        assert total(store.totals(), kind="announced") == 4
        assert facts(store, kind="announced") == []
        assert "announced" not in dict(store.facets(Filter()).values["kind"])

    def test_old_minutes_are_pruned_and_hours_stay(self, store: Store) -> None:
        then = NOW - 10 * DAY
        store.note([fact(at=then), fact(at=NOW)])
        store.prune(payloads_before=then - DAY, keys_before=then - DAY)
        assert total(store.activity(then - HOUR, then + HOUR)) == 1
        assert total(store.activity(NOW - MINUTE, NOW + MINUTE)) == 1
        whole = then.replace(minute=0, second=0, microsecond=0)
        told = store.histogram(Filter(), whole, whole + HOUR, 60)
        assert (told.step_s, [dict(bar.counts) for bar in told.bars]) == (3600, [{"changed": 1}])

    @pytest.mark.parametrize(
        ("span", "bars", "step_s"),
        [
            (timedelta(minutes=59), 60, 60),
            (HOUR, 30, 300),
            (DAY, 49, 1800),
            (DAY, 24, 2 * 3600),
            (7 * DAY, 60, 3 * 3600),
            (90 * DAY, 100, 86_400),
            (90 * DAY, 40, 7 * 86_400),
            (3 * 365 * DAY, 60, 28 * 86_400),
        ],
    )
    def test_a_histogram_has_round_steps_and_few_bars(
        self, store: Store, span: timedelta, bars: int, step_s: int
    ) -> None:
        since = NOW - span
        store.note([fact(at=NOW - SECOND), fact(at=since), fact(at=since - 28 * DAY)])
        histogram = store.histogram(Filter(), since, NOW, bars)
        assert histogram.complete
        assert histogram.step_s == step_s
        assert len(histogram.bars) <= bars
        for one in histogram.bars:
            assert (one.at - datetime(1970, 1, 5, tzinfo=UTC)) % timedelta(seconds=step_s) == timedelta(0)
        assert histogram.bars[0].at <= since
        assert [dict(bar.counts) for bar in histogram.bars if bar.counts] == [{"changed": 1}] * 2

    def test_a_histogram_of_what_no_totals_tell(self, store: Store) -> None:
        commit(store, contacts=[contact(JANE, name="Jane")])
        store.note([fact(at=NOW + n * MINUTE, fields=("email",)) for n in range(3)])
        store.note([fact(JOHN, fields=("phone",), outcome="created")])
        end = NOW + 10 * MINUTE
        for narrowed, count in ((Filter(field="email"), 3), (Filter(q="jane"), 3), (Filter(source_id="2"), 1)):
            histogram = store.histogram(narrowed, NOW, end, 30)
            assert histogram.complete
            assert sum(sum(bar.counts.values()) for bar in histogram.bars) == count
            assert len(histogram.bars) == 11
        assert dict(store.facets(Filter(field="email")).values["outcome"]) == {"changed": 3}

    def test_facets_come_most_frequent_first(self, store: Store) -> None:
        store.note([fact(outcome="created"), *(fact(status=503) for _ in range(2))])
        facets = store.facets(Filter(kind="contact"))
        assert facets.complete
        assert facets.values["outcome"] == [("changed", 2), ("created", 1)]
        assert facets.values["status"] == [("503", 2)]
        assert facets.values["target"] == []

    # --- lists -------------------------------------------------------------------------------------------

    def test_a_page_can_be_narrowed_by_anything_together(self, store: Store) -> None:
        given: dict[str, Any] = {"kind": "delivery", "outcome": "invalid", "target": "mail", "error": "invalid"}
        commit(store, contacts=[contact(JANE, email="jane@example.com")])
        store.note(
            [
                fact(JANE, **given, status=422, fields=("email", "name"), inbound_id=9),
                fact(JANE, **given, status=400, at=NOW + SECOND),
                fact(JOHN, **given, status=422, fields=("email",), inbound_id=9),
                fact(JANE, status=204, at=NOW + SECOND),
            ]
        )

        def statuses(**narrowed: Any) -> list[int | None]:
            return [one.status for one in facts(store, **narrowed)]

        assert statuses(**given, status=422, source="crm", source_id="1", field="name", q="jane") == [422]
        assert statuses(**given, inbound_id=9) == [422, 422]
        assert statuses(inbound_id=9, source="crm", source_id="1") == [422]
        assert statuses(source_id="1") == [204, 400, 422]
        assert statuses(status=204) == [204]
        assert statuses(q="jane", until=NOW + SECOND) == [422]
        assert statuses(q="jane", error="invalid") == [400, 422]
        assert statuses(kind="contact", source="crm") == [204]
        assert statuses(source="nowhere") == []

    def test_a_page_that_looked_far_enough_says_how_far_and_goes_on(self, store: Store, small_budget: int) -> None:
        wanted = [0, 1, 3 * small_budget]
        store.note(
            [
                fact(at=NOW - n * SECOND, fields=("rare",) if n in wanted else ("email",))
                for n in range(4 * small_budget)
            ]
        )
        first = store.audit_page(Filter(field="rare"), None, 5)
        assert [one.at for one in first.items] == [NOW, NOW - SECOND]
        assert first.searched_to == NOW - (small_budget - 1) * SECOND
        assert first.next is not None
        rest = store.audit_page(Filter(field="rare"), first.next, 5)
        assert (list(rest.items), rest.searched_to) == ([], NOW - (2 * small_budget - 1) * SECOND)
        assert len(facts(store, field="rare")) == 3
        assert not store.facets(Filter(field="rare")).complete
        page = store.audit_page(Filter(field="email"), None, 2)
        assert (len(page.items), page.searched_to) == (2, None)

    def test_every_list_goes_on_behind_what_it_looked_at(self, store: Store, small_budget: int) -> None:
        count = 3 * small_budget
        ids = [
            one.id for one in store.receive([inbound(f"{n}", received_at=NOW + n * SECOND) for n in range(count)])
        ]
        keys = list(numbered(count))
        commit(
            store,
            *(want(key, "mail") for key in keys),
            contacts=[contact(key, name="old" if key == keys[0] else "new") for key in keys],
            audit=[fact(key, inbound_id=one) for key, one in zip(keys, ids, strict=True)],
            results=[InboundResult(one, Outcome.IGNORED if one == ids[0] else Outcome.PROCESSED) for one in ids],
        )
        for q, expected in (("new", count - 1), ("old", 1), ("ne", count - 1)):
            narrowed = Filter(q=q)
            assert len(all_pages(partial(store.contact_page, narrowed, limit=7))) == expected
            assert len(all_pages(partial(store.delivery_page, narrowed, limit=7))) == expected
            assert len(all_pages(partial(store.inbound_page, narrowed, limit=7))) == expected
            assert len(all_pages(partial(store.audit_page, narrowed, limit=7))) == expected
        narrowed = Filter(source="crm", outcome="ignored")
        assert [one.id for one in all_pages(lambda at: store.inbound_page(narrowed, at, 7))] == ids[:1]

    def test_one_persons_long_history_is_paged_beside_anothers_short_one(
        self, store: Store, small_budget: int
    ) -> None:
        commit(store, contacts=[contact(JANE, name="Jay"), contact(JOHN, name="Jay")])
        many = 2 * small_budget
        store.note([fact(JANE, at=NOW + n * SECOND, status=500 + n % 2) for n in range(many)])
        store.note([fact(JOHN, at=NOW + SECOND / 2, status=500)])
        assert len(facts(store, q="jay")) == many + 1
        assert len(facts(store, q="jay", status=500)) == many // 2 + 1
        assert [one.source_id for one in facts(store, q="jay", status=500)][-2:] == ["2", "1"]

    def test_the_webhooks_beside_one(self, store: Store) -> None:
        ids = [
            one.id
            for one in store.receive(
                [
                    inbound(f"{n}", source="shop" if n == 2 else "crm", received_at=NOW + n * SECOND)
                    for n in range(5)
                ]
            )
        ]
        commit(
            store, contacts=[contact(JANE, name="Jane")], audit=[fact(inbound_id=ids[0]), fact(inbound_id=ids[4])]
        )
        assert store.inbound_neighbours(Filter(), ids[2]) == (ids[3], ids[1])
        assert store.inbound_neighbours(Filter(), ids[4]) == (None, ids[3])
        assert store.inbound_neighbours(Filter(source="crm"), ids[1]) == (ids[3], ids[0])
        assert store.inbound_neighbours(Filter(q="jane"), ids[2]) == (ids[4], ids[0])
        assert store.inbound_neighbours(Filter(), 12345) == (None, None)

    def test_an_exact_id_is_looked_up(self, store: Store) -> None:
        [received] = store.receive([inbound("a")])
        known = RecordKey("crm", str(received.id))
        commit(store, want(known), want(JOHN), contacts=[contact(known), contact(JOHN)])
        ticket = store.acquire(MAIL, "a", NOW)
        for _ in range(2):
            claimed = claim(store, ticket)
            push(store, ticket, claimed, f"T{claimed.key.source_id}")
        assert store.lookup(f" {received.id} ") == [
            Hit("contact", key=known),
            Hit("webhook", inbound_id=received.id),
        ]
        assert store.lookup("T2") == [Hit("contact", key=JOHN)]
        assert store.lookup("T") == []
        assert store.lookup("9" * 30) == []

    def test_one_entry_of_the_audit_log(self, store: Store) -> None:
        store.note([fact(detail={"a": 1})])
        [stored] = facts(store)
        assert stored.id is not None
        assert store.audit_entry(stored.id) == stored
        assert store.audit_entry(stored.id + 1) is None

    # --- searching ---------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        "q",
        [
            *(
                "smith@ac",
                "ACME",
                "j.smith@acme.com",
                "j",
                "jane s",
                "Smith",
                "straße",
                "STRASSE",
                "van der",
                "p-17",
            ),
            *(
                "+44 20 7183 8750",
                "442071838750",
                "020 7183 8750",
                "(020) 7183-8750",
                "8750",
                "7183 8750",
                "00442071",
            ),
            *("crm-77", "77", "@acme.com", "gold card", "x" * 60),
        ],
    )
    def test_a_contact_is_found_by_where_a_word_begins(self, store: Store, q: str) -> None:
        person = contact(
            RecordKey("crm", "crm-77"),
            email="J.Smith@acme.com",
            phone="+44 (20) 7183-8750",
            name="  Jane\tSmith ",
            street="Hauptstraße 1 / Straße",
            other="van der Berg P-17",
            long="x" * 100,
        )
        tags = FieldState(["silver", {"deep": "gold card"}], Version(NOW, "e1"))
        person = replace(person, fields={**person.fields, "tags": tags})
        commit(store, contacts=[person, contact(JANE, name="Ann")])
        page = store.contact_page(Filter(q=q), None, 10)
        assert [one.key.source_id for one in page.items] == ["crm-77"]

    @pytest.mark.parametrize("q", ["mith", "cme", "@", "%", "_", "janes", "875", "x" * 101, "smith jane", "\x1f"])
    def test_what_stands_inside_a_word_is_not_found(self, store: Store, q: str) -> None:
        person = contact(JANE, email="j.smith@acme.com", phone="+442071838755", name="Jane Smith", long="x" * 100)
        commit(store, contacts=[person])
        found = store.contact_page(Filter(q=q), None, 10).items
        assert [one.key for one in found] == ([JANE] if q == "875" else [])  # but digits of a phone number are

    @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data(), value=st.text(st.sampled_from("aB1é ß.@-_\x1f\x1eÅ٣"), min_size=1, max_size=20))
    def test_any_beginning_of_any_word_is_found(
        self, make_store: MakeStore, data: st.DataObject, value: str
    ) -> None:
        store = make_store()
        try:
            commit(store, contacts=[contact(JANE, name=value)])
            starts = [word.start() for word in re.finditer(r"[^\W_]+", value)]
            if starts:
                start = data.draw(st.sampled_from(starts))
                end = data.draw(st.integers(start + 1, len(value)))
                assert store.contact_page(Filter(q=value[start:end]), None, 10).items
        finally:
            store.close()

    def test_what_is_no_longer_known_is_no_longer_found(self, store: Store) -> None:
        def found(q: str) -> list[RecordKey]:
            return [one.key for one in store.contact_page(Filter(q=q), None, 10).items]

        commit(store, contacts=[contact(JANE, email="old@example.com", name="Jane")])
        commit(store, contacts=[contact(JANE, email="new@example.com", name="Jane")])
        assert (found("old"), found("new"), found("jane"), found("exam")) == ([], [JANE], [JANE], [JANE])
        commit(store, contacts=[Contact(JANE, erased=Version(NOW, "e9"))], erased=[JANE])
        assert (found("new"), found("jane"), found("1")) == ([], [], [JANE])

    def test_a_contact_is_found_by_the_id_a_target_has_for_it(self, store: Store) -> None:
        commit(store, want(), want(JANE, "sms"), want(JOHN))
        ticket = store.acquire(MAIL, "a", NOW)
        for _ in range(2):
            claimed = claim(store, ticket)
            push(store, ticket, claimed, f"T-{claimed.key.source_id}")
        assert [one.key for one in store.contact_page(Filter(q="T-2"), None, 10).items] == [JOHN]
        assert {one.key for one in store.delivery_page(Filter(q="T-1"), None, 10).items} == {JANE}

    # --- what led to what --------------------------------------------------------------------------------

    def test_an_attempt_tells_of_the_newest_webhook_behind_it(self, store: Store) -> None:
        commit(store, replace(want(), inbound_id=4))
        ticket = store.acquire(MAIL, "a", NOW)
        claimed = claim(store, ticket)
        assert claimed.inbound_id == 4
        commit(store, replace(want(name="newer"), inbound_id=6))
        push(store, ticket, claimed, "T1")
        commit(store, replace(want(name="newer"), inbound_id=8))  # it changes nothing of what is wanted
        push(store, ticket, claim(store, ticket), "T1")
        commit(store, replace(want(name="newer"), inbound_id=9))
        assert [(one.inbound_id, one.outcome) for one in facts(store, kind="delivery")] == [
            (9, "unchanged"),
            (6, "created"),
            (4, "created"),
        ]
        assert [one.inbound_id for one in facts(store, inbound_id=6)] == [6]

    def test_what_is_unreadable_when_it_comes_is_a_fact(self, store: Store) -> None:
        store.receive([inbound("a")])
        [bad] = store.receive([inbound(outcome=Outcome.UNREADABLE, reason="It is no JSON.")])
        [entry] = facts(store)
        assert (entry.kind, entry.outcome, entry.reason, entry.source, entry.inbound_id) == (
            "inbound",
            "unreadable",
            "It is no JSON.",
            "crm",
            bad.id,
        )

    # --- targets -----------------------------------------------------------------------------------------

    def test_how_long_pushes_took(self, store: Store) -> None:
        assert store.latencies() == []
        commit(store, *(want(key) for key in numbered(3)))
        ticket = store.acquire(MAIL, "a", NOW)
        for duration_ms in (50, 51, 10**7):
            claimed = claim(store, ticket)
            attempt = Attempt(NOW, "updated", "", duration_ms, status=200)
            store.finish(ticket, claimed, lambda row: replace(row, state=State.SYNCED) if row else OTHER, attempt)
        [latency] = store.latencies()
        assert (latency.target, latency.total_ms) == ("mail", 50 + 51 + 10**7)
        assert tuple(latency.counts) == LATENCY_BOUNDS_MS
        assert {bound: n for bound, n in latency.counts.items() if n} == {50: 1, 100: 1, 60_000: 1}

    def test_queues_say_what_waits_and_how_the_last_pushes_went(self, store: Store) -> None:
        mail, sms = store.queues(NOW)
        assert (mail.target, mail.oldest_wanted_at, mail.tokens, mail.last_success_at) == (
            "mail",
            None,
            None,
            None,
        )
        commit(store, *(want(key) for key in numbered(3)), want(JANE, "sms"))
        assert store.queues(NOW)[0].next_due_at == NOW
        ticket = store.acquire(MAIL, "a", NOW)
        push(store, ticket, claim(store, ticket), "T1")
        retry(store, ticket, claim(store, ticket), NOW + SECOND)
        later = NOW + 2 * SECOND
        fail(store, MAIL, Permanent("The e-mail address is refused."), later)
        assert store.take_turn("mail", 2.0, 10, NOW, 6) == 0
        store.set_backoff("mail", NOW + MINUTE)
        store.pause("sms", "", "ann", NOW)
        mail, sms = store.queues(NOW + SECOND)
        assert (mail.oldest_wanted_at, mail.tokens, mail.closed_until) == (NOW, 6.0, NOW + MINUTE)
        assert (mail.last_success_at, mail.last_error_at) == (NOW, later)
        assert (mail.last_error, mail.last_error_reason) == (Permanent.code, "The e-mail address is refused.")
        assert mail.next_due_at == delivery_of(store, RecordKey("crm", "1")).due_at
        assert (sms.oldest_wanted_at, sms.next_due_at) == (NOW, None)
        assert store.queues(NOW + 2 * MINUTE)[0].closed_until is None
        assert store.queues(NOW + 2 * MINUTE)[0].tokens == 10.0

    # --- webhooks heard ----------------------------------------------------------------------------------

    def test_every_webhook_of_a_source_is_heard_once_whatever_becomes_of_it(self, store: Store) -> None:
        store.receive([inbound("a"), inbound("b", outcome=Outcome.UNREADABLE), inbound("c", source="shop")])
        store.receive([inbound("a"), inbound("d", received_at=NOW - HOUR)])  # the first one comes again
        full = NOW.replace(minute=0, second=0, microsecond=0)
        bars = store.heard("crm", full - 2 * HOUR, full + HOUR)
        assert [(bar.at, dict(bar.counts)) for bar in bars] == [
            (full - 2 * HOUR, {}),
            (full - HOUR, {"heard": 1}),
            (full, {"heard": 2}),
        ]
        assert store.heard("other", full, full + HOUR) == [Bar(full, {})]
        # They are no entries of the audit log, and nothing counts them as such.
        assert [kind for kind, _ in store.facets(Filter()).values["kind"]] == ["inbound"]

    # --- failures and bulk retries -----------------------------------------------------------------------

    def test_failures_are_grouped_by_cause(self, store: Store) -> None:
        keys = fail_all(store, 4)
        commit(store, want(RecordKey("crm", "9")))
        fail(store, MAIL, Ambiguous("Two contacts have this e-mail address."), NOW + MINUTE)
        refused, ambiguous = store.failure_groups(Filter())
        assert (refused.target, refused.state, refused.error, refused.status) == (
            "mail",
            State.FAILED,
            Permanent.code,
            422,
        )
        assert refused.reason.startswith("The e-mail address is refused.")
        assert (refused.count, refused.oldest_at, refused.newest_at) == (4, NOW, NOW)
        assert len(refused.examples) == 3
        assert set(refused.examples) < set(keys)
        assert (ambiguous.state, ambiguous.count, ambiguous.newest_at) == (State.AMBIGUOUS, 1, NOW + MINUTE)
        assert len(store.failure_groups(Filter(), limit=1)) == 1
        assert [one.state for one in store.failure_groups(Filter(state="ambiguous"))] == [State.AMBIGUOUS]
        assert store.failure_groups(Filter(target="sms")) == []

    def test_a_bulk_retry_goes_its_way(self, store: Store) -> None:
        keys = fail_all(store, 3)
        bulk_id = store.start_bulk(Filter(target="mail"), "target mail", "ann", NOW)
        begun = found_bulk(store, bulk_id)
        assert (begun.by, begun.what, begun.state, begun.total) == ("ann", "target mail", BulkState.RUNNING, 3)
        assert (begun.undecided, begun.states, begun.settled, begun.ended_at) == (3, {}, 0, None)
        [entry] = facts(store, kind="replay")
        assert (entry.outcome, entry.target) == ("bulk_requested", "mail")
        assert "ann" in entry.reason
        assert "3 deliveries" in entry.reason
        work = store.work("crm", NOW, 10)
        assert set(work.keys) == set(work.replays) == set(keys)
        commit(store, *(replace(want(key), again=True) for key in keys), decided=keys)
        assert (found_bulk(store, bulk_id).undecided, found_bulk(store, bulk_id).states) == (0, {"pending": 3})
        ticket = store.acquire(MAIL, "a", NOW)
        push(store, ticket, claim(store, ticket), "T1")
        claimed = claim(store, ticket)
        assert found_bulk(store, bulk_id).states == {"synced": 1, "sending": 1, "pending": 1}
        assert found_bulk(store, bulk_id).settled == 1
        push(store, ticket, claimed, "T2", now=NOW + SECOND)
        fail(store, MAIL, Permanent("Refused again."), NOW + MINUTE)
        ended = found_bulk(store, bulk_id)
        assert (ended.state, ended.states, ended.settled) == (BulkState.DONE, {"synced": 2, "failed": 1}, 3)
        assert (ended.ended_at, ended.ended_by) == (NOW + MINUTE, "")
        # What becomes of them later is no longer the retry's.
        commit(store, *(want(key, name="newer") for key in keys))
        assert found_bulk(store, bulk_id) == ended
        assert not store.cancel_bulk(bulk_id, "bob", NOW)
        assert store.bulk(bulk_id + 1, NOW) is None

    def test_a_retry_of_nothing_is_done_at_once(self, store: Store) -> None:
        bulk = found_bulk(store, store.start_bulk(Filter(), "all", "ann", NOW))
        assert (bulk.state, bulk.total, bulk.ended_at) == (BulkState.DONE, 0, NOW)

    def test_a_bulk_retry_is_called_off(self, store: Store) -> None:
        keys = fail_all(store, 5)
        before = {one.key: one for one in store.delivery_page(Filter(), None, 10).items}
        bulk_id = store.start_bulk(Filter(), "all", "ann", NOW)
        undecided, going, newer, sending, done = keys
        decided = [going, newer, sending, done]
        commit(store, *(replace(want(key), again=True) for key in (done,)), decided=[done])
        ticket = store.acquire(MAIL, "a", NOW)
        push(store, ticket, claim(store, ticket), "T1")
        commit(store, replace(want(sending), again=True), decided=[sending])
        under_way = claim(store, ticket)
        commit(store, *(replace(want(key), again=True) for key in (going, newer)), decided=decided)
        commit(store, want(newer, name="newer"))
        assert store.cancel_bulk(bulk_id, "bob", NOW + MINUTE)
        bulk = found_bulk(store, bulk_id)
        assert (bulk.state, bulk.ended_at, bulk.ended_by) == (BulkState.CANCELLED, NOW + MINUTE, "bob")
        assert (bulk.total, bulk.undecided) == (5, 0)
        assert bulk.states == {"synced": 1, "sending": 1, "failed": 2, "pending": 1}
        assert store.work("crm", NOW, 10).replays == frozenset()
        put_back = delivery_of(store, going)
        assert replace(put_back, updated_at=NOW, wanted_at=None) == replace(before[going], wanted_at=None)
        assert delivery_of(store, undecided) == before[undecided]
        assert delivery_of(store, newer).state is State.PENDING
        assert delivery_of(store, sending).state is State.SENDING
        [entry] = facts(store, outcome="bulk_cancelled")
        assert "bob" in entry.reason
        assert "3 deliveries" in entry.reason
        assert not store.cancel_bulk(bulk_id, "bob", NOW)
        # What was on its way ends as it does, and what is decided again without having been asked for stays.
        push(store, ticket, under_way, "T2")
        commit(store, want(undecided), decided=[undecided])
        assert delivery_of(store, undecided).state is State.FAILED
        assert found_bulk(store, bulk_id).states == {"synced": 2, "failed": 2, "pending": 1}

    def test_a_persons_own_replay_outlives_a_bulk_retry(self, store: Store) -> None:
        [key] = fail_all(store, 1)
        store.replay(NOW, "bob", keys=[key])
        store.cancel_bulk(store.start_bulk(Filter(), "all", "ann", NOW), "ann", NOW)
        assert store.work("crm", NOW, 10).replays == {key}

    def test_a_retry_of_one_target_leaves_the_contacts_other_failures_alone(self, store: Store) -> None:
        keys = fail_all(store, 2)
        commit(store, *(want(key, "sms") for key in keys))
        for key in keys:
            fail(store, deliver_lane("sms", slot_of(key) % 2), Permanent("No.", status=422), NOW)
        store.start_bulk(Filter(target="mail"), "target mail", "ann", NOW)
        store.replay(NOW, "bob", keys=keys[1:])  # somebody means all of the second contact
        again = [replace(want(key, target), again=True) for key in keys for target in ("mail", "sms")]
        commit(store, *again, decided=keys)
        states = {(one.target, one.key): one.state for key in keys for one in store.deliveries_of(key)}
        assert states == {
            ("mail", keys[0]): State.PENDING,
            ("sms", keys[0]): State.FAILED,
            ("mail", keys[1]): State.PENDING,
            ("sms", keys[1]): State.PENDING,
        }

    def test_what_is_asked_for_while_others_are_decided_is_decided_once_more(self, store: Store) -> None:
        keys = fail_all(store, 2)
        bulk_id = store.start_bulk(Filter(), "all", "ann", NOW)
        commit(store, *(want(key) for key in keys), decided=keys)  # begun before anybody asked
        assert found_bulk(store, bulk_id).undecided == 2
        assert store.work("crm", NOW, 10).replays == set(keys)
        commit(store, *(replace(want(key), again=True) for key in keys), decided=keys)
        assert found_bulk(store, bulk_id).states == {"pending": 2}
        assert store.work("crm", NOW, 10).keys == []

    def test_calling_off_one_retry_leaves_another_of_the_same_contact_alone(self, store: Store) -> None:
        [key] = fail_all(store, 1)
        commit(store, want(key, "sms"))
        fail(store, deliver_lane("sms", slot_of(key) % 2), Permanent("No.", status=422), NOW)
        to_mail = store.start_bulk(Filter(target="mail"), "target mail", "ann", NOW)
        to_sms = store.start_bulk(Filter(target="sms"), "target sms", "bob", NOW)
        store.cancel_bulk(to_mail, "ann", NOW)
        commit(store, *(replace(want(key, one), again=True) for one in ("mail", "sms")), decided=[key])
        assert {one.target: one.state for one in store.deliveries_of(key)} == {
            "mail": State.FAILED,
            "sms": State.PENDING,
        }
        assert found_bulk(store, to_sms).states == {"pending": 1}

    def test_a_retry_ends_where_a_route_is_no_more(self, store: Store) -> None:
        store.put_in_force(Ruling(Rules({("crm", "mail"): "a"}, {})), NOW)
        fail_all(store, 2)
        bulk_id = store.start_bulk(Filter(), "all", "ann", NOW)
        store.put_in_force(Ruling(Rules({}, {}), gone=[("crm", "mail")]), NOW + MINUTE)
        ended = found_bulk(store, bulk_id)
        assert (ended.state, ended.undecided, ended.states) == (BulkState.DONE, 0, {"waiting": 2})

    def test_a_retry_goes_on_where_the_rules_change(self, store: Store) -> None:
        store.put_in_force(Ruling(Rules({("crm", "mail"): "a"}, {})), NOW)
        [key] = fail_all(store, 1)
        bulk_id = store.start_bulk(Filter(), "all", "ann", NOW)
        commit(store, replace(want(key), again=True), decided=[key])
        store.put_in_force(Ruling(Rules({("crm", "mail"): "b"}, {}), changed=[("crm", "mail")]), NOW)
        assert (found_bulk(store, bulk_id).state, found_bulk(store, bulk_id).undecided) == (BulkState.RUNNING, 1)
        commit(store, want(key, name="by other rules"), decided=[key])
        assert found_bulk(store, bulk_id).states == {"pending": 1}

    def test_what_one_retry_has_in_hand_is_left_to_it(self, store: Store) -> None:
        fail_all(store, 2)
        first = store.start_bulk(Filter(), "all", "ann", NOW)
        second = store.start_bulk(Filter(), "all", "bob", NOW)
        assert (found_bulk(store, first).total, found_bulk(store, second).total) == (2, 0)
        assert [one.id for one in store.bulks(NOW)] == [second, first]
        assert [one.id for one in store.bulks(NOW, limit=1)] == [second]

    def test_a_retry_is_narrowed(self, store: Store) -> None:
        commit(store, contacts=[contact(key, name=f"Name{key.source_id}") for key in numbered(4)])
        keys = fail_all(store, 4)
        commit(store, contacts=[contact(key, name=f"Name{key.source_id}") for key in numbered(4)])
        bulk_id = store.start_bulk(Filter(q="name2", status=422), "name2", "ann", NOW)
        assert found_bulk(store, bulk_id).total == 1
        assert store.work("crm", NOW, 10).keys == [keys[2]]

    # --- people who sign in ------------------------------------------------------------------------------

    def test_people_are_added_changed_and_removed(self, store: Store) -> None:
        assert store.user("ann") is None
        store.save_user(User("ann", Role.VIEWER), NOW)
        store.save_user(User("bob", Role.ADMIN, "scrypt:hash", epoch=7), NOW)
        assert store.user("bob") == User("bob", Role.ADMIN, "scrypt:hash", created_at=NOW)
        store.end_sessions("ann")
        store.save_user(User("ann", Role.OPERATOR, "other"), NOW + MINUTE)
        assert store.users() == [
            User("ann", Role.OPERATOR, "other", epoch=1, created_at=NOW),
            User("bob", Role.ADMIN, "scrypt:hash", created_at=NOW),
        ]
        assert store.remove_user("bob")
        assert not store.remove_user("bob")
        assert [one.name for one in store.users()] == ["ann"]

    def test_when_somebody_was_seen_is_written_once_a_minute(self, store: Store) -> None:
        store.save_user(User("ann", Role.VIEWER), NOW)

        def seen(at: datetime) -> datetime | None:
            store.seen("ann", at)
            user = store.user("ann")
            return user.last_seen_at if user else None

        assert [seen(NOW), seen(NOW + 59 * SECOND), seen(NOW + MINUTE)] == [NOW, NOW, NOW + MINUTE]
        store.seen("nobody", NOW)
        assert store.user("nobody") is None

    def test_a_link_signs_in_once_and_in_time(self, store: Store) -> None:
        store.save_user(User("ann", Role.VIEWER), NOW)
        for name in ("used", "late", "gone"):
            store.add_login_link(name, "ann", NOW + MINUTE)
        assert store.use_login_link("used", NOW) == "ann"
        assert store.use_login_link("used", NOW) is None
        assert store.use_login_link("late", NOW + MINUTE) is None
        assert store.use_login_link("never", NOW) is None
        assert store.remove_user("ann")
        assert store.use_login_link("gone", NOW) is None

    def test_facts_from_outside_are_noted(self, store: Store) -> None:
        store.note([])
        store.note([AuditEntry(NOW, "session", "signed_in", "Ann signed in."), AuditEntry(NOW, "export", "taken")])
        assert [one.outcome for one in facts(store)] == ["taken", "signed_in"]
        assert [one.outcome for one in facts(store, kind="session")] == ["signed_in"]
