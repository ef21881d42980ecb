"""Order does not matter: any permutation and repetition of any history ends in the same place, everywhere.

The real worker, real databases of both kinds and the four platforms on loopback; only the order and the clock are
made up.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from bridge.config import load
from bridge.lanes import process_lane
from bridge.model import Delivery, RecordKey, State
from bridge.store.protocol import Filter, Ticket
from tests.databases import KINDS, Fresh
from tests.platforms import Bench, Platforms, open_bench, person, serve_platforms, signed, webhook

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
PEOPLE = 2
EXAMPLES = 4  # each on SQLite twice and on PostgreSQL once

# An example takes a second: a failing one is shown as it is, and not made smaller.
SLOW = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)


@dataclass(frozen=True)
class Said:
    """One event of the shop: of whom, what, and when."""

    who: int
    kind: str
    fields: tuple[tuple[str, Any], ...]
    minute: int

    def body(self) -> bytes:
        data = {"id": person(self.who)["id"], **dict(self.fields)}
        return webhook(self.kind, data, NOON + timedelta(minutes=self.minute))


def fields_of(who: int) -> st.SearchStrategy[tuple[tuple[str, Any], ...]]:
    known = person(who)
    return st.fixed_dictionaries(
        {},
        optional={
            "email": st.just(known["email"]),
            "phone": st.just(known["phone"]),
            "name": st.sampled_from(["Ana", "Anita", "Ann", ""]),
            "surname": st.sampled_from(["Ruiz", "Ruiz Paz", "", None]),
            "stop": st.sampled_from(["yes", "no", ""]),
        },
    ).map(lambda fields: tuple(fields.items()))


kinds = st.sampled_from(["changed"] * 6 + ["created", "deleted", "created", "erased"])


@st.composite
def histories(draw: st.DrawFn) -> list[Said]:
    """Everybody is introduced once, and then anything may happen; no two events have the same minute."""
    minutes = draw(st.permutations(range(14)))
    history = [
        Said(who, "created", tuple(person(who, name="Ana").items())[1:], minutes[who]) for who in range(PEOPLE)
    ]
    for minute in minutes[PEOPLE : PEOPLE + draw(st.integers(0, 9))]:
        who = draw(st.integers(0, PEOPLE - 1))
        history.append(Said(who, draw(kinds), draw(fields_of(who)), minute))
    return history


def play(
    bench: Bench,
    history: Sequence[Said],
    ids: Mapping[Said, str],
    *,
    stops: frozenset[int] = frozenset(),
    before_stop: Callable[[], object] = lambda: None,
) -> None:
    """Send *history* in this order; the worker runs after the events at the places *stops*, and at the end."""
    for place, said in enumerate(history):
        bench.receive(signed(bench.config, said.body(), ids[said]))
        if place in stops:
            before_stop()
            for lane in bench.worker.lanes:
                bench.worker.run(lane)
    bench.settle()


def seen(bench: Bench, platforms: Platforms) -> dict[str, Any]:
    """Return all that is known and wanted of everybody, and what every platform holds."""
    keys = [RecordKey("shop", person(who)["id"]) for who in range(PEOPLE)]
    contacts = bench.store.contacts(keys)
    return {
        "contacts": {key: (contact.fields, contact.alive, contact.erased) for key, contact in contacts.items()},
        "desired": {(row.target, key): row.desired for key in keys for row in bench.store.deliveries_of(key)},
        "states": {(row.target, key): row.state for key in keys for row in bench.store.deliveries_of(key)},
        "platforms": {who: held(platforms, who) for who in range(PEOPLE)},
    }


def held(platforms: Platforms, who: int) -> dict[str, dict[str, Any]]:
    """Return what each platform holds of a person, without its own ids and clocks."""
    known = person(who)
    found = {
        "marketing": platforms.marketing.person(known["email"]),
        "sms": platforms.sms.person(known["phone"]),
        "inbox": platforms.inbox.person(known["phone"]),
        "register": platforms.register.person(known["email"]),
    }
    return {
        name: {key: in_order(value) for key, value in (held or {}).items() if "id" not in key.lower()}
        for name, held in found.items()
    }


def in_order(value: Any) -> Any:
    """Return a list by its contents: which contact method came first is nobody's business."""
    return sorted(value, key=repr) if isinstance(value, list) else value


class Stage:
    """The platforms, served once, and a configuration by its *on_delete*."""

    def __init__(self, platforms: Platforms, folder: Path) -> None:
        self.platforms = platforms
        self.folder = folder
        self.configs = {
            on_delete: load(platforms.write_config(folder, on_delete=on_delete), platforms.environ)
            for on_delete in ("keep", "remove")
        }

    @contextmanager
    def anew(self, fresh: Fresh, on_delete: str = "keep") -> Iterator[Bench]:
        """Begin with an empty database and empty platforms."""
        self.platforms.forget()
        with open_bench(self.folder, self.configs[on_delete], fresh()) as bench:
            yield bench

    def check(self) -> None:
        """Assert what holds wherever it ends: nobody is there twice, and no opt-out was taken away."""
        assert self.platforms.loosened() == []
        assert all(count <= PEOPLE for count in self.platforms.counts().values())


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with serve_platforms() as platforms:
        yield Stage(platforms, tmp_path_factory.mktemp("config"))


@pytest.mark.parametrize("on_delete", ["keep", "remove"])
@given(history=histories(), seed=st.integers(0, 2**32))
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_any_order_and_any_repeats_end_in_the_same_place_on_each_database(
    stage: Stage, each_fresh: Mapping[str, Fresh], on_delete: str, history: list[Said], seed: int
) -> None:
    chance = random.Random(seed)
    ids = {said: f"msg_{place}" for place, said in enumerate(history)}
    shuffled = [*history, *chance.choices(history, k=chance.randint(0, 4))]
    chance.shuffle(shuffled)

    def ends(kind: str, order: Sequence[Said]) -> dict[str, Any]:
        with stage.anew(each_fresh[kind], on_delete) as bench:
            play(bench, order, ids)
            stage.check()
            return seen(bench, stage.platforms)

    in_order = ends("sqlite", sorted(history, key=lambda said: said.minute))
    for kind in KINDS:
        assert ends(kind, shuffled) == in_order, kind


@given(history=histories(), seed=st.integers(0, 2**32))
@settings(SLOW, max_examples=EXAMPLES)
def test_neither_trouble_nor_when_the_worker_runs_matters_but_opt_outs_only_tighten(
    stage: Stage, each_fresh: Mapping[str, Fresh], history: list[Said], seed: int
) -> None:
    chance = random.Random(seed)
    ids = {said: f"msg_{place}" for place, said in enumerate(history)}
    shuffled = list(history)
    chance.shuffle(shuffled)
    stops = frozenset(chance.sample(range(len(shuffled)), k=min(4, len(shuffled))))

    def trouble() -> None:
        """Let some calls be done without an answer, or not be done at all."""
        for fake in stage.platforms.fakes.values():
            for _ in range(chance.randint(0, 2)):
                how = chance.choice(["drop_after", "drop_after", "drop", "answer"])
                method = chance.choice(["", "POST", "PUT"])
                fake.trouble(how=how, method=method, status=503)

    def ends(kind: str, order: Sequence[Said], stops: frozenset[int] = frozenset()) -> dict[str, Any]:
        with stage.anew(each_fresh[kind]) as bench:
            play(bench, order, ids, stops=stops, before_stop=trouble)
            stage.check()
            return seen(bench, stage.platforms)

    at_the_end = ends("sqlite", sorted(history, key=lambda said: said.minute))
    for kind in KINDS:
        on_the_way = ends(kind, shuffled, stops)
        assert on_the_way["contacts"] == at_the_end["contacts"], kind
        if any(dict(said.fields).get("stop") == "yes" for said in history):
            # What was opted out on the way stays so at the target, whatever the CRM says later.
            for key, state in at_the_end["states"].items():
                if state is State.OPTED_OUT:
                    assert on_the_way["states"][key] is State.OPTED_OUT, kind
        # What is cleared in the CRM is left alone in the target, and what is deleted there stays: both as it was
        # then.
        elif not any(
            said.kind in {"deleted", "erased"} or dict(said.fields).get("name") == "" for said in history
        ):
            assert on_the_way["desired"] == at_the_end["desired"], kind
            assert on_the_way["platforms"] == at_the_end["platforms"], kind


@pytest.mark.parametrize("kind", KINDS)
def test_newer_state_stops_the_next_write_but_not_the_proof_of_the_last(
    stage: Stage, each_fresh: Mapping[str, Fresh], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = Said(0, "changed", (("stop", "yes"),), 9)
    with stage.anew(each_fresh[kind]) as bench:
        link = bench.store.link

        def link_and_hear(ticket: Ticket, claimed: Delivery, target_id: str, *, durable: bool) -> None:
            """The contact was created a moment ago; before it is read back, the person says stop."""
            link(ticket, claimed, target_id, durable=durable)
            if claimed.target == "inbox":
                bench.receive(signed(bench.config, newer.body(), "msg_newer"))
                bench.worker.run(process_lane("shop"))

        monkeypatch.setattr(bench.store, "link", link_and_hear)
        bench.receive(signed(bench.config, webhook("created", person(0, name="Ana"), NOON), "msg_first"))
        bench.worker.run(process_lane("shop"))
        for lane in bench.worker.lanes:
            if lane.startswith("deliver:inbox:"):
                bench.worker.run(lane)
        pushes = bench.store.audit_page(Filter(target="inbox", kind="delivery"), None, 10).items
        assert [push.outcome for push in pushes if push.attempt] == ["updated", "created"]
        monkeypatch.undo()
        bench.settle()
        stage.check()
