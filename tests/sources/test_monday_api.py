"""monday.com's API over real HTTP: reading, listing, registering, opting out, and all the way to the platforms."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from bridge.config import load
from bridge.demo.fakes.server import serve
from bridge.errors import SourceUnavailable
from bridge.model import InboundRequest, RecordKey, Secret, State, Value, Version
from bridge.outbound import Api, new_session
from bridge.sources.base import BatchUnreadable, Lister, Read, Registrar, Writer
from bridge.sources.monday import SOURCE, Monday, Settings
from tests.platforms import PUBLIC_URL, TOML, Bench, open_bench, serve_platforms
from tests.sources.fake_monday import BOARD, CURSOR_LASTS, Webhook
from tests.sources.fake_monday import Monday as Fake
from tests.sources.graphql_of_monday_and_shopify import fields_chosen

START = datetime(2026, 9, 21, 14, 13, 20, 500_000, tzinfo=UTC)
HOOK = f"{PUBLIC_URL}/hooks/crm"
COLUMNS = {"stop": "color_mks7", "vip": "boolean_mkv1", "tiers": "dropdown_mkt3", "born": "date_mkd4"}
MANY = ("email", "phone", "phone_country", "stop", "vip", "tiers", "born", "name", "group", "text_mkx9")
every_reading = pytest.mark.parametrize(
    "switches",
    [
        {"unknown_ids": ids, "gone": gone, "errors_as": errors}
        for ids in Fake.SWITCHES["unknown_ids"]
        for gone in Fake.SWITCHES["gone"]
        for errors in Fake.SWITCHES["errors_as"]
    ],
    ids=lambda one: "-".join(one.values()),
)


class Board:
    """A fake account, the source that reads it, and a clock that stands until it is told to go on."""

    def __init__(self, base_url: str, api: Api, settings: Settings, switches: Mapping[str, Any]) -> None:
        self.now = START
        self.fake = Fake(clock=lambda: self.now, **switches)
        self.base_url, self.api, self.settings = base_url, api, settings
        self.source = Monday("crm", settings)

    @property
    def lister(self) -> Lister:
        assert SOURCE.lister is not None
        found = SOURCE.lister("crm", self.settings)
        assert found is not None
        return found

    @property
    def registrar(self) -> Registrar:
        assert SOURCE.registrar is not None
        found = SOURCE.registrar("crm", self.settings)
        assert found is not None
        return found

    @property
    def writer(self) -> Writer:
        assert SOURCE.writer is not None
        found = SOURCE.writer("crm", self.settings)
        assert found is not None
        return found

    def read(self, *ids: str, fields: tuple[str, ...] = ("email",)) -> list[Read]:
        return self.source.read(self.api, [RecordKey("crm", one) for one in ids], fields)

    def list_all(self, since: datetime | None = None) -> list[str]:
        found, after = [], None
        for _ in range(50):
            page = self.lister.page(self.api, ["email"], after, since)
            found += [read.key.source_id for read in page.records]
            if (after := page.after) is None:
                return found
        raise AssertionError("the list has no end")

    def fails(self, call: Any = None) -> SourceUnavailable:
        with pytest.raises(SourceUnavailable) as caught:
            (call or (lambda: self.read("1")))()
        said = str(caught.value)
        assert said.endswith(".")
        assert not any(word in said for word in (Fake.token, "Ada", "example.com"))
        return caught.value


@contextmanager
def board(
    *, token: str = Fake.token, proof: Any = "jwt", opt_out_value: str = "Unsubscribed", **switches: Any
) -> Iterator[Board]:
    # The fake is made by the board, which the server asks for as soon as somebody calls.
    made: list[Board] = []

    def app(environ: Any, start_response: Any) -> Any:
        return made[0].fake(environ, start_response)

    with serve(app) as base_url, new_session() as session:
        api = Api(base_url, session=session, connect_timeout_s=2, read_timeout_s=0.5)
        settings = Settings(
            board_id=BOARD,
            proof=proof,
            secrets=(Secret("s"),) if proof == "jwt" else (),
            columns=COLUMNS,
            token=Secret(token),
            api_base=base_url,
            opt_out_value=opt_out_value,
            require_token=proof == "url",
        )
        made.append(Board(base_url, api, settings, switches))
        yield made[0]


def id_of(event: Mapping[str, Any]) -> str:
    return str(event["pulseId"])


# --- reading ---------------------------------------------------------------------------------------------


def test_only_the_columns_that_are_named_are_read_and_each_in_its_shape() -> None:
    with board() as one:
        held: dict[str, Any] = {
            "email": "ada@example.com", "phone": ("14155550123", "US"), "color_mks7": "Unsubscribed",
            "boolean_mkv1": True, "dropdown_mkt3": ["Gold", "Early, bird"], "date_mkd4": "1815-12-10 08:00:00",
            "text_mkx9": "Zürich",
        }  # fmt: skip
        ada = id_of(one.fake.create(**held))
        (read,) = one.read(ada, fields=(*MANY, "no_such_column"))
        key = RecordKey("crm", ada)
        expected: dict[str, Value] = {
            "email": "ada@example.com", "phone": "14155550123", "phone_country": "US", "stop": "Unsubscribed",
            "vip": True, "tiers": ["Gold", "Early, bird"], "born": "1815-12-10T08:00:00Z", "name": "Ada Lovelace",
            "group": "topics", "text_mkx9": "Zürich",
        }  # fmt: skip
        assert read == Read(key, key, expected, Version(START.replace(microsecond=0), "read"))
        (call,) = one.fake.calls
        asked = call.json["variables"]["columns"]
        assert {"email", "phone", "color_mks7", "boolean_mkv1", "dropdown_mkt3"} <= set(asked)
        assert "mirror_mkm1" not in asked
        (read,) = one.read(ada, fields=("name",))
        assert read.fields == {"name": "Ada Lovelace"}
        assert "column_values" not in fields_chosen(one.fake.calls[-1].json["query"])  # or all would come


@pytest.mark.parametrize("unknown", Fake.SWITCHES["unknown_columns"])
def test_a_field_that_is_no_column_is_left_out_and_spoils_nothing(unknown: str) -> None:
    with board(unknown_columns=unknown) as one:
        one.fake.page = 1
        ada, other = (id_of(one.fake.create(email="ada@example.com")) for _ in range(2))
        fields = ("email", "phone_country", "no_such_column")
        (read,) = one.read(ada, fields=fields)
        assert read.fields == {"email": "ada@example.com", "phone_country": ""}
        page = one.lister.page(one.api, fields, None, None)
        page = one.lister.page(one.api, fields, page.after, None)
        assert [(found.key.source_id, found.fields) for found in page.records] == [(other, read.fields)]


def test_an_item_that_nobody_changed_is_as_old_as_it_is() -> None:
    with board() as one:
        item = {"id": "1", "created_at": "2026-09-21T14:13:20Z", "updated_at": None}
        one.fake.trouble(status=200, body={"data": {"items": [item]}})
        assert one.read("1")[0].version == Version(START.replace(microsecond=0), "read")


def test_what_is_empty_is_cleared_and_what_cannot_be_told_says_nothing() -> None:
    with board() as one:
        ada = id_of(one.fake.create(mirror_mkm1=None))
        (read,) = one.read(ada, fields=(*MANY, "mirror_mkm1", "country_mkc5", "country_mkc5_code", "link_mkl6"))
        assert read.fields == {
            "email": "", "phone": "", "phone_country": "", "stop": "", "vip": False, "tiers": [], "born": "",
            "name": "Ada Lovelace", "group": "topics", "text_mkx9": "", "country_mkc5": "",
            "country_mkc5_code": "", "link_mkl6": "",
        }  # fmt: skip


def test_a_webhook_and_the_api_say_the_same_of_a_column() -> None:
    held = {
        "email": "ada@example.com", "phone": ("14155550123", "US"), "color_mks7": "Done", "boolean_mkv1": True,
        "dropdown_mkt3": ["Gold"], "numeric_mkn2": "12.5", "date_mkd4": "1815-12-10",
        "country_mkc5": ("GB", "Britain"), "link_mkl6": "https://example.com", "text_mkx9": "a",
    }  # fmt: skip
    with board() as one:
        ada = id_of(one.fake.create())
        for values in (held, {name: "" for name in held if name != "numeric_mkn2"}):
            for column_id, value in values.items():
                event = one.fake.change(ada, column_id, value)
                request = InboundRequest("POST", HOOK, {}, one.fake.webhook(event))
                genuine = one.source.verify(one.source.sign(request, one.now), one.now)
                ((told,),) = (event.changes for event in one.source.parse(genuine, one.now))
                (read,) = one.read(ada, fields=tuple(told.fields))
                assert told.fields == read.fields
                assert not told.thin


def test_answers_go_by_their_ids_and_a_hundred_come_at_once() -> None:
    with board() as one:
        ids = [id_of(one.fake.create(email=f"p{n}@example.com")) for n in range(100)]
        reads = one.read(*ids)
        assert [read.asked.source_id for read in reads] == ids
        assert [(read.fields or {})["email"] for read in reads] == [f"p{n}@example.com" for n in range(100)]
        assert len(one.fake.calls) == 1
        assert [read.asked.source_id for read in one.read(ids[0], ids[1], ids[0])] == [ids[0], ids[1], ids[0]]
        assert one.read() == []
        assert isinstance(one.fails(lambda: one.read(*ids, "7")), BatchUnreadable)


@every_reading
def test_an_item_that_is_gone_or_was_moved_away_is_known_to_be_unknown(switches: dict[str, str]) -> None:
    with board(**switches) as one:
        ids = [id_of(one.fake.create()) for _ in range(4)]
        one.fake.put_away(ids[0])
        one.fake.put_away(ids[1], "archived")
        one.fake.move_away(ids[2])
        assert [read.fields is None for read in one.read(*ids)] == [True, True, True, False]
        assert [(read.fields, read.version, read.problem) for read in one.read("5")] == [(None, None, "")]
        if switches["unknown_ids"] == "error":  # which of them it is, is found by halving
            assert isinstance(one.fails(lambda: one.read(ids[3], "5")), BatchUnreadable)
        else:
            assert [read.fields is None for read in one.read(ids[3], "5")] == [False, True]


def test_a_refused_token_and_a_missing_one_are_named_in_words() -> None:
    with board(token="wrong") as one:
        assert "HTTP 401" in str(one.fails())
    source = Monday("crm", Settings(board_id=1, secrets=(Secret("s"),)))
    assert not source.can_read()
    with pytest.raises(SourceUnavailable, match="No token"):
        source.read(Api("http://127.0.0.1:9"), [RecordKey("crm", "1")], [])
    for make in (SOURCE.lister, SOURCE.registrar, SOURCE.writer):
        assert make is not None
        assert make("crm", Settings(board_id=1, secrets=(Secret("s"),))) is None
    assert SOURCE.read_base_url is not None
    assert SOURCE.read_base_url(Settings(board_id=1)) == "https://api.monday.com"


BUDGET = "Complexity budget exhausted, query cost 30001 budget remaining 19986 reset in 3 seconds"


@pytest.mark.parametrize(
    ("trouble", "said", "retry_after_s"),
    [
        ({"status": 429, "headers": {"Retry-After": "7"}}, "fewer calls", 7),
        ({"status": 403}, "HTTP 403", 0),
        ({"status": 503, "headers": {"Retry-After": "9"}}, "HTTP 503", 9),
        ({"status": 500, "body": "<html>"}, "HTTP 500", 0),
        ({"status": 301, "headers": {"Location": "http://127.0.0.1/"}}, "redirect", 0),
        ({"how": "drop"}, "cannot be called now", 0),
        ({"status": 200, "body": {"error_code": "ComplexityException", "error_message": BUDGET}}, "fewer", 3),
        ({"status": 200, "body": {"errors": [{"extensions": {"code": "COMPLEXITY_BUDGET_EXHAUSTED",
                                                             "retry_in_seconds": 17}}]}}, "fewer calls", 17),
        ({"status": 200, "body": {"errors": [{"extensions": {"code": "maxConcurrencyExceeded"}}]}}, "fewer", 60),
        ({"status": 200, "body": {"errors": ["Not Authenticated"]}}, "refuses the token", 0),
        ({"status": 200, "body": {"errors": [{"message": "x", "extensions": {"code": "USER_UNAUTHORIZED"}}]}},
         "refuses the token", 0),
    ],
)  # fmt: skip
def test_trouble_on_the_way_is_told_and_teaches_nothing(
    trouble: Mapping[str, Any], said: str, retry_after_s: float
) -> None:
    with board() as one:
        one.fake.trouble(**trouble)
        error = one.fails()
        assert said in str(error)
        assert not isinstance(error, BatchUnreadable)
        assert error.retry_after_s == retry_after_s


@pytest.mark.parametrize(
    "trouble",
    [
        {"status": 400},
        {"status": 200, "body": "<html>a proxy"},
        {"status": 200, "body": []},
        {"status": 200, "body": {}},
        {"status": 200, "body": {"data": None}},
        {"status": 200, "body": {"data": {"items": None}}},
        {"status": 200, "body": {"errors": [{"message": "Ada Lovelace", "extensions": {"code": "a person's"}}]}},
        {"status": 200, "body": {"errors": [7], "data": {"items": []}}},
        {"status": 200, "body": {"errors": [{"extensions": {"code": "INTERNAL_SERVER_ERROR"}}]}},
    ],
)
def test_trouble_that_may_be_of_the_records_asked_for_is_told_apart(trouble: Mapping[str, Any]) -> None:
    with board() as one:
        one.fake.trouble(**trouble)
        assert isinstance(one.fails(), BatchUnreadable)


def test_an_unusable_answer_about_one_item_says_nothing_against_the_others() -> None:
    with board() as one:
        good = {"id": "2", "state": "active", "updated_at": "2026-09-21T14:13:20Z", "column_values": None}
        items = [{"id": "1", "updated_at": "once", "state": ["odd"]}, good, None, 7, {"id": None}, {"id": "777"}]
        one.fake.trouble(status=200, body={"data": {"items": items}})
        first, second, third = one.read("1", "2", "3")
        assert "when the item was last changed" in first.problem
        assert (second.fields, second.problem) == ({}, "")
        assert (third.fields, third.problem) == (None, "")


# --- listing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", Fake.SWITCHES["rows"])
def test_every_item_that_is_there_all_along_is_listed_though_others_go(rows: str) -> None:
    with board(rows=rows) as one:
        one.fake.page = 3
        ids = [id_of(one.fake.create()) for _ in range(10)]  # all of one moment
        page = one.lister.page(one.api, ["email"], None, None)
        assert (page.total, len(page.records)) == (10, 3)
        one.fake.put_away(ids[0])
        one.fake.put_away(ids[4])
        one.fake.move_away(ids[9])
        found = [read.key.source_id for read in page.records]
        while page.after:
            page = one.lister.page(one.api, ["email"], page.after, None)
            found += [read.key.source_id for read in page.records]
        assert set(found) == set(ids) - {ids[4], ids[9]}
        assert all(read.asked == read.key and read.fields is not None for read in page.records)


def test_a_place_that_was_forgotten_begins_the_list_anew() -> None:
    with board() as one:
        one.fake.page = 4
        ids = [id_of(one.fake.create()) for _ in range(10)]
        first = one.lister.page(one.api, ["email"], None, None)
        one.now += CURSOR_LASTS + timedelta(seconds=1)
        found = [read.key.source_id for read in first.records]
        after = first.after
        while after:
            page = one.lister.page(one.api, ["email"], after, None)
            found += [read.key.source_id for read in page.records]
            after = page.after
        assert set(found) == set(ids)
        assert found[:4] == found[4:8]  # which comes twice


def test_a_place_that_is_refused_at_once_does_not_go_round_for_ever() -> None:
    with board() as one:
        one.fake.page = 4
        for _ in range(10):
            one.fake.create()
        after = one.lister.page(one.api, ["email"], None, None).after
        for _ in range(3):
            one.fake.cursors.clear()
            after = one.lister.page(one.api, ["email"], after, None).after
        one.fake.cursors.clear()
        assert "no longer knows this place" in str(one.fails(lambda: one.lister.page(one.api, [], after, None)))


def test_a_delta_holds_what_changed_since_and_says_of_no_total() -> None:
    with board() as one:
        old, changed = (id_of(one.fake.create()) for _ in range(2))
        one.now += timedelta(hours=1)
        one.fake.change(changed, "email", "a@example.com")
        new = id_of(one.fake.create())
        assert set(one.list_all(one.now)) == {changed, new}  # of the same second, too
        assert set(one.list_all(START)) == {old, changed, new}
        assert one.list_all(one.now + timedelta(seconds=1)) == []
        assert one.lister.page(one.api, [], None, one.now).total is None


def test_an_empty_board_and_one_that_is_not_shown() -> None:
    with board() as one:
        assert one.list_all() == []
        one.fake.trouble(status=200, body={"data": {"boards": []}})
        assert f"no board {BOARD}" in str(one.fails(lambda: one.list_all()))
        answers: list[Any] = [
            {"boards": [{}]},
            {"boards": [{"items_page": {"items": None}}]},
            {"boards": [{"items_page": {"items": [{"id": None}]}}]},
        ]
        for wrong in answers:
            one.fake.trouble(status=200, body={"data": wrong})
            assert isinstance(one.fails(lambda: one.list_all()), BatchUnreadable)


# --- registering -----------------------------------------------------------------------------------------


def test_registering_twice_makes_each_webhook_once() -> None:
    with board() as one:
        one.fake.webhooks["5"] = Webhook("5", "create_item", "https://elsewhere.example.com", by_app=False)
        one.fake.webhooks["6"] = Webhook("6", "create_item", "https://elsewhere.example.com", board="1")
        done = one.registrar.register(one.api, HOOK, ["email"], one.now)
        made = [hook for hook in one.fake.webhooks.values() if hook.url == HOOK]
        assert sorted(hook.event for hook in made) == [
            "change_column_value", "change_name", "create_item", "item_archived", "item_deleted", "item_restored",
        ]  # fmt: skip
        assert len(done.done) == 6
        assert (done.secrets, done.expires_at) == ({}, None)
        again = one.registrar.register(one.api, HOOK, ["email"], one.now)
        assert len(one.fake.webhooks) == 8
        assert "already" in again.done[0]
        assert "does not say where" in again.done[-1]
        one.registrar.register(one.api, HOOK, ["group"], one.now)
        assert len(one.fake.webhooks) == 9
        assert len(one.registrar.remove(one.api, HOOK)) == 7
        assert set(one.fake.webhooks) == {"5", "6"}
        assert list(one.registrar.remove(one.api, HOOK)) == []


def test_a_url_that_does_not_answer_is_told_with_the_way_out() -> None:
    with board() as one:
        one.fake.reachable = False
        said = str(one.fails(lambda: one.registrar.register(one.api, HOOK, [], one.now)))
        assert "must be running" in said.replace("\n", " ")
        one.fake.reachable = True
        one.fake.trouble(status=200, body={"data": {"webhooks": []}})
        one.fake.trouble(status=200, body={"data": {"create_webhook": None}})
        assert "did not say" in str(one.fails(lambda: one.registrar.register(one.api, HOOK, [], one.now)))


def test_webhooks_that_no_app_made_are_left_to_whoever_made_them() -> None:
    with board(proof="url") as one:
        assert "by hand" in str(one.fails(lambda: one.registrar.register(one.api, HOOK, [], one.now)))
        assert "by hand" in str(one.fails(lambda: one.registrar.remove(one.api, HOOK)))
        assert one.fake.calls == []


# --- opting out ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "column_id", "value"),
    [
        ("stop", "color_mks7", "Unsubscribed"),
        ("vip", "boolean_mkv1", True),
        ("text_mkx9", "text_mkx9", "Unsubscribed"),
    ],
)
def test_an_opt_out_goes_into_a_status_a_box_or_a_text(name: str, column_id: str, value: object) -> None:
    with board() as one:
        ada, other = id_of(one.fake.create()), id_of(one.fake.create())
        one.writer.opt_out(one.api, ada, name)
        one.writer.opt_out(one.api, ada, name)
        assert one.fake.items[ada].columns == {column_id: value}
        assert one.fake.items[other].columns == {}


def test_an_opt_out_that_cannot_be_written_is_refused_in_words() -> None:
    with board(opt_out_value="") as one:
        ada = id_of(one.fake.create())
        for name, said in (
            ("stop", "opt_out_value"),
            ("tiers", "cannot hold"),
            ("nothing", "no column 'nothing'"),
        ):
            assert said in str(one.fails(lambda name=name: one.writer.opt_out(one.api, ada, name)))
        assert one.fake.items[ada].columns == {}
        one.writer.opt_out(one.api, ada, "vip")  # needs no word
    with board(opt_out_value="Never heard of") as one:
        ada = id_of(one.fake.create())
        assert "did not do" in str(one.fails(lambda: one.writer.opt_out(one.api, ada, "stop")))
        assert "did not do" in str(one.fails(lambda: one.writer.opt_out(one.api, "5", "vip")))


# --- all the way -----------------------------------------------------------------------------------------

SECTION = """[sources.shop]
type = "monday"
board_id = {board}
secrets = ["s"]
token = "{token}"
api_base = "{base}"
columns = {{ stopped = "boolean_mkv1", surname = "text_mkx9" }}

"""


def test_a_webhook_is_read_and_reaches_all_four_platforms(tmp_path: Path) -> None:
    with board() as one, serve_platforms() as platforms:
        one.now = datetime.now(UTC)
        section = SECTION.format(board=BOARD, token=Fake.token, base=one.base_url)
        head, rest = TOML.split("[sources.shop]")[0], TOML[TOML.index("[targets.marketing]") :]
        rest = rest.replace("stop == 'yes'", "stopped == true").replace('"id"', '"email"')
        rest = rest.replace('"phone"', '"phone | e164(phone_country)"')
        text = (head + section.replace("{", "{{").replace("}", "}}") + rest).format(
            **platforms.urls, settle_s=0, rate_per_s=1000, on_delete="keep", sakari_account=platforms.sms.account
        )
        path = tmp_path / "bridge.toml"
        path.write_text(text)
        with open_bench(tmp_path, load(path, platforms.environ)) as bench:
            event = one.fake.create(
                "Ana", email="ana@example.com", phone=("525512345678", "MX"), text_mkx9="Ruiz", boolean_mkv1=False
            )
            send(bench, one, event)
            assert platforms.counts() == {"marketing": 1, "sms": 1, "inbox": 1, "register": 1}
            held = platforms.sms.person("+525512345678")
            assert held is not None
            assert (held["firstName"], held["lastName"]) == ("Ana", "Ruiz")
            one.now += timedelta(seconds=5)
            send(bench, one, one.fake.change(id_of(event), "boolean_mkv1", True))
            deliveries = bench.store.deliveries_of(RecordKey("shop", id_of(event)))
            assert {one.state for one in deliveries} <= {State.OPTED_OUT, State.SYNCED}
            assert State.OPTED_OUT in {one.state for one in deliveries}
            assert len(one.fake.made("POST")) == 1  # once to be read; the second webhook told all


def send(bench: Bench, one: Board, event: Mapping[str, Any]) -> None:
    body = one.fake.webhook(event)
    request = InboundRequest("POST", f"{PUBLIC_URL}/hooks/shop", {"content-type": "application/json"}, body)
    bench.receive(bench.config.sources["shop"].source.sign(request, datetime.now(UTC)))
    bench.settle()
    assert json.loads(body)["event"]["boardId"] == int(BOARD)
