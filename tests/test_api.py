"""The JSON API: what it shows, what it does, and how it says no."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from bridge import schedule
from bridge.database import Database
from bridge.errors import StoreUnavailable
from bridge.lanes import deliver_lane, slot_of
from bridge.model import Delivery, Receipt, RecordKey, utc_now
from bridge.store.protocol import Attempt, Health, Refusal
from bridge.web import openapi, shapes
from bridge.web.api import OPERATIONS, PREFIX
from bridge.web.guard import FAILURES, PER_FAILURE_S, Throttle
from bridge.web.pages import MACHINES
from bridge.web.queries import Input
from bridge.web.transport import insist_on_tls
from tests.databases import KINDS, lasting, sqlite_is_enough
from tests.web_site import API_TOKEN, PUBLIC_URL, Site, open_site

ADA = {"id": "7", "name": "Ada", "phone": "415 555 0123", "email": "ada@example.com"}


@pytest.fixture
def site(tmp_path: Path, database: Database) -> Iterator[Site]:
    with open_site(tmp_path, database=database) as opened:
        yield opened


@pytest.fixture(scope="module", params=KINDS)
def quiet_site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site that tests only look at."""
    folder = tmp_path_factory.mktemp("quiet")
    with open_site(folder, database=lasting(request, folder)) as opened:
        event(opened)
        opened.process()
        yield opened


def event(site: Site, at: str = "2026-03-01T10:00:00Z", **fields: Any) -> int:
    """Send what the shop says of Ada; return the id of the inbound."""
    answer = site.send("shop", {"type": "contact.updated", "timestamp": at, "data": {**ADA, **fields}})
    assert answer.status_code == 200, answer.text
    return int(answer.json()["id"])


def deliver(site: Site, target: str, source_id: str = "7") -> None:
    """Do what the worker would do with one delivery that succeeds."""
    now = utc_now()
    key = RecordKey("shop", source_id)
    lane = deliver_lane(target, slot_of(key) % site.config.targets[target].lanes)
    ticket = site.store.acquire(lane, "test", now)
    claimed = site.store.claim(ticket, now)
    assert claimed is not None
    assert claimed.desired is not None
    receipt = Receipt("created", "remote-1", dict(claimed.desired.fields))

    def close(row: Delivery | None) -> Delivery:
        return schedule.succeeded(row or claimed, claimed, receipt, held=site.store.target_status(target), now=now)

    site.store.finish(ticket, claimed, close, Attempt(now, "created", "", 12, status=200))


# --- who may ask -----------------------------------------------------------------------------------------


def test_without_a_configured_token_the_api_is_closed_and_says_how_to_open_it(tmp_path: Path) -> None:
    with open_site(tmp_path, api_token="") as site:
        for token in ("", "x"):
            answer = site.api("GET", "/status", token=token)
            assert answer.status_code == 503
            assert "BRIDGE_API_TOKEN" in answer.json()["detail"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {API_TOKEN}"},
        {"Authorization": API_TOKEN},
        {"Authorization": "Bearer \xff\xfe"},
    ],
)
def test_a_wrong_token_is_401(quiet_site: Site, headers: dict[str, str]) -> None:
    answer = quiet_site.api("GET", "/status", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert answer.headers["Content-Type"] == "application/problem+json"


@sqlite_is_enough
def test_many_wrong_tokens_are_slowed_down_and_never_lock_the_owner_out(site: Site) -> None:
    statuses = [site.api("GET", "/status", token="wrong").status_code for _ in range(FAILURES + 1)]
    assert statuses == [401] * FAILURES + [429]
    assert int(site.api("GET", "/status", token="wrong").headers["Retry-After"]) >= 1
    assert site.api("GET", "/status").status_code == 200


def test_a_short_token_waits_like_any_other(tmp_path: Path) -> None:
    with open_site(tmp_path, api_token="short") as site:
        for _ in range(FAILURES):
            site.api("GET", "/status", token="wrong")
        assert site.api("GET", "/status", token="short").status_code == 429


def test_the_throttle_forgives_with_time() -> None:
    clock = [0.0]
    throttle = Throttle(lambda: clock[0])
    for _ in range(FAILURES * 3):
        throttle.failed("a")
    assert throttle.closed_for_s("a") == pytest.approx(PER_FAILURE_S)
    assert throttle.closed_for_s("b") == 0
    clock[0] = PER_FAILURE_S
    assert throttle.closed_for_s("a") == 0
    throttle.failed("a")
    assert throttle.closed_for_s("a") > 0


# --- looking ---------------------------------------------------------------------------------------------


def test_status_tells_of_every_source_target_and_route(site: Site) -> None:
    event(site)
    site.process()
    status = site.get("/status")
    assert status["ready"] is False  # no worker beats here
    assert {one["name"] for one in status["sources"]} == set(site.config.sources)
    [shop] = [one for one in status["sources"] if one["name"] == "shop"]
    assert shop["url"] == f"{PUBLIC_URL}/hooks/shop"
    [sms] = [one for one in status["targets"] if one["name"] == "sms"]
    assert (sms["mode"], sms["deliveries"]) == ("open", {"pending": 1})
    assert {"source": "shop", "target": "sms"} in status["routes"]
    assert status["inbound"] == {"processed": 1}


@sqlite_is_enough
def test_status_still_answers_in_words_when_the_database_does_not(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(_: object) -> Health:
        raise StoreUnavailable("gone")

    monkeypatch.setattr(site.store, "health", gone)
    answer = site.api("GET", "/status")
    assert answer.status_code == 503
    assert answer.headers["Retry-After"]


def test_an_inbound_shows_its_bytes_what_they_say_and_what_came_of_it(site: Site) -> None:
    inbound_id = event(site)
    site.process()
    shown = site.get(f"/inbound/{inbound_id}")
    assert json.loads(shown["body"]["text"])["data"] == ADA
    [change] = shown["parsed"][0]["changes"]
    assert (change["source_id"], change["fields"]["name"]) == ("7", "Ada")
    assert shown["outcome"] == "processed"
    assert [entry["source_id"] for entry in shown["audit"] if entry["kind"] == "contact"] == ["7"]


def test_what_the_crm_calls_an_event_stands_with_the_webhook_and_all_it_led_to(site: Site) -> None:
    inbound_id = event(site)
    assert site.get("/inbound")["items"][0]["event_types"] == []
    site.process()
    [item] = site.get("/inbound")["items"]
    shown = site.get(f"/inbound/{inbound_id}")
    assert item["event_types"] == shown["event_types"] == ["contact.updated"]
    assert shown["parsed"][0]["type"] == "contact.updated"
    deliver(site, "sms")
    told = {entry["kind"]: entry["event_types"] for entry in site.get("/audit", inbound=inbound_id)["items"]}
    assert told == {"contact": ["contact.updated"], "delivery": ["contact.updated"]}
    site.send("shop", {"type": "ada@example.com", "timestamp": "2026-03-02T10:00:00Z", "data": {"id": "9"}})
    site.process()
    assert site.get("/inbound")["items"][0]["event_types"] == []


@pytest.mark.parametrize(
    "path", ["/api/v1/status", "/api/v1/nothing", "/api/openapi.json", "/sign-in", "/nothing"]
)
def test_who_came_by_tls_is_told_to_stay_with_it(quiet_site: Site, path: str) -> None:
    answer = quiet_site.session.get(quiet_site.url + path, timeout=5)
    assert answer.headers["Strict-Transport-Security"] == "max-age=31536000"


def test_senders_are_told_nothing_of_it(quiet_site: Site) -> None:
    for answer in (
        quiet_site.session.get(f"{quiet_site.url}/hooks/shop", timeout=5),
        quiet_site.session.post(f"{quiet_site.url}/hooks/nobody", data=b"{}", timeout=5),
        quiet_site.send("shop", {}),
    ):
        assert "Strict-Transport-Security" not in answer.headers


def test_without_tls_nobody_is_told_to_come_by_it() -> None:
    app = Flask("plain")
    insist_on_tls(app, "http://localhost:8000")
    assert "Strict-Transport-Security" not in app.test_client().get("/sign-in").headers


def test_a_body_that_is_no_text_comes_as_base64(site: Site) -> None:
    answer = site.post(site.signed("crm", b"\xff\x00"))
    assert answer.status_code == 400
    [item] = site.get("/inbound", outcome="unreadable")["items"]
    shown = site.get(f"/inbound/{item['id']}")
    assert (shown["body"]["text"], shown["body"]["base64"]) == (None, "/wA=")
    assert shown["problem"]


def test_what_no_client_could_read_as_json_is_shown_as_text() -> None:
    odd = {"a": float("nan"), "b": [float("-inf")], "c": "half \ud800"}
    change = shapes.ChangeItem(
        source_id="1", kind="changed", occurred_at=utc_now(), fields=odd, thin=False, survivor=None, account=None
    )
    text = shapes.to_json(change)
    assert text.encode()
    read = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert read["fields"] == {"a": "nan", "b": ["-inf"], "c": "half \ud800"}


def test_a_contact_shows_every_field_and_where_each_target_stands(site: Site) -> None:
    event(site)
    site.process()
    deliver(site, "sms")
    event(site, "2026-03-01T11:00:00Z", name="Augusta")
    site.process()
    shown = site.get("/contacts/shop/7")
    assert shown["fields"]["email"]["value"] == "ada@example.com"
    assert shown["fields"]["email"]["occurred_at"].startswith("2026-03-01T11:00:00")
    by_target = {one["target"]: one for one in shown["deliveries"]}
    sms, marketing = by_target["sms"], by_target["marketing"]
    assert sms["state"] == "pending"
    assert sms["target_id"] == "remote-1"
    assert sms["accepted"]["firstName"] == "Ada"
    assert sms["difference"] == {"firstName": {"wanted": "Augusta", "held": "Ada"}}
    assert marketing["state"] == "waiting"
    assert all(one["reason"].endswith(".") for one in by_target.values())
    assert any(entry["kind"] == "delivery" and entry["target"] == "sms" for entry in shown["audit"])


def test_an_id_may_hold_slashes_blanks_and_anything_else(site: Site) -> None:
    odd = "a//b c/ü?%2F"
    event(site, id=odd)
    site.process()
    path = quote(odd, safe="")
    assert site.get(f"/contacts/shop/{path}")["source_id"] == odd


@pytest.mark.parametrize(
    "path",
    ["/contacts/shop/nobody", "/contacts/nobody/7", "/inbound/99", f"/inbound/{2**70}", "/inbound/x", "/nothing"],
)
def test_what_there_is_not_is_404(quiet_site: Site, path: str) -> None:
    answer = quiet_site.api("GET", path)
    assert answer.status_code == 404
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["detail"]


def test_lists_page_by_cursor_without_gaps_or_repeats(site: Site) -> None:
    for number in range(7):
        event(site, id=str(number))
    site.process()
    for path, name in (("/inbound", "id"), ("/contacts", "source_id"), ("/audit", "id")):
        whole = [one[name] for one in site.get(path, limit=200)["items"]]
        paged: list[Any] = []
        page = site.get(path, limit=3)
        while True:
            paged += [one[name] for one in page["items"]]
            if page["next"] is None:
                break
            assert len(page["items"]) == 3
            page = site.get(path, limit=3, cursor=page["next"])
        assert paged == whole
        assert len(whole) >= 7


def test_lists_narrow_to_what_was_asked_for(site: Site) -> None:
    event(site)
    event(site, id="8", email="bob@example.com", phone="")
    site.process()
    assert [one["source_id"] for one in site.get("/contacts", q="BOB@")["items"]] == ["8"]
    assert site.get("/contacts", source="legacy")["items"] == []
    assert len(site.get("/inbound", source="shop", outcome="processed")["items"]) == 2
    assert site.get("/inbound", to="2020-01-01")["items"] == []
    assert len(site.get("/inbound", **{"from": "2020-01-01T00:00:00+02:00"})["items"]) == 2
    assert [one["source_id"] for one in site.get("/deliveries", target="sms", state="pending")["items"]] == ["7"]
    assert site.get("/deliveries", error="timeout")["items"] == []
    inbound_id = site.get("/inbound", limit=1)["items"][0]["id"]
    assert {one["inbound"] for one in site.get("/audit", inbound=inbound_id)["items"]} == {inbound_id}


def test_refused_requests_have_a_list_of_their_own(site: Site) -> None:
    site.store.refuse([Refusal("shop", utc_now(), "no signature", 12), Refusal("legacy", utc_now(), "stale", 3)])
    assert {one["source"] for one in site.get("/refusals")["items"]} == {"shop", "legacy"}
    assert [one["reason"] for one in site.get("/refusals", source="shop")["items"]] == ["no signature"]
    hint = site.api("GET", "/inbound", params={"outcome": "refused"})
    assert hint.status_code == 400
    assert "/refusals" in hint.json()["detail"]


# --- how it says no --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "query", "where", "said"),
    [
        ("/deliveries", "stat=failed", "stat", "did you mean 'state'"),
        ("/deliveries", "state=faild", "state", "failed"),
        ("/deliveries", "since=2026-01-01", "since", "unknown name"),
        ("/inbound", "from=yesterday", "from", "ISO 8601"),
        ("/inbound", "from=0001-01-01T00:00:00%2B14:00", "from", "ISO 8601"),
        ("/inbound", "limit=201", "limit", "200"),
        ("/inbound", "limit=0", "limit", "1"),
        ("/inbound", "limit=ten", "limit", "integer"),
        ("/inbound", "limit=1&limit=2", "limit", "more than once"),
        ("/inbound", "cursor=garbage", "cursor", "no cursor"),
        ("/audit", "cursor=MDAwMS0wMS0wMVQwMDowMDowMCsxNDowMCAx", "cursor", "no cursor"),
        ("/audit", "inbound=99999999999999999999", "inbound", "less than"),
        ("/contacts", "q=a%00b", "q", "NUL"),
        ("/contacts", "q=", "q", "at least 1"),
        ("/status", "verbose=1", "verbose", "unknown name"),
    ],
)
def test_a_wrong_query_is_400_and_names_what_is_wrong(
    quiet_site: Site, path: str, query: str, where: str, said: str
) -> None:
    answer = quiet_site.api("GET", f"{path}?{query}")
    assert answer.status_code == 400, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json()
    assert problem["errors"][0]["where"] == where
    assert said in problem["errors"][0]["what"]
    assert where in problem["detail"] or "more than once" in problem["detail"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/replay", {}, 422),
        ("/replay", {"contacts": [], "dry_run": True}, 422),
        ("/replay", {"contacts": [{"source": "shop", "source_id": "7"}], "inbound": [1]}, 422),
        ("/replay", {"deliveries": {"stat": "failed"}}, 422),
        ("/replay", {"inbound": [2**64]}, 422),
        ("/replay", {"inbound": ["x"]}, 422),
        ("/replay", [], 422),
        ("/replay", None, 422),
        ("/targets/sms/pause", {}, 422),
        ("/targets/sms/pause", {"reason": ""}, 422),
        ("/targets/nothing/pause", {"reason": "x"}, 404),
        ("/try", {"source": "nothing", "payload": {}}, 422),
        ("/try", {"source": "shop"}, 422),
        ("/try", {"source": "shop", "payload": {}, "request": {"body": ""}}, 422),
    ],
)
def test_a_wrong_body_is_422_and_changes_nothing(quiet_site: Site, path: str, body: Any, status: int) -> None:
    answer = quiet_site.api("POST", path, json=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["detail"]
    assert not quiet_site.rings


def test_a_slip_in_a_replays_filter_does_not_replay_everything(quiet_site: Site) -> None:
    answer = quiet_site.api("POST", "/replay", json={"deliveries": {"stat": "failed"}})
    assert answer.status_code == 422
    assert "did you mean 'state'" in answer.json()["errors"][0]["what"]
    assert answer.json()["detail"].endswith("did you mean 'state'?")


def test_bodies_that_are_no_json_are_told_apart(quiet_site: Site) -> None:
    as_json = {"Content-Type": "application/json"}
    assert quiet_site.api("POST", "/try", data=b"{", headers=as_json).status_code == 400
    assert quiet_site.api("POST", "/try", data=b"[" * 100_000, headers=as_json).status_code == 400
    assert quiet_site.api("POST", "/try", data=b"\xff", headers=as_json).status_code == 400
    assert quiet_site.api("POST", "/try", data=b"a=b").status_code == 415


def test_methods_that_an_address_does_not_take_are_405(quiet_site: Site) -> None:
    answer = quiet_site.api("DELETE", "/status")
    assert answer.status_code == 405
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert "GET" in answer.headers["Allow"]


@sqlite_is_enough
def test_a_bug_shows_no_traceback_and_no_person(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Health:
        raise ZeroDivisionError("ada@example.com")

    monkeypatch.setattr(site.store, "inbound_page", broken)
    with capture_logs() as logged:
        answer = site.api("GET", "/inbound")
    assert answer.status_code == 500
    assert "Traceback" not in answer.text
    assert "ZeroDivisionError" in str(logged)
    assert "ada@example.com" not in str(logged) + answer.text


# --- doing -----------------------------------------------------------------------------------------------


def test_a_replay_marks_contacts_and_wakes_the_worker(site: Site) -> None:
    event(site)
    site.process()
    body: dict[str, Any] = {"contacts": [{"source": "shop", "source_id": "7"}]}
    dry = site.api("POST", "/replay", json={**body, "dry_run": True})
    assert dry.json() == {"count": 1, "dry_run": True}
    assert not site.rings
    assert not site.store.work("shop", utc_now(), 10).keys
    done = site.api("POST", "/replay", json=body)
    assert done.json() == {"count": 1, "dry_run": False}
    assert len(site.rings) == 1
    assert list(site.store.work("shop", utc_now(), 10).replays) == [RecordKey("shop", "7")]


def test_a_replay_takes_a_filter_of_deliveries(site: Site) -> None:
    for number in range(3):
        event(site, id=str(number), phone="415555010" + str(number))
    site.process()
    for narrowed, count in (({"target": "sms", "state": "pending"}, 3), ({"state": "failed"}, 0), ({}, 3)):
        body = {"deliveries": narrowed}
        assert site.api("POST", "/replay", json={**body, "dry_run": True}).json()["count"] == count
        assert site.api("POST", "/replay", json=body).json()["count"] == count


def test_stored_webhooks_are_read_again(site: Site) -> None:
    inbound_id = event(site)
    site.process()
    body: dict[str, Any] = {"inbound": [inbound_id, 99]}
    assert site.api("POST", "/replay", json={**body, "dry_run": True}).json()["count"] == 1
    assert site.api("POST", "/replay", json=body).json()["count"] == 1
    assert [one.id for one in site.store.work("shop", utc_now(), 10).inbounds] == [inbound_id]
    assert len(site.rings) == 1


def test_a_paused_target_holds_its_deliveries_until_it_is_resumed(site: Site) -> None:
    event(site)
    site.process()
    paused = site.api("POST", "/targets/sms/pause", json={"reason": "moving house"}).json()
    assert (paused["mode"], paused["by"]) == ("paused", "api")
    assert "moving house" in paused["reason"]
    assert site.get("/deliveries", target="sms")["items"][0]["state"] == "held"
    assert not site.rings
    resumed = site.api("POST", "/targets/sms/resume").json()
    assert resumed["mode"] == "open"
    assert site.get("/deliveries", target="sms")["items"][0]["state"] == "pending"
    assert len(site.rings) == 1
    assert {one["target"] for one in site.get("/audit", kind="target")["items"]} == {"sms"}


# --- trying out ------------------------------------------------------------------------------------------


def try_out(site: Site, **body: Any) -> Any:
    answer = site.api("POST", "/try", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


@sqlite_is_enough
def test_a_dry_run_says_what_each_target_would_get_and_why_not(site: Site) -> None:
    payload = {"type": "contact.updated", "timestamp": "2026-03-01T10:00:00Z", "data": {**ADA, "phone": "12"}}
    tried = try_out(site, source="shop", payload=payload)
    assert tried["genuine"] is None
    sms, marketing = tried["routes"]
    fields = {one["field"]: one for one in sms["fields"]}
    assert fields["mobile"]["value"] is None
    assert "phone" in fields["mobile"]["left_out"]
    assert marketing["decision"] == "wait"
    assert "tier" in marketing["reason"]
    [email] = marketing["fields"]
    assert email["value"] == "ada@example.com"
    assert "nothing of this contact is" in email["left_out"]
    assert site.inbounds() == 0
    assert site.get("/contacts")["items"] == []


@sqlite_is_enough
def test_a_dry_run_takes_more_fields_than_the_webhook_has(site: Site) -> None:
    payload = {"type": "contact.updated", "data": ADA}
    tried = try_out(site, source="shop", payload=payload, fields={"tier": "gold", "stop": "yes"})
    assert [one["decision"] for one in tried["routes"]] == ["opt_out", "send"]
    [contact] = tried["contacts"]
    assert contact["fields"]["tier"]["value"] == "gold"


def test_a_dry_run_may_start_from_what_is_known(site: Site) -> None:
    event(site, tier="gold")
    site.process()
    payload = {"type": "contact.updated", "timestamp": "2026-03-02T10:00:00Z", "data": {"id": "7", "name": "A."}}
    alone = try_out(site, source="shop", payload=payload)
    known = try_out(site, source="shop", payload=payload, stored=True)
    assert [one["decision"] for one in alone["routes"]] == ["wait", "wait"]
    assert [one["decision"] for one in known["routes"]] == ["send", "send"]
    assert site.get("/contacts/shop/7")["fields"]["name"]["value"] == "Ada"


@sqlite_is_enough
def test_a_dry_run_of_a_raw_request_says_whether_it_is_genuine(site: Site) -> None:
    signed = site.signed("shop", json.dumps({"type": "contact.updated", "data": ADA}).encode())
    text, headers = signed.body.decode(), dict(signed.headers)
    assert try_out(site, source="shop", request={"body": text, "headers": headers})["genuine"] is True
    changed = try_out(site, source="shop", request={"body": text + " ", "headers": headers})
    assert changed["genuine"] is False
    assert changed["refused_because"]
    assert changed["routes"]
    assert try_out(site, source="shop", request={"body": "not json"})["problem"]


# --- the description -------------------------------------------------------------------------------------


def test_every_route_is_described_and_every_described_route_exists(quiet_site: Site) -> None:
    described = {
        (method.upper(), path)
        for path, item in document(quiet_site)["paths"].items()
        for method in item
        if method != "parameters"
    }
    served = {
        (method, openapi.as_template(rule.rule))
        for rule in quiet_site.app.url_map.iter_rules()
        if rule.rule.startswith(MACHINES) and not rule.rule.startswith("/assets/")  # the rest is for people
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert described == served
    assert len(described) >= 20


def test_every_reference_in_the_description_leads_somewhere(quiet_site: Site) -> None:
    described = document(quiet_site)
    references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(described)))
    assert references
    assert references <= described["components"]["schemas"].keys()


def test_what_is_answered_is_what_is_described(quiet_site: Site) -> None:
    described = document(quiet_site)
    inbound_id = quiet_site.get("/inbound")["items"][0]["id"]
    looked_at = 0
    for operation in OPERATIONS:
        if operation.method != "GET":
            continue
        path = operation.path.replace("<int:inbound_id>", str(inbound_id))
        path = path.replace("<source>/<path:source_id>", "shop/7")
        answer = quiet_site.get(path)
        schema = {"$ref": f"#/components/schemas/{operation.answer.__name__}"}
        assert mismatches(described, schema, answer) == []
        looked_at += 1
    assert looked_at == 8


def test_every_query_parameter_is_described(quiet_site: Site) -> None:
    paths = document(quiet_site)["paths"]
    parameters = {one["name"] for one in paths[f"{PREFIX}/deliveries"]["get"]["parameters"]}
    assert parameters == {"target", "source", "source_id", "state", "error", "from", "to", "q", "cursor", "limit"}


def test_the_page_names_every_route_and_parameter(quiet_site: Site) -> None:
    page = (Path(__file__).parent.parent / "docs" / "api.md").read_text()
    for operation in OPERATIONS:
        row = next(
            (
                line
                for line in page.splitlines()
                if f"`{operation.method} {PREFIX}{openapi.as_template(operation.path)}`" in line
            ),
            "",
        )
        assert row, operation.path
        for name in query_names(operation.query) if operation.query else ():
            assert name in {"cursor", "limit"} or f"`{name}`" in row, (operation.path, name)


def document(site: Site) -> Any:
    answer = site.session.get(site.url + openapi.PATH, timeout=5)
    assert answer.status_code == 200
    return answer.json()


TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def mismatches(document: Any, schema: Any, value: Any, where: str = "$") -> list[str]:
    """Return where *value* is not as *schema* says; enough of JSON Schema for what we write."""
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        tried = [mismatches(document, one, value, where) for one in schema["anyOf"]]
        return [] if [] in tried else tried[0]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{where}: {value!r} is none of {schema['enum']}"]
    if "type" in schema and not isinstance(value, TYPES[schema["type"]]):
        return [f"{where}: {value!r} is no {schema['type']}"]
    wrong: list[str] = []
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        wrong += [f"{where}: {name} is missing" for name in schema.get("required", ()) if name not in value]
        if properties:
            wrong += [f"{where}: {name} is not described" for name in value if name not in properties]
        more = schema.get("additionalProperties")
        for name, one in value.items():
            inner = properties.get(name, more if isinstance(more, dict) else {})
            wrong += mismatches(document, inner, one, f"{where}.{name}")
    if isinstance(value, list):
        for index, one in enumerate(value):
            wrong += mismatches(document, schema.get("items", {}), one, f"{where}[{index}]")
    return wrong


# --- whatever is asked, it is never our fault -------------------------------------------------------------

QUERIES = {one.path: one.query for one in OPERATIONS if one.query is not None}


# A strategy is made once: making it takes longer than drawing from it.
@cache
def queries(path: str) -> st.SearchStrategy[dict[str, str]]:
    """Return queries of the call at *path*: with names that it knows, and with others."""
    values = st.one_of(
        st.text(max_size=20),
        st.sampled_from(
            ["", "0", "1", "200", "-1", "1e9", "null", "NaN", "failed", "shop", "2026-02-30", "T", "=="]
        ),
        st.integers(min_value=-(2**70), max_value=2**70).map(str),
        st.datetimes().map(lambda moment: moment.isoformat()),
        st.binary(max_size=24).map(lambda raw: raw.hex()),
    )
    names = st.one_of(st.sampled_from(query_names(QUERIES[path])), st.text(max_size=8))
    return st.dictionaries(names, values, max_size=4)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_query_makes_the_server_fail(quiet_site: Site, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(QUERIES)))
    query = data.draw(queries(path))
    client = quiet_site.app.test_client()
    answer = client.get(PREFIX + path, query_string=query, headers={"Authorization": f"Bearer {API_TOKEN}"})
    assert answer.status_code in {200, 400, 422}
    assert answer.is_json


@cache
def json_values() -> st.SearchStrategy[Any]:
    plain = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=10))
    return st.recursive(
        plain,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)
        ),
    )


@cache
def trials() -> st.SearchStrategy[dict[str, Any]]:
    """Return bodies of a dry run without their source: a payload, or a whole request."""
    payloads = st.one_of(json_values(), json_values().map(lambda one: {"type": "x", "data": one}))
    headers = st.dictionaries(st.text(max_size=12), st.text(max_size=12), max_size=3)
    requests = st.fixed_dictionaries({"body": st.text(max_size=40), "headers": headers})
    fields = st.dictionaries(st.sampled_from(["phone", "tier", "stop", "x"]), json_values())
    return st.one_of(
        st.fixed_dictionaries({"payload": payloads, "fields": fields}),
        st.fixed_dictionaries({"request": requests, "fields": fields}),
    )


@pytest.mark.parametrize("quiet_site", ["sqlite"], indirect=True)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_body_makes_the_server_fail(quiet_site: Site, data: st.DataObject) -> None:
    source = data.draw(st.sampled_from(sorted(quiet_site.config.sources)))
    body = {"source": source, **data.draw(trials())}
    client = quiet_site.app.test_client()
    answer = client.post(
        f"{PREFIX}/try",
        data=json.dumps(body),
        content_type="application/json",
        headers={"Authorization": f"Bearer {API_TOKEN}"},
    )
    assert answer.status_code in {200, 422}
    assert answer.is_json


def query_names(query: type[Input] | None) -> list[str]:
    assert query is not None
    return [field.alias or name for name, field in query.model_fields.items()]
