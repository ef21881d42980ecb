"""Webhooks in a browser: the list, one webhook with what it says and what came of it, and processing it again."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from html import unescape
from typing import Any
from urllib.parse import urlencode

import pytest

from bridge.model import Outcome, utc_now
from bridge.store.looking import Role
from bridge.store.protocol import Filter, Inbound, NewInbound, Page
from bridge.web.pages import webhooks, wire
from tests.platforms import PUBLIC_URL, person, signed, webhook
from tests.stage import EDITED, ERASED, FAILED, PRUNED, SYNCED, USERS, Session, Stage, text_of

NOW = utc_now()


@pytest.fixture(scope="module")
def ada(stage: Stage) -> Iterator[Session]:
    with stage.session() as session:
        yield session


def rows(html: str) -> list[int]:
    return [int(found) for found in re.findall(r'<tr id="webhook-(\d+)"', html)]


def about(stage: Stage, number: int) -> list[Inbound]:
    """Return the webhooks about a person of the stage, oldest first."""
    found = stage.store.inbound_page(Filter(source="shop", source_id=f"84{number:03}"), None, 50).items
    return list(found)[::-1]


def of_outcome(stage: Stage, outcome: Outcome) -> Inbound:
    return stage.store.inbound_page(Filter(outcome=outcome.value), None, 1).items[0]


def receive(stage: Stage, body: bytes) -> int:
    """Have the stage receive *body*, signed; return the id of the webhook."""
    request = signed(stage.config, body, f"msg_{utc_now().timestamp()}")
    with Session(stage.url) as sender:
        answer = sender.post(
            request.url.replace(PUBLIC_URL, stage.url),
            data=request.body,
            headers=dict(request.headers),
            timeout=10,
        )
    assert answer.status_code == 200, answer.text
    return int(answer.json()["id"])


# --- the list ------------------------------------------------------------------------------------------------


def test_the_list_shows_what_came_and_what_became_of_it(stage: Stage, ada: Session) -> None:
    html = ada.page("/webhooks")
    assert rows(html) == [one.id for one in stage.store.inbound_page(Filter(), None, 50).items]
    said = text_of(html)
    assert "unreadable 0 The body is not JSON that bridge can read." in said
    assert "Its payload was pruned or erased." in said
    assert "1 time" in said
    assert re.search(r"shop #\d+ changed processed", said)
    assert "data-live" in html


@pytest.mark.parametrize(
    "query",
    [
        {"outcome": "unreadable"},
        {"outcome": "ignored"},
        {"outcome": "duplicate"},
        {"q": "person 6"},
        {"q": "person6@example.com"},
    ],
    ids=str,
)
def test_each_filter_narrows_the_list_and_is_kept_on_the_way(
    stage: Stage, ada: Session, query: dict[str, Any]
) -> None:
    html = ada.page(f"/webhooks?{urlencode(query)}")
    found = [one.id for one in stage.store.inbound_page(Filter(**query), None, 50).items]
    assert rows(html) == found
    assert 0 < len(found) < 5
    (name,) = query
    assert re.search(rf'<a href="/webhooks/{found[0]}\?{name}=[^"]+">', html)


def test_a_time_narrows_the_list(stage: Stage, ada: Session) -> None:
    first, second = stage.store.inbound_page(Filter(), None, 2).items
    ends = {"from": second.received_at.isoformat(), "to": first.received_at.isoformat()}
    html = ada.page(f"/webhooks?{urlencode(ends)}")
    assert rows(html) == [second.id]
    assert "data-live" not in html


def test_refused_requests_are_looked_for_where_they_are(ada: Session) -> None:
    html = ada.page("/webhooks", outcome="refused")
    assert rows(html) == []
    assert "Refused requests are kept apart" in html
    assert '<a href="/sources">' in html


def test_an_empty_list_says_what_to_do(ada: Session) -> None:
    html = ada.page("/webhooks", q="nobody at all")
    assert '<a href="/webhooks">Take all filters away</a>' in html


def test_a_search_that_ended_early_says_how_far_it_looked(
    stage: Stage, ada: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    page: Page[Inbound] = Page([], "17", NOW)
    monkeypatch.setattr(stage.store, "inbound_page", lambda *_: page)
    html = ada.page("/webhooks", q="rare")
    assert "bridge looked back as far as that" in html
    assert 'href="/webhooks?cursor=17&amp;q=rare"' in html


def test_an_exact_id_opens_its_webhook(ada: Session) -> None:
    query = {"q": "3", "jump": "1"}
    answer = ada.get(f"{ada.url}/webhooks", params=query, allow_redirects=False, timeout=5)
    assert answer.headers["Location"] == "/webhooks/3"


# --- one webhook ---------------------------------------------------------------------------------------------


def test_a_webhook_tells_its_whole_story(stage: Stage, ada: Session) -> None:
    one = about(stage, FAILED)[0]
    html = ada.page(f"/webhooks/{one.id}")
    said = text_of(html)
    assert "Genuine: it passed the check with the source's secret. It was signed" in said
    assert "1 event about 1 contact" in said
    assert "Event type changed" in said
    assert "changed 84006" in said
    assert "mobile phone phone +525512340006 +525512340006" in said  # field, rule, what it reads, what it gives
    assert "opt_out stop == 'yes' stop not mentioned" in said
    assert "Sakari refused searching for the contact (HTTP 400)." in said
    assert "webhook-id" in said
    assert '"email": "person6@example.com"' in unescape(html)
    entries = stage.store.audit_page(Filter(inbound_id=one.id), None, 50).items
    assert [int(found) for found in re.findall(r'<tr id="entry-(\d+)"', html)] == [entry.id for entry in entries]


def test_what_it_says_by_itself_stands_beside_what_is_known_by_now(stage: Stage, ada: Session) -> None:
    first, last = about(stage, EDITED)
    html = ada.page(f"/webhooks/{first.id}")
    row = re.search(r'<th scope="row" data-label="Field there">firstName.*?</tr>', html, re.DOTALL)
    assert row
    assert text_of(f"<main{row[0]}</main>").endswith("Grace Person 2")
    said = text_of(ada.page(f"/webhooks/{last.id}"))
    assert "lastName surname cleared when the source clears it surname not mentioned" in said
    assert "the same" in said


def test_the_neighbours_are_those_of_the_list_one_came_from(stage: Stage, ada: Session) -> None:
    first, last = about(stage, EDITED)
    html = ada.page(f"/webhooks/{last.id}", q="grace", within="all")
    assert f'<a class="button" href="/webhooks/{first.id}?q=grace&amp;within=all" rel="next">Older</a>' in html
    assert 'rel="prev"' not in html
    assert '<a href="/webhooks?q=grace&amp;within=all" data-back>' in html
    assert "view=raw&amp;q=grace&amp;within=all#body" in html


def test_the_body_is_shown_laid_out_or_as_it_came_and_can_be_taken_along(stage: Stage, ada: Session) -> None:
    one = about(stage, FAILED)[0]
    assert one.body is not None
    path = f"/webhooks/{one.id}"
    body = re.search(r'<div id="body">.*?<code>(.*?)</code>', ada.page(path, view="raw"), re.DOTALL)
    assert body
    assert unescape(body[1]) == one.body.decode()
    answer = ada.get(f"{ada.url}{path}/body", timeout=5)
    assert answer.content == one.body
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["Content-Disposition"] == f'attachment; filename="webhook-{one.id}.json"'


@pytest.mark.parametrize("number", [PRUNED, ERASED])
def test_a_payload_that_is_gone_is_said_to_be(stage: Stage, ada: Session, number: int) -> None:
    one = about(stage, number)[0]
    html = ada.page(f"/webhooks/{one.id}")
    assert "Its payload is gone" in html
    assert "Process again" not in html
    assert "nothing left to download" in ada.page(f"/webhooks/{one.id}/body", status=404)
    assert "cannot be processed again" in ada.page(f"/webhooks/{one.id}/replay", status=409)


def test_what_cannot_be_read_or_is_nothing_of_ours_says_why(stage: Stage, ada: Session) -> None:
    unreadable = ada.page(f"/webhooks/{of_outcome(stage, Outcome.UNREADABLE).id}")
    assert "The body is not JSON that bridge can read." in unreadable
    assert "not json" in unreadable
    assert "The payload&#39;s kind says to ignore it." in ada.page(
        f"/webhooks/{of_outcome(stage, Outcome.IGNORED).id}"
    )


def test_a_webhook_that_is_not_there_is_a_page_that_says_so(ada: Session) -> None:
    assert "There is no webhook 999999." in ada.page("/webhooks/999999", status=404)
    assert "There is no webhook" in ada.page(f"/webhooks/{2**70}", status=404)


def test_too_many_contacts_are_not_all_worked_out(
    stage: Stage, ada: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "CONTACTS_TRIED", 0)
    html = ada.page(f"/webhooks/{about(stage, SYNCED)[0].id}")
    assert "to work all out here" in html


def test_a_source_that_is_no_longer_configured_still_has_its_webhooks(own_stage: Stage) -> None:
    url = f"{PUBLIC_URL}/hooks/gone"
    (taken,) = own_stage.store.receive([NewInbound("gone", NOW, "POST", url, {}, b'{"a": 1}', ("key",))])
    with own_stage.session() as session:
        said = text_of(session.page(f"/webhooks/{taken.id}"))
        assert "It passed the check of the source gone, which is no longer configured." in said
        assert "what the webhook says cannot be told" in said
        assert '{ "a": 1 }' in said
        assert "it speaks of no contact" in text_of(session.page(f"/webhooks/{taken.id}/replay"))


@pytest.mark.parametrize(
    ("index", "said"),
    [(0, "the first of 2 secrets"), (1, "the second of 2 secrets"), (2, "the source's third secret of that time")],
)
def test_the_verdict_names_the_secret_by_its_place(stage: Stage, index: int, said: str) -> None:
    connection = stage.config.sources["shop"]
    two = replace(connection, settings=replace(connection.settings, secrets=connection.settings.secrets * 2))
    one = replace(about(stage, SYNCED)[0], secret_index=index)
    assert webhooks.verdict(one, two) == f"Genuine: it passed the check with {said}."


def test_a_hostile_webhook_breaks_no_page(own_stage: Stage) -> None:
    fields: dict[str, Any] = {f"<b>{n}\u202e</b>": n for n in range(2_000)}
    data = {**person(77), "name": "<img src=x>\u0007" * 20_000, **fields}
    many = receive(own_stage, webhook("changed", data, utc_now()))
    own_stage.work()
    with own_stage.session() as session:
        html = session.page(f"/webhooks/{many}")
        assert len(html) < 400_000
        assert "<img" not in html
        assert "\u202e" not in html
        assert "\x07" not in html
        said = text_of(html)
        assert "more fields, which are in the body below" in said
        assert "This is its beginning; the whole of it" in said
        assert f"--data-binary @webhook-{many}.json" in said
        assert session.page("/audit", field="<b>1\u202e</b>").count('<tr id="entry-') == 1


def test_what_a_sender_calls_its_event_is_shown_and_does_nothing(own_stage: Stage) -> None:
    one = receive(own_stage, webhook("<i>odd</i>\u202e\x07" + "x" * 5_000, person(77), utc_now()))
    own_stage.work()
    with own_stage.session() as session:
        for path in (f"/webhooks/{one}", "/webhooks", "/audit"):
            html = session.page(path)
            assert f"&lt;i&gt;odd&lt;/i&gt;{'x' * 80}" in html.partition("<h2>")[0]
            assert not [found for found in ("<i>", "\u202e", "\x07") if found in html]


# --- processing it again -------------------------------------------------------------------------------------


def test_processing_again_asks_first_and_is_an_entry_of_its_own(own_stage: Stage) -> None:
    one = about(own_stage, SYNCED)[0]
    path = f"/webhooks/{one.id}/replay"
    with own_stage.session(Role.OPERATOR) as otto:
        assert f'href="{path}" data-retry' in otto.page(f"/webhooks/{one.id}")
        asked = text_of(otto.page(path))
        assert "1 event of shop" in asked
        assert "at most 4 deliveries" in asked
        stored = own_stage.store.inbound(one.id)
        assert stored is not None
        assert stored.outcome is Outcome.PROCESSED  # asking changes nothing
        answer = otto.submit(path)
    assert answer.url == f"{own_stage.url}/webhooks/{one.id}"
    assert "It is processed again from its bytes." in answer.text
    assert "It is stored; the worker reads it next." in answer.text
    assert "Spoke of 1 contact." not in answer.text  # that was before
    stored = own_stage.store.inbound(one.id)
    assert stored is not None
    assert stored.outcome is Outcome.ACCEPTED
    assert own_stage.rings
    entry = own_stage.store.audit_page(Filter(inbound_id=one.id, kind="replay"), None, 1).items[0]
    assert entry.reason.startswith(f"Asked for by {USERS[Role.OPERATOR]}:")


def test_who_only_looks_is_offered_no_action_and_can_take_none(stage: Stage) -> None:
    one = about(stage, SYNCED)[0]
    with stage.session(Role.VIEWER) as vera:
        assert "Process again" not in vera.page(f"/webhooks/{one.id}")
        assert "for the role operator" in vera.page(f"/webhooks/{one.id}/replay", status=403)
        answer = vera.submit(f"/webhooks/{one.id}/replay", form_at="/account")
        assert answer.status_code == 403


# --- the request as it came ----------------------------------------------------------------------------------


def stored_as(body: bytes | None, **parts: Any) -> Inbound:
    given = Inbound(
        id=7,
        source="shop",
        received_at=NOW,
        method="POST",
        url="https://bridge.example.com/hooks/shop",
        headers={"content-type": "application/json"},
        body=body,
        outcome=Outcome.PROCESSED,
        reason="",
        events=1,
        secret_index=0,
        signed_at=NOW,
        processed_at=NOW,
    )
    return replace(given, **parts)


FORM = "application/x-www-form-urlencoded; charset=utf-8"
LAID_OUT = [
    (b'{"a":[1,"\xc3\xa9"]}', "", "JSON", '{\n  "a": [\n    1,\n    "é"\n  ]\n}'),
    (b"name=Ada+L&empty=&name=B", FORM, "form", "name: Ada L\nempty: \nname: B"),
    (b'{"rtl": "\xe2\x80\xae"}', FORM, "JSON", '{\n  "rtl": "\\u202e"\n}'),
]


@pytest.mark.parametrize(("body", "content_type", "form", "text"), LAID_OUT)
def test_a_body_is_laid_out_for_reading(body: bytes, content_type: str, form: str, text: str) -> None:
    shown = wire.readable(body, content_type)
    assert shown is not None
    assert (shown.form, shown.text, shown.cut) == (form, text, False)


@pytest.mark.parametrize(
    "body", [b"plain", b"\xff\xfe", b"", b"[" * 100_000], ids=["text", "bytes", "nothing", "deep"]
)
def test_what_has_no_form_is_shown_as_it_came(body: bytes) -> None:
    assert wire.readable(body, "application/json") is None
    assert wire.raw(body).size_bytes == len(body)


def test_bytes_that_are_no_text_are_shown_one_by_one() -> None:
    shown = wire.raw(b"\x00\xffAda says hello!\n")
    assert shown.text.splitlines() == [
        "000000  00 ff 41 64 61 20 73 61 79 73 20 68 65 6c 6c 6f  ..Ada says hello",
        "000010  21 0a                                            !.",
    ]
    assert wire.raw(b"\xff" * 10_000).cut


def test_secrets_in_headers_and_in_the_url_are_not_shown() -> None:
    headers = {
        "authorization": "Basic c2VjcmV0",
        "x-hub-signature-256": "sha256=00",
        "x-hubspot-signature-version": "v3",
        "cookie": "a=b",
        "user-agent": "crm \u202e",
    }
    assert dict(wire.masked_headers(headers)) == {
        "authorization": wire.HIDDEN,
        "cookie": wire.HIDDEN,
        "user-agent": "crm \\u202e",
        "x-hub-signature-256": wire.HIDDEN,
        "x-hubspot-signature-version": "v3",
    }
    masked = wire.masked_url("https://b.example.com/hooks/crm?token=abc&user=7&api_key=d&key=x&flag")
    assert (
        masked
        == f"https://b.example.com/hooks/crm?token={wire.HIDDEN}&user=7&api_key={wire.HIDDEN}&key={wire.HIDDEN}&flag"
    )


def test_the_command_sends_the_same_bytes_and_proves_nothing(stage: Stage) -> None:
    body = json.dumps({"name": 'O\'Hara $(rm -rf ~) `id` \\ "x" é\n'}, ensure_ascii=False).encode()
    request = signed(stage.config, body, "msg_1")
    headers = stage.config.sources["shop"].type.keeps(request.headers)
    one = stored_as(body, headers=headers, url=request.url)
    words = shlex.split(wire.curl(stage.config.sources["shop"], one, NOW).replace("\\\n", ""))
    assert words[:4] == ["curl", "-X", "POST", request.url]
    assert words[words.index("--data-binary") + 1].encode() == body
    given = dict(words[n + 1].split(": ", 1) for n, word in enumerate(words) if word == "-H")
    assert given["webhook-id"] == "msg_1"
    assert given["webhook-signature"] == wire.MADE_BY_SIGNING
    assert request.headers["webhook-signature"] not in " ".join(words)


@pytest.mark.parametrize(
    "body", [b"\xff\x00", b'{"a":"\\u0007"}'.decode("unicode_escape").encode(), b"@/etc/passwd", b"a" * 20_000]
)
def test_a_body_that_does_not_show_what_it_is_comes_from_a_file(stage: Stage, body: bytes) -> None:
    command = wire.curl(stage.config.sources["shop"], stored_as(body), NOW)
    assert re.search(r"--data-binary @webhook-7\.(body|json)$", command)


def test_a_request_without_its_payload_has_no_command(stage: Stage) -> None:
    assert wire.curl(stage.config.sources["shop"], stored_as(None), NOW) == ""
    with_token = stored_as(b"{}", url="https://bridge.example.com/hooks/crm/…?pwd=1&a=b")
    assert wire.curl(None, with_token, NOW).splitlines()[0] == (
        f"curl -X POST 'https://bridge.example.com/hooks/crm/<token>?pwd={wire.HIDDEN}&a=b' \\"
    )
    assert "--data-binary '{}'" in wire.curl(None, with_token, NOW)
