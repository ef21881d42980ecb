"""What every store promises: each implementation runs all of this by having a subclass with its `make_store`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import pytest

from bridge import schedule
from bridge.errors import Ambiguous, LostLane, Retryable, Superseded
from bridge.lanes import deliver_lane, process_lane, slot_of
from bridge.model import (
    BACKFILL,
    RECONCILE,
    AuditEntry,
    CatchUp,
    Contact,
    Delivery,
    Desired,
    Exchange,
    FieldState,
    Mode,
    Outcome,
    Progress,
    Receipt,
    RecordKey,
    State,
    Value,
    Version,
    Want,
)
from bridge.store.protocol import (
    AccessToken,
    Attempt,
    Decision,
    Filter,
    InboundResult,
    NewInbound,
    Page,
    Plan,
    Received,
    Refusal,
    Rules,
    Ruling,
    Store,
    TargetStatus,
    Ticket,
)

T = TypeVar("T")
MakeStore = Callable[[], Store]

NOW = datetime(2026, 3, 2, 10, 11, 12, 345678, tzinfo=UTC)
SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
LANES: Mapping[str, int] = {"sms": 2, "mail": 1}
OPEN = TargetStatus("mail")
PROCESS = process_lane("crm")
MAIL = deliver_lane("mail", 0)
JANE = RecordKey("crm", "1")
JOHN = RecordKey("crm", "2")


# --- making things ---------------------------------------------------------------------------------------


def inbound(*keys: str, source: str = "crm", body: bytes = b"{}", **more: Any) -> NewInbound:
    more = {"received_at": NOW, **more}
    return NewInbound(
        source=source,
        method="POST",
        url=f"https://bridge.example/hooks/{source}",
        headers={"x-signature": "abc"},
        body=body,
        event_keys=keys,
        **more,
    )


def contact(key: RecordKey, **fields: str) -> Contact:
    version = Version(NOW, "e1")
    return Contact(key, {name: FieldState(value, version, value, version) for name, value in fields.items()})


def want(key: RecordKey = JANE, target: str = "mail", **fields: str) -> Want:
    return Want(target, key, Desired(fields or {"email": f"{key.source_id}@example.com"}))


def fact(key: RecordKey = JANE, **more: Any) -> AuditEntry:
    given: dict[str, Any] = {"at": NOW, "kind": "contact", "outcome": "changed"}
    return AuditEntry(**(given | {"source": key.source, "source_id": key.source_id} | more))


def commit(store: Store, *wants: Want, now: datetime = NOW, **more: Any) -> dict[str, datetime]:
    ticket = store.acquire(PROCESS, "test", now)
    contacts = more.pop("contacts", [Contact(one.key) for one in wants])
    return store.commit(ticket, Decision(contacts=contacts, wants=wants, **more), now)


def claim(store: Store, ticket: Ticket, now: datetime = NOW) -> Delivery:
    claimed = store.claim(ticket, now)
    assert claimed is not None
    return claimed


def push(
    store: Store,
    ticket: Ticket,
    claimed: Delivery,
    target_id: str | None = None,
    now: datetime = NOW,
    exchanges: Sequence[Exchange] = (),
    **receipt: Any,
) -> Delivery:
    """Finish *claimed* as a push that the target took."""
    taken = Receipt(receipt.pop("outcome", "created"), target_id, _fields(claimed), **receipt)
    attempt = Attempt(now, taken.outcome, "", 12, status=200, fields=("email",), exchanges=exchanges)
    return store.finish(ticket, claimed, _taken(claimed, taken, now), attempt)


def catch_up(run: str, *, kind: str = BACKFILL, due_at: datetime | None = NOW) -> CatchUp:
    return CatchUp("crm", kind, run, NOW, NOW, "ann", due_at=due_at)


def push_and_claim(
    store: Store, ticket: Ticket, claimed: Delivery, apart: Collection[str] = (), now: datetime = NOW
) -> tuple[Delivery, Delivery | None]:
    """Finish *claimed* as a push that the target took, and claim the next."""
    taken = Receipt("created", f"T{claimed.key.source_id}", _fields(claimed))
    attempt = Attempt(now, taken.outcome, "", 12, status=200)
    return store.finish_and_claim(ticket, claimed, _taken(claimed, taken, now), attempt, now, apart)


def _fields(claimed: Delivery) -> Mapping[str, Value]:
    return claimed.desired.fields if claimed.desired else {}


def _taken(claimed: Delivery, receipt: Receipt, now: datetime) -> Plan:
    return lambda row: schedule.succeeded(row or claimed, claimed, receipt, held=OPEN, now=now)


def retry(store: Store, ticket: Ticket, claimed: Delivery, now: datetime = NOW) -> Delivery:
    error = Retryable("The platform has trouble (HTTP 503).", status=503)

    def close(row: Delivery | None) -> Delivery:
        return schedule.failed(row or claimed, claimed, error, held=OPEN, now=now, draw=0.5)

    return store.finish(ticket, claimed, close, Attempt(now, error.code, str(error), 3, 503, error.code))


def unsure(store: Store, ticket: Ticket, claimed: Delivery, now: datetime) -> None:
    """Begin to create what was *claimed*."""
    assert store.take_turn(claimed.target, 100.0, 100, now, ticket=ticket, claimed=claimed, unsure=True) == 0


def delivery_of(store: Store, key: RecordKey = JANE, target: str = "mail") -> Delivery:
    return next(one for one in store.deliveries_of(key) if one.target == target)


def all_pages(page: Callable[[str | None], Page[T]]) -> list[T]:
    items: list[T] = []
    cursor: str | None = None
    while True:
        got = page(cursor)
        items += got.items
        if got.next is None:
            return items
        cursor = got.next


def facts(store: Store, **narrowed: Any) -> list[AuditEntry]:
    return all_pages(lambda cursor: store.audit_page(Filter(**narrowed), cursor, 50))


def in_threads(work: Callable[[int], T], count: int) -> list[T]:
    """Run *work* in *count* threads that start together; return what each gave."""
    results: dict[int, T] = {}
    barrier = threading.Barrier(count)

    def run(number: int) -> None:
        barrier.wait()
        results[number] = work(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[number] for number in range(count)]


def numbered(count: int) -> Iterable[RecordKey]:
    return (RecordKey("crm", str(number)) for number in range(count))


class CutShort(list[str]):
    """Names at which the process is stopped when they are looked through."""

    def __iter__(self) -> Iterator[str]:
        raise KeyboardInterrupt


class StoreContract:
    """Subclasses have a fixture `make_store`: each call opens the same, freshly migrated database once more.

    Its targets are those of `LANES`.
    """

    @pytest.fixture
    def store(self, make_store: MakeStore) -> Store:
        return make_store()

    # --- receiving ---------------------------------------------------------------------------------------

    def test_a_receipt_is_kept_as_it_came(self, store: Store, make_store: MakeStore) -> None:
        sent = inbound("a", "b", body=bytes(range(256)) * 10, secret_index=1, signed_at=NOW - SECOND)
        [received] = store.receive([sent])
        kept = make_store().inbound(received.id)
        assert kept is not None
        assert not received.duplicate
        assert (kept.source, kept.method, kept.url, kept.headers) == (
            sent.source,
            sent.method,
            sent.url,
            sent.headers,
        )
        assert (kept.body, kept.received_at, kept.signed_at) == (sent.body, NOW, NOW - SECOND)
        assert (kept.outcome, kept.events, kept.secret_index, kept.repeats) == (Outcome.ACCEPTED, 2, 1, 0)
        assert kept.processed_at is None

    def test_nothing_to_receive(self, store: Store) -> None:
        assert store.receive([]) == []

    def test_an_event_seen_before_is_a_duplicate(self, store: Store) -> None:
        [first] = store.receive([inbound("a")])
        [again] = store.receive([inbound("a", body=b'{"attempt": 2}')])
        assert again == Received(first.id, duplicate=True)
        kept = store.inbound(first.id)
        assert kept is not None
        assert kept.repeats == 1
        assert len(store.inbound_page(Filter(), None, 10).items) == 1
        assert store.health(NOW).inbound == {"accepted": 1, "duplicate": 1}

    def test_duplicates_are_found_within_one_batch(self, store: Store) -> None:
        first, other, again = store.receive([inbound("a"), inbound("b"), inbound("a")])
        assert not first.duplicate
        assert not other.duplicate
        assert again == Received(first.id, duplicate=True)

    def test_a_request_with_one_new_event_is_kept_whole(self, store: Store) -> None:
        store.receive([inbound("a", "b")])
        [mixed] = store.receive([inbound("b", "c")])
        assert not mixed.duplicate
        [again] = store.receive([inbound("c", "b")])
        assert again == Received(mixed.id, duplicate=True)

    def test_one_event_twice_in_a_request(self, store: Store) -> None:
        [received] = store.receive([inbound("a", "a")])
        assert not received.duplicate

    def test_sources_have_their_own_event_keys(self, store: Store) -> None:
        store.receive([inbound("a")])
        [other] = store.receive([inbound("a", source="shop")])
        assert not other.duplicate

    def test_what_cannot_be_read_is_told_by_its_bytes(self, store: Store) -> None:
        broken = {"outcome": Outcome.UNREADABLE, "reason": "It is no JSON."}
        [first, other] = store.receive([inbound(body=b"<a>", **broken), inbound(body=b"<b>", **broken)])
        [again] = store.receive([inbound(body=b"<a>", **broken)])
        assert not other.duplicate
        assert again == Received(first.id, duplicate=True)
        kept = store.inbound(first.id)
        assert kept is not None
        assert (kept.outcome, kept.reason, kept.events) == (Outcome.UNREADABLE, "It is no JSON.", 0)
        assert store.work("crm", NOW, 10).inbounds == []

    def test_a_key_with_text_that_is_no_unicode(self, store: Store) -> None:
        [received] = store.receive([inbound("\ud800 \x00")])
        assert store.receive([inbound("\ud800 \x00")]) == [Received(received.id, duplicate=True)]

    def test_receipts_of_many_threads_are_all_kept_once(self, make_store: MakeStore) -> None:
        stores = [make_store(), make_store()]
        got = in_threads(lambda number: [stores[number % 2].receive([inbound(f"{n}")])[0] for n in range(10)], 4)
        new = [one for received in got for one in received if not one.duplicate]
        assert len(new) == 10
        assert {one.id for received in got for one in received} == {one.id for one in new}

    def test_refusals_are_counted_and_the_last_200_kept(self, store: Store) -> None:
        store.refuse([Refusal("crm", NOW + n * SECOND, f"no. {n}", n) for n in range(150)])
        store.refuse([Refusal("crm", NOW + n * SECOND, f"no. {n}", n) for n in range(150, 450)])
        store.refuse([Refusal("shop", NOW, "The signature is missing.")])
        kept = store.refusals("crm")
        assert [one.size_bytes for one in kept] == list(range(449, 249, -1))
        assert kept[0] == Refusal("crm", NOW + 449 * SECOND, "no. 449", 449)
        crm, shop = store.health(NOW).sources
        assert (crm.source, crm.refused, crm.last_refused_at) == ("crm", 450, NOW + 449 * SECOND)
        assert (shop.refused, shop.last_inbound_at) == (1, None)
        assert store.health(NOW).inbound == {"refused": 451}

    # --- lanes -------------------------------------------------------------------------------------------

    def test_the_newer_ticket_wins_and_nothing_of_the_older_is_saved(self, store: Store) -> None:
        commit(store, want())
        old_process = store.acquire(PROCESS, "a", NOW)
        old_mail = store.acquire(MAIL, "a", NOW)
        claimed = claim(store, old_mail)
        new_process = store.acquire(PROCESS, "b", NOW)
        new_mail = store.acquire(MAIL, "b", NOW)
        assert new_process.fence > old_process.fence
        with pytest.raises(LostLane):
            store.commit(old_process, Decision(contacts=[contact(JOHN)], wants=[want(JOHN)], audit=[fact()]), NOW)
        with pytest.raises(LostLane):
            store.claim(old_mail, NOW)
        with pytest.raises(LostLane):
            store.link(old_mail, claimed, "T1")
        with pytest.raises(LostLane):
            unsure(store, old_mail, claimed, NOW)
        with pytest.raises(LostLane):
            push(store, old_mail, claimed, "T1")
        assert store.contacts([JOHN]) == {}
        assert store.deliveries_of(JOHN) == []
        assert facts(store) == []
        kept = delivery_of(store)
        assert (kept.state, kept.target_id, kept.unsure_since) == (State.PENDING, None, None)
        assert claim(store, new_mail).key == JANE

    def test_what_the_last_runner_was_sending_is_due_again(self, store: Store) -> None:
        commit(store, want())
        ticket = store.acquire(MAIL, "a", NOW)
        claimed = claim(store, ticket)
        unsure(store, ticket, claimed, NOW + SECOND)
        later = NOW + MINUTE
        store.acquire(MAIL, "b", later)
        taken_up = delivery_of(store)
        assert (taken_up.state, taken_up.due_at) == (State.PENDING, later)
        assert taken_up.unsure_since == NOW + SECOND
        assert "stopped in the middle" in taken_up.reason

    def test_a_lane_takes_up_its_own_only(self, store: Store) -> None:
        keys = list(numbered(20))
        commit(store, *(want(key, "sms") for key in keys))
        tickets = [store.acquire(deliver_lane("sms", number), "a", NOW) for number in range(2)]
        claimed = [claim(store, ticket) for ticket in tickets]
        store.acquire(deliver_lane("sms", 0), "b", NOW)
        states = [delivery_of(store, one.key, "sms").state for one in claimed]
        assert states == [State.PENDING, State.SENDING]

    def test_due_lanes_say_who_has_work_and_from_when(self, store: Store) -> None:
        assert store.due_lanes(NOW) == {}
        store.receive([inbound("a")])
        due = commit(store, want(), want(JOHN, "sms"))
        sms = deliver_lane("sms", slot_of(JOHN) % 2)
        assert due == {MAIL: NOW, sms: NOW}
        assert store.due_lanes(NOW + SECOND).keys() == {PROCESS, MAIL, sms}
        assert all(moment <= NOW + SECOND for moment in store.due_lanes(NOW + SECOND).values())

    def test_a_later_moment_of_a_lane_is_told(self, store: Store) -> None:
        read_due = NOW + 5 * MINUTE
        due = commit(store, contacts=[replace(contact(JANE), read_due=read_due)])
        assert due == {PROCESS: read_due}
        commit(store, want(JOHN))
        ticket = store.acquire(MAIL, "a", NOW)
        again_at = retry(store, ticket, claim(store, ticket)).due_at
        assert again_at is not None
        assert again_at > NOW
        assert store.due_lanes(NOW) == {PROCESS: read_due, MAIL: again_at}
        assert store.next_due(MAIL) == again_at
        assert store.next_due(deliver_lane("sms", 1)) is None

    # --- processing --------------------------------------------------------------------------------------

    def test_work_is_handed_out_oldest_first(self, store: Store) -> None:
        ids = [received.id for received in store.receive([inbound(f"{n}") for n in range(5)])]
        store.receive([inbound("x", source="shop")])
        work = store.work("crm", NOW, 3)
        assert [one.id for one in work.inbounds] == ids[:3]
        assert work.more
        assert work.inbounds[0].body == b"{}"
        results = [InboundResult(one.id, Outcome.PROCESSED, "Spoke of 1 contact.") for one in work.inbounds]
        commit(store, results=results, now=NOW + SECOND)
        rest = store.work("crm", NOW, 3)
        assert [one.id for one in rest.inbounds] == ids[3:]
        assert not rest.more
        done = store.inbound(ids[0])
        assert done is not None
        assert (done.outcome, done.reason, done.processed_at) == (
            Outcome.PROCESSED,
            "Spoke of 1 contact.",
            NOW + SECOND,
        )

    def test_big_requests_are_handed_out_few_at_a_time(self, store: Store) -> None:
        store.receive([inbound(f"{n}", body=b"x" * 4_000_000) for n in range(12)])
        work = store.work("crm", NOW, 100)
        assert 0 < len(work.inbounds) < 12
        assert work.more

    def test_the_first_account_is_remembered(self, store: Store) -> None:
        assert store.work("crm", NOW, 1).account is None
        commit(store, account="portal-1")
        commit(store, account="portal-2")
        assert store.work("crm", NOW, 1).account == "portal-1"
        assert store.health(NOW).sources[0].account == "portal-1"

    def test_a_contact_comes_back_as_it_went(self, store: Store) -> None:
        old, new = Version(NOW, "e1"), Version(NOW + SECOND, "e2")
        whole = Contact(
            key=RecordKey("crm", "Ünï/ 7"),
            fields={
                "email": FieldState("jane@example.com", new, "jane@example.com", new),
                "phone": FieldState(None, new, "+442071838750", old),
                "tags": FieldState(["a", "b"], old, ["a", "b"], old),
                "odd": FieldState({"n": 1.5, "ok": True, "text": "\x00\ud800"}, old),
            },
            created=old,
            deleted=new,
            merged_into="9",
            merged=new,
            inherits=("3",),
            absorbed=("3", "4"),
            account="portal-1",
            thin=True,
            read_at=NOW,
            read_due=NOW + MINUTE,
            read_tries=2,
            read_note="The CRM did not answer.",
        )
        bare = Contact(JANE, erased=new)
        commit(store, contacts=[whole, bare])
        assert store.contacts([whole.key, JANE, JOHN]) == {whole.key: whole, JANE: bare}
        changed = replace(whole, thin=False, read_due=None)
        commit(store, contacts=[changed])
        assert store.contacts([whole.key]) == {whole.key: changed}
        assert store.contacts([]) == {}

    def test_contacts_due_to_be_read_are_work(self, store: Store) -> None:
        commit(store, contacts=[replace(contact(JANE), read_due=NOW + MINUTE), contact(JOHN)])
        assert store.work("crm", NOW, 10).keys == []
        assert list(store.work("crm", NOW + MINUTE, 10).keys) == [JANE]
        commit(store, contacts=[contact(JANE)], decided=[JANE])
        assert store.work("crm", NOW + MINUTE, 10).keys == []

    def test_a_contact_that_could_not_be_read_is_not_due_for_ever(self, store: Store) -> None:
        commit(store, contacts=[replace(contact(key), read_due=NOW) for key in (JANE, JOHN)])
        work = store.work("crm", NOW, 10)
        again = replace(contact(JOHN), read_due=NOW + MINUTE)
        commit(store, contacts=[again], decided=work.keys)
        assert store.work("crm", NOW, 10).keys == []
        assert store.due_lanes(NOW) == {PROCESS: NOW + MINUTE}
        assert store.contacts([JOHN]) == {JOHN: again}

    def test_a_want_becomes_a_delivery(self, store: Store) -> None:
        desired = Desired({"email": "a@b.c", "n": 1}, {"n": Mode.IF_BLANK}, create=False)
        commit(store, Want("mail", JANE, desired, dropped={"phone": "It is no phone number."}))
        [delivery] = store.deliveries_of(JANE)
        assert delivery.desired == desired
        assert (delivery.target, delivery.key, delivery.state) == ("mail", JANE, State.PENDING)
        assert (delivery.revision, delivery.due_at, delivery.updated_at) == (1, NOW, NOW)
        assert delivery.left_out == {"phone": "It is no phone number."}

    def test_nothing_is_written_for_a_want_that_is_met(self, store: Store) -> None:
        commit(store, want())
        before = delivery_of(store)
        assert commit(store, want(), now=NOW + MINUTE) == {}
        assert delivery_of(store) == before

    def test_a_decision_is_saved_whole_or_not_at_all(self, store: Store) -> None:
        [received] = store.receive([inbound("a")])
        no_json: Any = object()
        unfit = replace(want(JOHN), desired=Desired({"email": no_json}))
        with pytest.raises(TypeError):
            commit(
                store,
                want(),
                unfit,
                results=[InboundResult(received.id, Outcome.PROCESSED)],
                audit=[fact()],
            )
        assert store.contacts([JANE, JOHN]) == {}
        assert store.deliveries_of(JANE) == []
        assert facts(store) == []
        assert len(store.work("crm", NOW, 10).inbounds) == 1

    def test_a_survivor_takes_over_the_losers_link(self, store: Store) -> None:
        commit(store, want())
        ticket = store.acquire(MAIL, "a", NOW)
        push(store, ticket, claim(store, ticket), "T1")
        heir = replace(want(JOHN, email="1@example.com"), inherit_from=("nobody", "1"))
        commit(store, heir, Want("mail", JANE, None, "Merged into another contact."), now=NOW + SECOND)
        loser, survivor = delivery_of(store, JANE), delivery_of(store, JOHN)
        assert (loser.target_id, loser.accepted, loser.state) == (None, None, State.WAITING)
        # The target holds already what the survivor should have there: no call is needed.
        assert (survivor.target_id, survivor.accepted) == ("T1", {"email": "1@example.com"})
        assert survivor.state is State.SYNCED

    def test_a_survivor_with_a_link_keeps_its_own(self, store: Store) -> None:
        commit(store, want(), want(JOHN))
        ticket = store.acquire(MAIL, "a", NOW)
        for _ in range(2):
            claimed = claim(store, ticket)
            push(store, ticket, claimed, f"T{claimed.key.source_id}")
        commit(store, replace(want(JOHN, email="new@example.com"), inherit_from=("1",)))
        assert delivery_of(store, JANE).target_id == "T1"
        assert delivery_of(store, JOHN).target_id == "T2"

    def test_an_opt_out_goes_with_the_link(self, store: Store) -> None:
        commit(store, want())
        ticket = store.acquire(MAIL, "a", NOW)
        push(store, ticket, claim(store, ticket), "T1", opted_out=True)
        commit(store, replace(want(JOHN), inherit_from=("1",)))
        assert delivery_of(store, JOHN).accepted_opt_out

    # --- delivery ----------------------------------------------------------------------------------------

    def test_a_beat_of_the_future_does_not_outshine_the_living(self, store: Store) -> None:
        store.beat("worker", "a", NOW + 24 * 60 * MINUTE)
        store.beat("worker", "b", NOW)
        assert store.health(NOW).worker_seen_at == NOW

    def test_the_oldest_due_delivery_is_claimed_first(self, store: Store) -> None:
        for number in (3, 1, 2):
            commit(store, want(RecordKey("crm", str(number))), now=NOW + number * SECOND)
        ticket = store.acquire(MAIL, "a", NOW)
        assert store.claim(ticket, NOW) is None
        claimed = [claim(store, ticket, NOW + MINUTE) for _ in range(3)]
        assert [one.key.source_id for one in claimed] == ["1", "2", "3"]
        assert store.claim(ticket, NOW + MINUTE) is None
        assert {one.state for one in claimed} == {State.SENDING}
        # From the claim on, the store holds what is tried as in doubt; the claim tells what was before.
        stored = delivery_of(store, JANE)
        assert stored.attempted == {"email": "1@example.com"}
        assert replace(stored, attempted=None) == claimed[0]

    def test_who_may_be_the_same_is_not_sent_by_two_lanes_at_once(self, store: Store) -> None:
        keys = [next(key for key in numbered(50) if slot_of(key) % 2 == lane) for lane in (0, 1)]
        wants = [want(key, target="sms", phone="+14155550100") for key in keys]
        commit(store, *wants)
        tickets = [store.acquire(deliver_lane("sms", lane), "w", NOW) for lane in (0, 1)]
        first = store.claim(tickets[0], NOW, {"phone"})
        assert first is not None
        assert store.claim(tickets[1], NOW, {"phone"}) is None
        assert store.next_due(tickets[1].lane) == NOW
        push(store, tickets[0], first, "t1")
        second = store.claim(tickets[1], NOW, {"phone"})
        assert second is not None
        assert second.key == keys[1]

    def test_who_is_linked_or_somebody_else_is_not_waited_for(self, store: Store) -> None:
        one, other = (next(key for key in numbered(50) if slot_of(key) % 2 == lane) for lane in (0, 1))
        commit(store, want(one, target="sms", phone="+14155550100"))
        tickets = [store.acquire(deliver_lane("sms", lane), "w", NOW) for lane in (0, 1)]
        assert store.claim(tickets[0], NOW, {"phone"}) is not None
        commit(store, want(other, target="sms", phone="+14155550199"))
        claimed = store.claim(tickets[1], NOW, {"phone"})
        assert claimed is not None
        push(store, tickets[1], claimed, "t2")
        commit(store, want(other, target="sms", phone="+14155550100"))  # linked by now: it is found by its id
        assert store.claim(tickets[1], NOW, {"phone"}) is not None

    def test_every_contact_is_claimed_by_its_own_lane_and_no_other(self, store: Store) -> None:
        keys = list(numbered(40))
        commit(store, *(want(key, "sms") for key in keys))
        for number in range(2):
            ticket = store.acquire(deliver_lane("sms", number), "a", NOW)
            claimed = {claim(store, ticket).key for key in keys if slot_of(key) % 2 == number}
            assert claimed == {key for key in keys if slot_of(key) % 2 == number}
            assert store.claim(ticket, NOW) is None

    def test_whose_lane_was_taken_over_gets_no_turn(self, store: Store) -> None:
        commit(store, want())
        ticket = store.acquire(MAIL, "a", NOW)
        claimed = claim(store, ticket)
        store.acquire(MAIL, "b", NOW)
        with pytest.raises(LostLane):
            store.take_turn("mail", 1.0, 1, NOW, ticket=ticket, claimed=claimed)
        assert store.take_turn("mail", 1.0, 1, NOW) == 0  # nothing was taken

    def test_new_state_while_one_is_sent_makes_it_due_again(self, store: Store) -> None:
        commit(store, want())
        ticket = store.acquire(MAIL, "a", NOW)
        claimed = claim(store, ticket)
        assert store.take_turn("mail", 1.0, 10, NOW, ticket=ticket, claimed=claimed) == 0
        assert commit(store, want(email="new@example.com")) == {}
        assert store.claim(ticket, NOW) is None  # one push at a time
        with pytest.raises(Superseded):
            store.take_turn("mail", 1.0, 10, NOW, ticket=ticket, claimed=claimed)
        assert store.take_turn("mail", 1.0, 10, NOW, 9) == 0  # nothing was taken
        finished = push(store, ticket, claimed, "T1")
        assert (finished.state, finished.accepted) == (State.PENDING, {"email": "1@example.com"})
        second = claim(store, ticket)
        assert second.desired == Desired({"email": "new@example.com"})
        assert push(store, ticket, second, "T1").state is State.SYNCED
        assert store.next_due(MAIL) is None

    def test_a_push_ends_as_a_fact_with_what_was_said(self, store: Store) -> None:
        commit(store, want())
        ticket = store.acquire(MAIL, "a", NOW)
        retry(store, ticket, claim(store, ticket))
        due = store.next_due(MAIL)
        assert due is not None
        call = Exchange("POST", "https://platform.example/contacts", 200, 12, '{"email":"…"}', '{"id":"T1"}')
        finished = push(store, ticket, claim(store, ticket, due), "T1", now=due, exchanges=[call])
        assert finished == delivery_of(store)
        assert (finished.state, finished.target_id, finished.attempts) == (State.SYNCED, "T1", 0)
        second, first = facts(store, kind="delivery")
        assert (first.outcome, first.error, first.status, first.attempt) == ("unavailable", "unavailable", 503, 1)
        assert (second.outcome, second.attempt, second.duration_ms, second.fields) == (
            "created",
            2,
            12,
            ("email",),
        )
        assert (second.source, second.source_id, second.target, second.at) == ("crm", "1", "mail", due)
        assert first.detail is None
        [kept] = second.detail["exchanges"]
        assert Exchange(**kept) == call

    def test_a_push_without_an_attempt_leaves_no_fact(self, store: Store) -> None:
        commit(store, want())
        ticket = store.acquire(MAIL, "a", NOW)
        claimed = claim(store, ticket)
        finished = store.finish(
            ticket, claimed, lambda row: schedule.superseded(row or claimed, held=OPEN, now=NOW), None
        )
        assert finished.state is State.PENDING
        assert facts(store) == []

    def test_one_target_contact_has_one_contact_of_a_source(self, store: Store) -> None:
        other = RecordKey("shop", "1")
        commit(store, want(), want(JOHN), want(other))
        ticket = store.acquire(MAIL, "a", NOW)
        claimed = {one.key: one for one in (claim(store, ticket) for _ in range(3))}
        store.link(ticket, claimed[JANE], "T1")
        store.link(ticket, claimed[JANE], "T1")
        store.link(ticket, claimed[other], "T1")  # another source may know the same person
        with pytest.raises(Ambiguous, match="belongs to the crm contact 1 already"):
            store.link(ticket, claimed[JOHN], "T1")
        assert delivery_of(store, JANE).target_id == "T1"
        assert delivery_of(store, JOHN).target_id is None

    def test_a_removed_contact_frees_its_target_contact(self, store: Store) -> None:
        commit(store, want(), want(JOHN))
        ticket = store.acquire(MAIL, "a", NOW)
        first, second = claim(store, ticket), claim(store, ticket)
        store.link(ticket, first, "T1")
        store.finish(ticket, first, lambda row: replace(row or first, state=State.REMOVED, updated_at=NOW), None)
        store.link(ticket, second, "T1")
        push(store, ticket, second, "T1")
        # The first one comes back: what it was linked to is another's by now.
        commit(store, want(JANE, email="back@example.com"))
        assert delivery_of(store, JANE).target_id is None
        assert delivery_of(store, JOHN).target_id == "T1"

    def test_a_create_that_gives_anothers_id_is_ambiguous(self, store: Store) -> None:
        commit(store, want(), want(JOHN))
        ticket = store.acquire(MAIL, "a", NOW)
        push(store, ticket, claim(store, ticket), "T1")
        finished = push(store, ticket, claim(store, ticket), "T1")
        assert (finished.state, finished.target_id, finished.error) == (State.AMBIGUOUS, None, "ambiguous")
        assert "contact 1 already" in finished.reason
        assert finished == delivery_of(store, JOHN)

    def test_a_merged_contact_that_was_under_way_does_not_take_its_link_back(self, store: Store) -> None:
        commit(store, want())
        ticket = store.acquire(MAIL, "a", NOW)
        push(store, ticket, claim(store, ticket), "T1")
        commit(store, want(email="new@example.com"))
        claimed = claim(store, ticket)
        commit(store, replace(want(JOHN), inherit_from=("1",)), Want("mail", JANE, None, "Merged into 2."))
        assert push(store, ticket, claimed, "T1").target_id is None
        assert delivery_of(store, JANE).state is State.WAITING
        assert delivery_of(store, JOHN).target_id == "T1"

    def test_the_end_of_one_push_claims_the_next(self, store: Store) -> None:
        commit(store, want(), want(JOHN))
        ticket = store.acquire(MAIL, "a", NOW)
        first = claim(store, ticket)
        synced, second = push_and_claim(store, ticket, first)
        assert (synced.key, synced.state) == (first.key, State.SYNCED)
        assert second is not None and second.key != first.key
        assert delivery_of(store, second.key).state is State.SENDING
        synced, none = push_and_claim(store, ticket, second)
        assert (synced.key, synced.state, none) == (second.key, State.SYNCED, None)

    def test_the_end_of_a_push_claims_nothing_at_a_target_that_was_closed(self, store: Store) -> None:
        commit(store, want(), want(JOHN))
        ticket = store.acquire(MAIL, "a", NOW)
        claimed = claim(store, ticket)
        store.pause("mail", "An import runs.", "ann", NOW)
        assert push_and_claim(store, ticket, claimed)[1] is None
        assert sorted(delivery_of(store, key).state for key in (JANE, JOHN)) == [State.HELD, State.SYNCED]

    def test_the_end_of_a_push_claims_nothing_that_another_lane_may_be_creating(self, store: Store) -> None:
        keys = list(numbered(6))
        commit(store, *(want(key, "sms", phone="+14155550100") for key in keys))
        tickets = [store.acquire(deliver_lane("sms", number), "a", NOW) for number in range(2)]
        first = store.claim(tickets[0], NOW, {"phone"})
        assert first is not None
        _, second = push_and_claim(store, tickets[0], first, apart={"phone"})
        assert second is not None
        assert store.claim(tickets[1], NOW, {"phone"}) is None

    def test_who_lost_the_lane_neither_ends_nor_claims(self, store: Store) -> None:
        commit(store, want(), want(JOHN))
        lost = store.acquire(MAIL, "frozen", NOW)
        claimed = claim(store, lost)
        store.acquire(MAIL, "b", NOW)
        with pytest.raises(LostLane):
            push_and_claim(store, lost, claimed)
        assert {delivery_of(store, key).state for key in (JANE, JOHN)} == {State.PENDING}

    def test_a_create_of_unknown_fate_is_remembered(self, store: Store, make_store: MakeStore) -> None:
        commit(store, want())
        ticket = store.acquire(MAIL, "a", NOW)
        claimed = claim(store, ticket)
        unsure(store, ticket, claimed, NOW + SECOND)
        assert delivery_of(make_store()).unsure_since == NOW + SECOND

    # --- catching up -------------------------------------------------------------------------------------

    def test_what_came_live_is_sent_before_what_a_list_told(self, store: Store) -> None:
        keys = list(numbered(4))
        commit(store, *(replace(want(key), low=True) for key in keys))
        assert delivery_of(store, keys[0]).low
        live = RecordKey("crm", "live")
        commit(store, want(live), now=NOW + SECOND)
        commit(store, want(keys[2], email="new@example.com"), now=NOW + SECOND)  # live news of one of them
        ticket = store.acquire(MAIL, "a", NOW + SECOND)
        order = []
        claimed = store.claim(ticket, NOW + SECOND)
        while claimed is not None:
            order.append(claimed.key)
            claimed = push_and_claim(store, ticket, claimed, now=NOW + SECOND)[1]
        assert set(order[:2]) == {live, keys[2]}
        assert set(order[2:]) == {keys[0], keys[1], keys[3]}
        assert not delivery_of(store, keys[0]).low

    def test_what_waits_live_does_not_fall_behind_by_what_a_list_tells(self, store: Store) -> None:
        commit(store, want())
        commit(store, replace(want(email="listed@example.com"), low=True))
        assert not delivery_of(store).low

    def test_an_opt_out_that_a_list_tells_waits_for_nothing(self, store: Store) -> None:
        commit(store, replace(want(), desired=Desired(opt_out=True, create=False), low=True))
        assert not delivery_of(store).low

    def test_one_run_of_a_kind_is_under_way_at_a_time(self, store: Store) -> None:
        first = catch_up("1")
        assert store.catch_up("crm", BACKFILL) is None
        assert store.start_catch_up(first)
        assert store.catch_up("crm", BACKFILL) == first
        assert not store.start_catch_up(catch_up("2"))
        assert store.start_catch_up(catch_up("3", kind=RECONCILE, due_at=None))
        assert [one.run for one in store.catch_ups()] == ["1", "3"]
        assert store.due_lanes(NOW) == {PROCESS: NOW}
        assert store.catch_up_due("crm", NOW) == first
        assert store.catch_up_due("crm", NOW - SECOND) is None
        assert store.change_catch_up(replace(first, state=Progress.STOPPED, due_at=None), NOW)
        assert store.catch_up_due("crm", NOW) is None
        assert store.start_catch_up(catch_up("2"))

    def test_a_page_and_its_place_are_saved_together(self, store: Store) -> None:
        begun = catch_up("1")
        store.start_catch_up(begun)
        old = store.acquire(PROCESS, "a", NOW)
        ticket = store.acquire(PROCESS, "b", NOW)
        further = replace(begun, after="page 2", seen=100, effects={"mail": {"create": 7}}, total=900)
        with pytest.raises(LostLane):
            store.commit(old, Decision(contacts=[contact(JANE)], catch_up=further), NOW)
        assert store.catch_up("crm", BACKFILL) == begun
        store.commit(ticket, Decision(contacts=[contact(JANE)], catch_up=further), NOW)
        assert store.catch_up("crm", BACKFILL) == further

    def test_what_a_person_stopped_is_not_gone_on_with(self, store: Store) -> None:
        begun = catch_up("1")
        store.start_catch_up(begun)
        ticket = store.acquire(PROCESS, "a", NOW)
        stopped = replace(begun, state=Progress.STOPPED, due_at=None)
        assert store.change_catch_up(stopped, NOW)
        store.commit(ticket, Decision(catch_up=replace(begun, after="page 2")), NOW)
        assert store.catch_up("crm", BACKFILL) == stopped
        assert not store.change_catch_up(catch_up("another"), NOW)
        ended = replace(begun, state=Progress.DONE, due_at=None)
        store.change_catch_up(replace(begun, state=Progress.RUNNING), NOW)
        store.commit(ticket, Decision(catch_up=ended), NOW)
        assert not store.change_catch_up(stopped, NOW), "what is done cannot be stopped"

    def test_the_deliveries_of_many_contacts(self, store: Store) -> None:
        commit(store, want(), want(target="sms"), want(JOHN))
        found = store.deliveries_for([JANE, JOHN, RecordKey("crm", "nobody")])
        assert set(found) == {("mail", JANE), ("sms", JANE), ("mail", JOHN)}
        assert found["mail", JOHN] == delivery_of(store, JOHN)
        assert store.deliveries_for([]) == {}

    # --- quota -------------------------------------------------------------------------------------------

    def test_turns_are_taken_as_the_rate_allows(self, store: Store) -> None:
        waits = [store.take_turn("mail", 2.0, 3, NOW) for _ in range(4)]
        assert waits == [0, 0, 0, 0.5]
        assert store.take_turn("mail", 2.0, 3, NOW + SECOND / 4) == 0.25
        assert store.take_turn("mail", 2.0, 3, NOW + SECOND / 2) == 0
        assert store.take_turn("sms", 2.0, 3, NOW) == 0
        assert store.take_turn("mail", 2.0, 3, NOW + MINUTE, count=3) == 0
        assert store.take_turn("mail", 2.0, 3, NOW + MINUTE) == 0.5

    def test_more_turns_than_the_bucket_holds_go_on_credit(self, store: Store) -> None:
        assert store.take_turn("mail", 1.0, 2, NOW, count=5) == 0
        assert store.take_turn("mail", 1.0, 2, NOW) == 4.0

    def test_time_does_not_run_backwards_for_the_quota(self, store: Store) -> None:
        assert [store.take_turn("mail", 1.0, 2, NOW) for _ in range(2)] == [0, 0]
        assert store.take_turn("mail", 1.0, 2, NOW - SECOND) > 0
        assert store.take_turn("mail", 1.0, 2, NOW + SECOND) == 0
        assert store.take_turn("mail", 1.0, 2, NOW + SECOND) == 1.0

    def test_a_clock_that_was_ahead_starves_nobody_once_it_is_right(self, store: Store) -> None:
        tomorrow = NOW + timedelta(days=1)
        assert [store.take_turn("mail", 1.0, 2, tomorrow) for _ in range(2)] == [0, 0]
        store.set_backoff("mail", tomorrow + MINUTE)
        assert store.take_turn("mail", 1.0, 2, NOW) == 1.0
        assert store.take_turn("mail", 1.0, 2, NOW + SECOND) == 0
        store.set_backoff("mail", NOW + 10 * SECOND)
        assert store.take_turn("mail", 1.0, 2, NOW + 2 * SECOND) == 8.0

    def test_nobody_takes_a_turn_while_the_target_asks_for_less(self, store: Store) -> None:
        store.set_backoff("mail", NOW + 10 * SECOND)
        store.set_backoff("mail", NOW + 5 * SECOND)  # the longer one counts
        assert store.take_turn("mail", 5.0, 5, NOW) == 10.0
        assert store.take_turn("mail", 5.0, 5, NOW + 10 * SECOND) == 0

    def test_many_takers_together_get_no_more_than_there_is(self, make_store: MakeStore) -> None:
        stores = [make_store(), make_store()]
        got = in_threads(lambda number: [stores[number % 2].take_turn("mail", 1.0, 10, NOW) for _ in range(8)], 4)
        assert sum(wait == 0 for waits in got for wait in waits) == 10

    # --- targets -----------------------------------------------------------------------------------------

    def test_a_held_target_sends_nothing_until_it_is_resumed(self, store: Store) -> None:
        commit(store, want(), want(JOHN, "sms"))
        ticket = store.acquire(MAIL, "a", NOW)
        probe_at = NOW + MINUTE
        store.hold("mail", "The key is refused.", NOW, probe_at)
        assert store.target_status("mail") == TargetStatus(
            "mail", "held", "The key is refused.", NOW, probe_at=probe_at
        )
        held = delivery_of(store)
        assert held.state is State.HELD
        assert "The key is refused." in held.reason
        assert delivery_of(store, JOHN, "sms").state is State.PENDING
        assert store.claim(ticket, NOW) is None
        assert store.next_due(MAIL) is None
        assert MAIL not in store.due_lanes(NOW)
        commit(store, want(RecordKey("crm", "3")))
        assert delivery_of(store, RecordKey("crm", "3")).state is State.HELD
        later = NOW + MINUTE
        store.resume("mail", "ann", later)
        assert store.target_status("mail") == TargetStatus("mail", "open", since=later, by="ann")
        assert (delivery_of(store).state, delivery_of(store).due_at) == (State.PENDING, later)
        assert {claim(store, ticket, later).key.source_id for _ in range(2)} == {"1", "3"}
        opened, closed = facts(store, kind="target")
        assert (closed.outcome, closed.target, closed.reason) == ("held", "mail", "The key is refused.")
        assert (opened.outcome, opened.at) == ("open", later)
        assert "ann" in opened.reason

    def test_what_bridge_holds_again_is_no_news(self, store: Store) -> None:
        store.hold("mail", "The key is refused.", NOW, NOW + MINUTE)
        store.hold("mail", "The key is refused.", NOW + MINUTE, NOW + 3 * MINUTE)
        status = store.target_status("mail")
        assert (status.since, status.probe_at) == (NOW, NOW + 3 * MINUTE)
        assert len(facts(store, kind="target")) == 1

    def test_a_person_has_the_last_word(self, store: Store) -> None:
        commit(store, want())
        store.hold("mail", "The key is refused.", NOW, NOW + MINUTE)
        store.pause("mail", "moving house", "ann", NOW + SECOND)
        store.hold("mail", "The key is refused.", NOW + MINUTE, NOW + 2 * MINUTE)
        status = store.target_status("mail")
        assert (status.mode, status.reason, status.by) == ("paused", "moving house", "ann")
        assert "moving house" in delivery_of(store).reason
        store.resume("mail", "bob", NOW + MINUTE)
        store.resume("mail", "bob", NOW + MINUTE)
        assert [entry.outcome for entry in facts(store, kind="target")] == ["open", "paused", "held"]

    def test_a_push_that_ends_after_the_pause_is_held(self, store: Store) -> None:
        commit(store, want())
        ticket = store.acquire(MAIL, "a", NOW)
        claimed = claim(store, ticket)
        store.pause("mail", "", "ann", NOW)
        assert delivery_of(store).state is State.SENDING
        assert retry(store, ticket, claimed).state is State.HELD
        store.resume("mail", "ann", NOW)
        assert claim(store, ticket).key == JANE

    def test_what_was_sent_when_a_target_was_paused_is_held_by_the_next_runner(self, store: Store) -> None:
        commit(store, want())
        claim(store, store.acquire(MAIL, "a", NOW))
        store.pause("mail", "", "ann", NOW)
        store.acquire(MAIL, "b", NOW)
        assert delivery_of(store).state is State.HELD

    def test_a_push_that_ends_after_the_resumption_is_not_held(self, store: Store) -> None:
        commit(store, want())
        ticket = store.acquire(MAIL, "a", NOW)
        claimed = claim(store, ticket)
        closed = TargetStatus("mail", "held", "The key is refused.")
        finished = store.finish(
            ticket, claimed, lambda row: schedule.superseded(row or claimed, held=closed, now=NOW), None
        )
        assert (finished.state, finished.due_at) == (State.PENDING, NOW)

    def test_refusals_in_a_row_are_counted(self, store: Store) -> None:
        assert [store.note_refusal("mail", NOW) for _ in range(3)] == [1, 2, 3]
        assert store.target_status("mail").refusals == 3
        commit(store, want(), want(target="sms"))
        sms = store.acquire(deliver_lane("sms", slot_of(JANE) % 2), "a", NOW)
        push(store, sms, claim(store, sms), "S1")
        assert store.target_status("mail").refusals == 3
        mail = store.acquire(MAIL, "a", NOW)
        retry(store, mail, claim(store, mail))
        assert store.target_status("mail").refusals == 3
        again = store.claim(mail, NOW + MINUTE)
        assert again is not None
        push(store, mail, again, "T1")
        assert store.target_status("mail").refusals == 0
        assert store.note_refusal("mail", NOW) == 1

    def test_who_lost_the_lane_says_nothing_of_its_target(self, store: Store) -> None:
        lost, ticket = store.acquire(MAIL, "frozen", NOW), store.acquire(MAIL, "w2", NOW)
        assert store.note_refusal("mail", NOW, ticket) == 1
        for verb in (
            lambda: store.note_refusal("mail", NOW, lost),
            lambda: store.set_backoff("mail", NOW + MINUTE, lost),
        ):
            with pytest.raises(LostLane):
                verb()
        assert store.target_status("mail").refusals == 1
        assert store.take_turn("mail", 1, 1, NOW) == 0

    # --- replay ------------------------------------------------------------------------------------------

    def test_contacts_are_decided_again_when_asked_for(self, store: Store) -> None:
        commit(store, want(), want(JOHN))
        assert store.replay(NOW, "ann", keys=[JANE, JANE, RecordKey("crm", "unknown")]) == 1
        assert store.due_lanes(NOW)[PROCESS] == NOW
        work = store.work("crm", NOW, 10)
        assert (list(work.keys), work.replays, work.more) == ([JANE], frozenset({JANE}), False)
        [entry] = facts(store, kind="replay")
        assert (entry.source, entry.source_id) == ("crm", "1")
        assert "ann" in entry.reason
        commit(store, replace(want(), again=True), decided=work.keys)
        assert store.work("crm", NOW, 10).keys == []

    def test_a_replay_of_many_is_narrowed_by_their_deliveries(self, store: Store) -> None:
        keys = list(numbered(6))
        commit(store, *(want(key) for key in keys), want(keys[5], "sms"))
        ticket = store.acquire(MAIL, "a", NOW)
        for _ in range(2):
            claimed = claim(store, ticket)
            push(store, ticket, claimed, f"T{claimed.key.source_id}")
        assert store.replay(NOW, "ann", narrowed=Filter(target="mail", state="synced")) == 2
        assert store.replay(NOW, "ann", narrowed=Filter(target="mail", state="failed")) == 0
        assert store.replay(NOW, "ann", narrowed=Filter(target="sms")) == 1
        work = store.work("crm", NOW, 2)
        assert (len(work.keys), work.more) == (2, True)
        assert len(store.work("crm", NOW, 10).keys) == 3
        assert len(facts(store, kind="replay")) == 2
        assert store.replay(NOW, "ann") == 0

    def test_stored_requests_are_processed_again(self, store: Store) -> None:
        ids = [one.id for one in store.receive([inbound("a"), inbound("b"), inbound("c")])]
        commit(store, results=[InboundResult(one, Outcome.UNREADABLE, "A bug.") for one in ids])
        commit(store, results=[InboundResult(ids[2], Outcome.UNREADABLE, forget=True)])
        assert store.replay_inbound(NOW, "ann", [ids[1], ids[2], 12345]) == 1
        assert [one.id for one in store.work("crm", NOW, 10).inbounds] == [ids[1]]
        [entry] = facts(store, kind="replay")
        assert (entry.inbound_id, entry.source) == (ids[1], "crm")

    def test_what_the_crm_calls_an_event_stands_with_all_that_is_about_it(self, store: Store) -> None:
        ids = [one.id for one in store.receive([inbound("a"), inbound("b"), inbound("c")])]
        odd = ("<b>contact</b>, x", "contact.löschung", '"')
        named = [("contact.propertyChange", "contact.creation"), odd, ()]
        results = [
            InboundResult(one, Outcome.PROCESSED, event_types=types) for one, types in zip(ids, named, strict=True)
        ]
        assert all(one.event_types == () for one in store.work("crm", NOW, 10).inbounds)
        commit(
            store, results=results, audit=[*(fact(inbound_id=one) for one in ids), fact(), fact(inbound_id=999)]
        )
        assert [one.event_types for one in store.inbound_page(Filter(), None, 5).items] == named[::-1]
        entries = sorted(facts(store), key=lambda one: one.id or 0)
        assert [one.event_types for one in entries] == [*named, (), ()]
        assert (store.audit_entry(entries[1].id or 0) or fact()).event_types == odd
        store.replay_inbound(NOW, "ann", [ids[0]])
        assert store.work("crm", NOW, 10).inbounds[0].event_types == named[0]

    # --- reading -----------------------------------------------------------------------------------------

    def test_lists_are_paged_without_gaps_or_repeats(self, store: Store) -> None:
        ids = [received.id for received in store.receive([inbound(f"{n}") for n in range(25)])]
        commit(store, *(want(key) for key in numbered(25)), audit=[fact(key) for key in numbered(25)])
        assert [one.id for one in all_pages(lambda at: store.inbound_page(Filter(), at, 7))] == ids[::-1]
        people = [one.key.source_id for one in all_pages(lambda at: store.contact_page(Filter(), at, 7))]
        assert sorted(people, key=int) == [str(n) for n in range(25)]
        sent = [one.key.source_id for one in all_pages(lambda at: store.delivery_page(Filter(), at, 7))]
        assert sorted(sent, key=int) == [str(n) for n in range(25)]
        told = [one.source_id for one in all_pages(lambda at: store.audit_page(Filter(), at, 7))]
        assert told == [str(n) for n in range(24, -1, -1)]

    def test_a_full_last_page_has_no_next(self, store: Store) -> None:
        store.receive([inbound(f"{n}") for n in range(4)])
        first = store.inbound_page(Filter(), None, 2)
        assert first.next is not None
        assert store.inbound_page(Filter(), first.next, 2).next is None
        assert store.inbound_page(Filter(source="nobody"), None, 2) == Page([], None)

    def test_cursors_are_safe_in_a_url_and_last_while_rows_come(self, store: Store) -> None:
        ids = [received.id for received in store.receive([inbound(f"{n}") for n in range(4)])]
        first = store.inbound_page(Filter(), None, 2)
        assert first.next is not None
        assert first.next.replace("-", "").replace("_", "").isalnum()
        store.receive([inbound("later", received_at=NOW + SECOND)])
        assert [one.id for one in store.inbound_page(Filter(), first.next, 2).items] == ids[1::-1]

    @pytest.mark.parametrize("cursor", ["", "x", "MTIz", "ümlaut", "2026-03-02T10:11:12.345678Z 1"])
    def test_a_cursor_of_somebody_elses_making_is_refused(self, store: Store, cursor: str) -> None:
        with pytest.raises(ValueError, match="cursor"):
            store.audit_page(Filter(), cursor, 5)

    def test_inbounds_are_narrowed(self, store: Store) -> None:
        first, second, third = store.receive(
            [
                inbound("a"),
                inbound("b", source="shop", received_at=NOW + SECOND),
                inbound(outcome=Outcome.UNREADABLE, reason="It is no JSON.", received_at=NOW + 2 * SECOND),
            ]
        )
        store.receive([inbound("a")])
        commit(
            store,
            contacts=[contact(JANE, email="Jane@Example.com")],
            results=[InboundResult(first.id, Outcome.PROCESSED)],
            audit=[fact(inbound_id=first.id)],
        )

        def ids(**narrowed: Any) -> list[int]:
            return [one.id for one in store.inbound_page(Filter(**narrowed), None, 10).items]

        assert ids() == [third.id, second.id, first.id]
        assert ids(source="shop") == [second.id]
        assert ids(outcome="unreadable") == [third.id]
        assert ids(outcome="duplicate") == [first.id]
        assert ids(since=NOW + SECOND) == [third.id, second.id]
        assert ids(since=NOW, until=NOW + SECOND) == [first.id]
        assert ids(source="crm", source_id="1") == [first.id]
        assert ids(q="jane@example.com") == [first.id]
        assert ids(q="jane", source="shop") == []
        assert ids(q="no json") == []  # a reason is no text of a person's

    def test_contacts_are_found_by_what_is_known_of_them(self, store: Store) -> None:
        jane = contact(JANE, email="Jane.Doe@Example.com", phone="+44 (20) 7183-8750", name="Straße")
        commit(store, contacts=[jane, contact(JOHN, email="john@example.com")])

        def found(q: str, **more: Any) -> list[Contact]:
            return list(store.contact_page(Filter(q=q, **more), None, 10).items)

        for q in ("jane.doe@EXAMPLE.com", " doe ", "442071838750", "020) 7183 8750"[2:], "STRASSE"):
            assert found(q) == [jane], q
        assert len(found("example.com")) == 2
        assert found("100%") == []
        assert found("j_ne") == []
        assert found("example.com", source="shop") == []
        assert store.contact_page(Filter(source="crm", source_id="1"), None, 10).items == [jane]

    def test_deliveries_are_narrowed(self, store: Store) -> None:
        people = [contact(JANE, email="jane@example.com"), contact(JOHN, email="john@example.com")]
        commit(store, want(), want(JOHN), want(JANE, "sms"), contacts=people)
        ticket = store.acquire(MAIL, "a", NOW)
        retry(store, ticket, claim(store, ticket), NOW + SECOND)

        def keys(**narrowed: Any) -> set[tuple[str, str]]:
            page = store.delivery_page(Filter(**narrowed), None, 10)
            return {(one.target, one.key.source_id) for one in page.items}

        assert keys() == {("mail", "1"), ("mail", "2"), ("sms", "1")}
        assert keys(target="sms") == {("sms", "1")}
        assert keys(state="retrying") == {("mail", "1")}
        assert keys(target="mail", state="pending") == {("mail", "2")}
        assert keys(error="unavailable") == {("mail", "1")}
        assert keys(since=NOW + SECOND) == {("mail", "1")}
        assert keys(until=NOW + SECOND) == {("mail", "2"), ("sms", "1")}
        assert keys(source="crm", source_id="2") == {("mail", "2")}
        assert keys(q="JANE@") == {("mail", "1"), ("sms", "1")}
        assert keys(status=503) == {("mail", "1")}
        assert keys(q="http 503") == set()
        assert [one.target for one in store.deliveries_of(JANE)] == ["mail", "sms"]

    def test_facts_are_narrowed_and_come_with_their_details(self, store: Store) -> None:
        entries = [
            fact(detail={"email": ["old@example.com", "new@example.com"]}, fields=("email",)),
            fact(JOHN, at=NOW + SECOND, inbound_id=7, outcome="created", reason="New in the CRM."),
            AuditEntry(NOW, "delivery", "failed", target="sms", error="invalid", status=422, attempt=2),
        ]
        commit(store, contacts=[contact(JANE, email="new@example.com"), contact(JOHN)], audit=entries)
        stored = facts(store)
        assert [replace(one, id=None) for one in stored] == [entries[1], entries[2], entries[0]]
        assert len({one.id for one in stored}) == 3

        def kinds(**narrowed: Any) -> list[str]:
            return [one.outcome for one in facts(store, **narrowed)]

        assert kinds(source="crm") == ["created", "changed"]
        assert kinds(source="crm", source_id="1") == ["changed"]
        assert kinds(target="sms") == ["failed"]
        assert kinds(kind="contact") == ["created", "changed"]
        assert kinds(outcome="failed") == ["failed"]
        assert kinds(error="invalid") == ["failed"]
        assert kinds(inbound_id=7) == ["created"]
        assert kinds(since=NOW + SECOND) == ["created"]
        assert kinds(until=NOW + SECOND) == ["failed", "changed"]
        assert kinds(q="new@example") == ["changed"]
        assert kinds(q="new in the crm") == []
        assert kinds(status=422) == ["failed"]
        assert kinds(field="email") == ["changed"]
        assert kinds(field="mail") == []

    def test_health_is_of_the_rows_as_they_are(self, store: Store) -> None:
        empty = store.health(NOW)
        assert (empty.worker_seen_at, empty.oldest_unprocessed_at, empty.oldest_due_at) == (None, None, None)
        assert [one.target for one in empty.targets] == ["mail", "sms"]
        store.beat("worker", "a", NOW - MINUTE)
        store.beat("worker", "b", NOW - SECOND)
        store.beat("web", "c", NOW)
        store.receive([inbound("a"), inbound("b", received_at=NOW + SECOND)])
        commit(store, want(), want(JOHN), want(JANE, "sms"))
        ticket = store.acquire(MAIL, "a", NOW)
        push(store, ticket, claim(store, ticket), "T1")
        store.pause("sms", "", "ann", NOW)
        health = store.health(NOW + MINUTE)
        assert health.worker_seen_at == NOW - SECOND
        assert health.oldest_unprocessed_at == NOW
        assert health.oldest_due_at == NOW
        assert health.inbound == {"accepted": 2}
        assert health.deliveries == {("mail", "synced"): 1, ("mail", "pending"): 1, ("sms", "held"): 1}
        [crm] = health.sources
        assert (crm.unprocessed, crm.last_inbound_at) == (2, NOW + SECOND)
        assert {one.target: one.mode for one in health.targets} == {"mail": "open", "sms": "paused"}
        assert store.health(NOW - MINUTE).oldest_due_at is None  # not due yet, then

    # --- erasing and pruning -----------------------------------------------------------------------------

    def test_an_erased_person_leaves_facts_and_no_payload(self, store: Store) -> None:
        mine, both, other = store.receive([inbound("a"), inbound("b"), inbound("c", body=b"john")])
        commit(
            store,
            want(),
            want(JOHN),
            contacts=[contact(JANE, email="jane@example.com"), contact(JOHN, email="john@example.com")],
            results=[InboundResult(one.id, Outcome.PROCESSED) for one in (mine, both, other)],
            audit=[
                fact(inbound_id=mine.id, detail="same"),
                fact(inbound_id=both.id),
                fact(JOHN, inbound_id=both.id, detail="same"),
                fact(JOHN, inbound_id=other.id),
            ],
        )
        ticket = store.acquire(MAIL, "a", NOW)
        call = Exchange("POST", "https://platform.example/contacts", 200, 12, "jane@example.com")
        for _ in range(2):
            claimed = claim(store, ticket)
            push(store, ticket, claimed, f"T{claimed.key.source_id}", exchanges=[call])
        before = facts(store)
        erased = Contact(JANE, erased=Version(NOW, "e9"))
        gone = Want("mail", JANE, Desired(gone=True), forget=True)
        commit(store, gone, contacts=[erased], erased=[JANE], audit=[fact(detail="nothing of this is kept")])

        after = facts(store)
        assert [replace(one, detail=None) for one in after[1:]] == [replace(one, detail=None) for one in before]
        assert {one.detail for one in after if one.source_id == "1"} == {None}
        assert len([one for one in after if one.source_id == "2" and one.detail]) == 2
        bodies = {one.id: one.body for one in store.inbound_page(Filter(), None, 10).items}
        assert bodies == {mine.id: None, both.id: None, other.id: b"john"}
        delivery = delivery_of(store)
        assert (delivery.state, delivery.target_id, delivery.accepted) == (State.PENDING, "T1", None)
        assert store.contact_page(Filter(q="jane"), None, 10).items == []

    def test_a_delivery_without_a_route_is_wiped_as_well(self, store: Store) -> None:
        commit(store, want(), want(JANE, "sms"))
        lane = deliver_lane("sms", slot_of(JANE) % 2)
        theirs = store.acquire(lane, "a", NOW)
        sending = claim(store, theirs)
        commit(store, contacts=[Contact(JANE, erased=Version(NOW, "e9"))], erased=[JANE])
        at_rest = delivery_of(store)
        assert (at_rest.state, at_rest.desired, at_rest.accepted) == (State.WAITING, None, None)
        assert "erased" in at_rest.reason
        assert delivery_of(store, JANE, "sms").desired is None
        with pytest.raises(Superseded):
            store.take_turn("sms", 1.0, 10, NOW, ticket=theirs, claimed=sending)

    def test_what_was_under_way_does_not_bring_an_erased_person_back(self, store: Store) -> None:
        commit(store, want())
        ticket = store.acquire(MAIL, "a", NOW)
        claimed = claim(store, ticket)
        gone = Want("mail", JANE, Desired(gone=True), forget=True)
        commit(store, gone, contacts=[Contact(JANE, erased=Version(NOW, "e9"))], erased=[JANE])
        call = Exchange("POST", "https://platform.example/contacts", 200, 12, "jane@example.com")
        finished = push(store, ticket, claimed, "T1", exchanges=[call])
        assert (finished.state, finished.accepted, finished.desired) == (State.PENDING, None, Desired(gone=True))
        [entry] = facts(store, kind="delivery")
        assert entry.detail is None
        removed = push(store, ticket, claim(store, ticket), "T1", outcome="removed")
        assert (removed.state, removed.target_id) == (State.REMOVED, None)

    def test_an_erased_payload_that_waits_for_a_replay_is_no_longer_work(self, store: Store) -> None:
        [received] = store.receive([inbound("a")])
        done = [InboundResult(received.id, Outcome.PROCESSED)]
        commit(store, contacts=[contact(JANE)], results=done, audit=[fact(inbound_id=received.id)])
        store.replay_inbound(NOW, "ann", [received.id])
        commit(store, contacts=[Contact(JANE, erased=Version(NOW, "e9"))], erased=[JANE])
        assert store.work("crm", NOW, 10).inbounds == []

    @pytest.mark.parametrize("how", ["erased", "forgotten", "pruned"])
    def test_headers_and_query_go_with_the_payload(self, store: Store, how: str) -> None:
        url = "https://bridge.example/hooks/crm"
        mine, other = (
            replace(inbound(name, body=name.encode()), url=f"{url}?email={name}", headers={"x-person": name})
            for name in ("jane", "john")
        )
        [first] = store.receive([mine])
        [second] = store.receive([replace(other, received_at=NOW + MINUTE)])
        results = [InboundResult(first.id, Outcome.PROCESSED, forget=how == "forgotten")]
        commit(store, contacts=[contact(JANE)], results=results, audit=[fact(inbound_id=first.id)])
        if how == "erased":
            commit(store, contacts=[Contact(JANE, erased=Version(NOW, "e9"))], erased=[JANE])
        elif how == "pruned":
            assert store.prune(payloads_before=NOW + SECOND, keys_before=NOW) > 0
        bare, kept = store.inbound(first.id), store.inbound(second.id)
        assert bare is not None
        assert kept is not None
        assert (bare.url, bare.headers, bare.body) == (url, {}, None)
        assert (kept.url, kept.headers, kept.body) == (f"{url}?email=john", {"x-person": "john"}, b"john")

    def test_a_result_can_forget_its_payload(self, store: Store) -> None:
        [received] = store.receive([inbound("a")])
        commit(store, results=[InboundResult(received.id, Outcome.PROCESSED, forget=True)])
        kept = store.inbound(received.id)
        assert kept is not None
        assert kept.body is None

    def test_old_payloads_and_keys_are_pruned_and_facts_stay(self, store: Store) -> None:
        old, new, queued = store.receive(
            [inbound("old"), inbound("new", received_at=NOW + MINUTE), inbound("queued")]
        )
        done = [InboundResult(one.id, Outcome.PROCESSED) for one in (old, new)]
        entries = [fact(detail={"n": n}) for n in range(3)] + [fact(detail={"n": 0}, at=NOW + MINUTE)]
        commit(store, contacts=[contact(JANE)], results=done, audit=entries)
        later = NOW + SECOND
        assert store.prune(payloads_before=NOW, keys_before=NOW) == 0
        assert store.prune(payloads_before=later, keys_before=NOW, limit=1) == 1
        assert store.prune(payloads_before=later, keys_before=NOW) == 2
        bodies = {one.id: one.body is None for one in store.inbound_page(Filter(), None, 10).items}
        # What is not processed yet needs its bytes, however old it is.
        assert bodies == {old.id: True, new.id: False, queued.id: False}
        # Two facts share one payload, which is as young as the younger one.
        assert [one.detail for one in facts(store)] == [{"n": 0}, None, None, {"n": 0}]
        assert store.prune(payloads_before=NOW, keys_before=later) == 2
        assert not store.receive([inbound("old", received_at=NOW + 2 * MINUTE)])[0].duplicate
        assert store.receive([inbound("new")])[0].duplicate
        assert store.replay_inbound(NOW, "ann", [old.id]) == 0

    # --- access tokens of targets ---

    def test_an_access_token_is_each_targets_own_until_another_is_kept(self, store: Store) -> None:
        first = AccessToken(b"\x00sealed", NOW + MINUTE)
        assert store.access_token("sms") is None
        store.keep_access("sms", first)
        assert store.access_token("sms") == first
        assert store.access_token("mail") is None
        store.keep_access("sms", AccessToken(b"another", NOW + 2 * MINUTE))
        assert store.access_token("sms") == AccessToken(b"another", NOW + 2 * MINUTE)
        store.keep_access("sms", None)
        assert store.access_token("sms") is None

    def test_one_is_to_renew_access_until_its_time_is_over(self, store: Store) -> None:
        assert store.renew_access("sms", None, NOW, NOW + MINUTE)
        assert store.access_token("sms") is None
        assert not store.renew_access("sms", None, NOW, NOW + MINUTE)
        assert not store.renew_access("sms", None, NOW + MINUTE - SECOND, NOW + 2 * MINUTE)
        assert store.renew_access("mail", None, NOW, NOW + MINUTE)
        assert store.renew_access("sms", None, NOW + MINUTE, NOW + 2 * MINUTE)

    def test_only_who_saw_the_token_that_is_there_may_renew_it(self, store: Store) -> None:
        first, second = AccessToken(b"first", NOW), AccessToken(b"second", NOW)
        assert store.renew_access("sms", None, NOW, NOW + MINUTE)
        store.keep_access("sms", first)
        assert not store.renew_access("sms", None, NOW, NOW + MINUTE)
        assert store.renew_access("sms", first, NOW, NOW + MINUTE)
        assert store.access_token("sms") == first
        store.keep_access("sms", second)
        assert not store.renew_access("sms", first, NOW, NOW + MINUTE)
        assert store.renew_access("sms", second, NOW, NOW + MINUTE)

    def test_whoever_gives_up_renewing_access_leaves_it_to_anybody(self, store: Store) -> None:
        assert store.renew_access("sms", None, NOW, NOW + MINUTE)
        store.keep_access("sms", None)
        assert store.renew_access("sms", None, NOW, NOW + MINUTE)

    def test_of_many_at_once_one_renews_access(self, store: Store) -> None:
        told = in_threads(lambda number: store.renew_access("sms", None, NOW, NOW + MINUTE), 6)
        assert sorted(told) == [False] * 5 + [True]

    # --- tokens and migrations ---------------------------------------------------------------------------

    def test_tokens_live_until_they_are_revoked(self, store: Store) -> None:
        assert not store.token_live("crm", "t1")
        store.add_token("crm", "t1", NOW)
        store.add_token("crm", "t1", NOW)
        store.add_token("shop", "t2", NOW)
        assert store.token_live("crm", "t1")
        assert not store.token_live("crm", "t2")
        assert store.revoke_tokens("crm", NOW) == 1
        assert store.revoke_tokens("crm", NOW) == 0
        assert not store.token_live("crm", "t1")
        assert store.token_live("shop", "t2")
        store.add_token("crm", "t3", NOW)
        assert store.token_live("crm", "t3")
        assert not store.token_live("crm", "t1")

    def test_migrating_again_does_nothing(self, store: Store) -> None:
        store.receive([inbound("a")])
        assert store.migrate() == []
        assert store.health(NOW).inbound == {"accepted": 1}

    # --- other rules -------------------------------------------------------------------------------------

    def test_the_rules_in_force_are_remembered(self, store: Store) -> None:
        assert store.rules() is None
        rules = Rules({("crm", "mail"): "a"}, {"crm": frozenset({"email", "phone"})})
        store.put_in_force(Ruling(rules), NOW)
        assert store.rules() == rules
        assert facts(store, kind="replay") == []
        later = Rules({("crm", "sms"): "b"}, {"crm": frozenset({"email"})})
        store.put_in_force(Ruling(later, gone=[("crm", "mail")]), NOW)
        assert store.rules() == later

    def test_what_is_queued_for_a_changed_route_waits_until_it_is_decided_again(self, store: Store) -> None:
        commit(store, want(), want(target="sms"), want(JOHN))
        ticket = store.acquire(MAIL, "a", NOW)
        push(store, ticket, claim(store, ticket), "T1")
        commit(store, want(email="new@example.com"))
        store.pause("mail", "", "ann", NOW)
        store.put_in_force(Ruling(Rules({("crm", "mail"): "b"}, {}), changed=[("crm", "mail")]), NOW)
        store.resume("mail", "ann", NOW)
        assert store.claim(ticket, NOW) is None
        waiting = delivery_of(store)
        assert (waiting.state, waiting.desired, waiting.due_at) == (State.WAITING, None, None)
        assert (waiting.target_id, waiting.accepted) == ("T1", {"email": "1@example.com"})
        assert "decided again" in waiting.reason
        assert delivery_of(store, target="sms").state is State.PENDING
        work = store.work("crm", NOW, 10)
        assert (sorted(work.keys), work.replays) == ([JANE, JOHN], frozenset())
        commit(store, want(), want(JOHN), decided=work.keys)
        assert delivery_of(store).state is State.SYNCED
        assert claim(store, ticket).key == JOHN
        assert store.work("crm", NOW, 10).keys == []

    def test_a_persons_replay_stays_one_when_the_rules_change(self, store: Store) -> None:
        commit(store, want(), want(JOHN))
        store.replay(NOW, "ann", keys=[JANE])
        store.put_in_force(Ruling(Rules({("crm", "mail"): "b"}, {}), changed=[("crm", "mail")]), NOW)
        work = store.work("crm", NOW, 10)
        assert (sorted(work.keys), work.replays) == ([JANE, JOHN], frozenset({JANE}))

    def test_nothing_of_a_route_that_is_gone_is_sent(self, store: Store) -> None:
        commit(store, want(), want(JOHN), want(target="sms"))
        ticket = store.acquire(MAIL, "a", NOW)
        claimed = claim(store, ticket)
        unsure(store, ticket, claimed, NOW)
        store.put_in_force(Ruling(Rules({}, {}), gone=[("crm", "mail")]), NOW)
        for key in (JANE, JOHN):
            assert delivery_of(store, key).state is State.WAITING
            assert delivery_of(store, key).reason == "No route leads from crm to mail any more; nothing is sent."
        assert delivery_of(store, claimed.key).unsure_since == NOW
        assert store.claim(ticket, NOW) is None
        assert list(store.work("crm", NOW, 10).keys) == []
        assert delivery_of(store, target="sms").state is State.PENDING

    def test_contacts_are_due_to_be_read_when_more_is_needed_of_them(self, store: Store) -> None:
        read = replace(contact(JANE, email="a@example.com"), read_at=NOW)
        failing = replace(contact(JOHN), read_at=NOW, thin=True, read_due=NOW + MINUTE, read_tries=2)
        commit(store, contacts=[read, failing])
        store.put_in_force(Ruling(Rules({}, {"crm": {"email", "name"}}), unread=["crm"]), NOW)
        assert list(store.work("crm", NOW, 10).keys) == [JANE]
        kept = store.contacts([JANE, JOHN])
        assert kept == {JANE: replace(read, read_at=None), JOHN: replace(failing, read_at=None)}

    def test_a_change_of_rules_that_was_cut_short_is_seen_by_the_next_start(self, store: Store) -> None:
        before = Rules({("crm", "mail"): "a"}, {"crm": frozenset({"email"})})
        store.put_in_force(Ruling(before), NOW)
        commit(store, want())
        after = Rules({("crm", "mail"): "b"}, {"crm": frozenset({"email", "name"})})
        with pytest.raises(KeyboardInterrupt):
            store.put_in_force(Ruling(after, changed=[("crm", "mail")], unread=CutShort(["crm"])), NOW)
        assert store.rules() == Rules({("crm", "mail"): ""}, before.reads)
