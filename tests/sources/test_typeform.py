"""What is particular to Typeform."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest

from bridge.errors import BadPayload, BadSignature, SourceUnavailable
from bridge.model import InboundRequest, Secret
from bridge.outbound import Api, new_session
from bridge.sources.base import Registrar
from bridge.sources.recording import read_recording
from bridge.sources.typeform import SOURCE, Settings, Typeform
from tests.sources.fake_typeform import Typeform as Fake
from tests.sources.kit import BASE_URL, FIXTURES, NOW, connection, one_change, only, parse_body, vectors

OF_RECORDINGS = connection("typeform").source
URL = f"{BASE_URL}/hooks/crm"


def recording(name: str) -> dict[str, Any]:
    path = FIXTURES / "typeform" / f"{name}.http"
    body: dict[str, Any] = json.loads(read_recording(path.read_bytes(), BASE_URL).body)
    return body


def response(*answers: dict[str, Any], **more: Any) -> dict[str, Any]:
    body = recording("response")
    body["form_response"] |= {"answers": list(answers), **more}
    return body


def answer(kind: str, value: Any, ref: str | None = "it") -> dict[str, Any]:
    return {"type": kind, kind: value, "field": {"id": "q1", "ref": ref}}


def identified(contact_id: str) -> Typeform:
    return Typeform("crm", Settings((Secret("s"),), contact_id))


# --- the signature ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", vectors("typeform"), ids=lambda one: one["id"])
def test_the_vector_is_taken_and_what_resembles_it_is_not(vector: dict[str, Any]) -> None:
    body = vector["body"].encode()
    assert (len(body), hashlib.sha256(body).hexdigest()) == (vector["body_len"], vector["body_sha256"])
    source = Typeform("crm", Settings((Secret("new"), Secret(f"{vector['secret']}\n"))))
    signature = vector["typeform_signature"]
    request = InboundRequest("POST", URL, {"typeform-signature": signature}, body)
    for at in (NOW, NOW + timedelta(days=400)):
        genuine = source.verify(request, at)
        assert (genuine.secret_index, genuine.signed_at) == (1, None)
    as_hex = hashlib.sha256(body).hexdigest()
    for wrong in (
        "",
        signature[7:],
        signature.upper(),
        f"{signature}, {signature}",
        f"sha256={as_hex}",
        "sha256=",
    ):
        with pytest.raises(BadSignature):
            source.verify(replace(request, headers={"typeform-signature": wrong}), NOW)
    with pytest.raises(BadSignature):
        source.verify(replace(request, body=body + b"\n"), NOW)


@pytest.mark.parametrize(
    "more",
    [
        {"secrets": ()},
        {"secrets": (Secret(" "),)},
        {"token": Secret(""), "forms": ("a",)},
        {"token": Secret("t")},
        {"forms": ("a",)},
    ],
)
def test_settings_that_cannot_work_are_refused(more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"secrets|token|forms"):
        Typeform("crm", Settings(**{"secrets": (Secret("s"),), **more}))


# --- who it is -------------------------------------------------------------------------------------------


def id_of(source: Typeform, *answers: dict[str, Any], **more: Any) -> str:
    return one_change(source, response(*answers, **more)).key.source_id


def test_one_address_is_one_contact_whatever_form_it_fills_in() -> None:
    source = Typeform("crm", Settings((Secret("s"),)))
    ada = id_of(source, answer("email", "Ada@Example.com"))
    assert ada == id_of(source, answer("email", " ada@example.com", "other"), form_id="another", token="T2")
    assert ada == id_of(source, answer("text", "ada@example.com", "email"))
    assert ada == id_of(source, hidden={"email": "ada@example.com"})
    # The first question for an address counts, not what another one is called.
    both = (answer("email", "ada@example.com", "mine"), answer("email", "bob@example.com", "email"))
    assert ada == id_of(source, *both)
    assert ada != id_of(source, *reversed(both))
    assert id_of(source, answer("text", "no address", "email"), token="T3") == "T3"


def test_a_hidden_field_names_the_contact_as_it_is_and_an_answer_does_not() -> None:
    source = identified("crm_id")
    address = answer("email", "ada@example.com")
    assert id_of(source, address, hidden={"crm_id": "84001"}) == "84001"
    typed = id_of(source, answer("phone_number", "+14155550123", "crm_id"))
    assert "4155550123" not in typed
    assert typed == id_of(source, answer("phone_number", "+14155550123", "crm_id"), token="T2")
    assert "ada" not in id_of(source, hidden={"crm_id": "ada@example.com"})


@pytest.mark.parametrize("hidden", [{}, {"crm_id": ""}, {"crm_id": "xxxxx"}, {"crm_id": ["84001"]}, None, []])
def test_a_link_that_was_not_filled_in_names_nobody(hidden: object) -> None:
    """Typeform's own link holds the placeholder: everyone who takes it would be one contact."""
    event = only(identified("crm_id"), response(answer("email", "ada@example.com"), hidden=hidden))
    assert "whose response it is" in event.unreadable


def test_no_address_stands_in_an_id_a_key_or_the_order_of_events() -> None:
    for body in (
        recording("response"),
        recording("email_as_text"),
        response(token="ada@example.com"),
        response(answer("email", "ada@example.com"), token="ada@example.com"),
    ):
        (event,) = parse_body(OF_RECORDINGS, body)
        told = repr([event.key, event.unreadable, [(change.key, change.version) for change in event.changes]])
        assert "ada@" not in told.lower()


def test_a_retry_is_a_repeat() -> None:
    key = only(OF_RECORDINGS, recording("response")).key
    assert only(OF_RECORDINGS, {**recording("response"), "event_id": "another"}).key != key
    unnamed = {**recording("response"), "event_id": None}
    assert only(OF_RECORDINGS, unnamed).key == only(OF_RECORDINGS, unnamed).key != key
    nonsense = {**recording("without_time"), "event_id": recording("response")["event_id"]}
    assert only(OF_RECORDINGS, nonsense).key != key


# --- what it says ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (answer("text", ""), ""),
        (answer("boolean", False), False),
        (answer("number", 0), 0),
        (answer("number", 1.5), 1.5),
        (answer("choice", {"label": "London"}), "London"),
        (answer("choice", {"other": "A mill"}), "A mill"),
        (answer("choices", {"labels": ["a", 7]}), ["a"]),
        (answer("choices", {"other": "b"}), ["b"]),
    ],
)
def test_an_answer_is_what_was_given(given: dict[str, Any], expected: object) -> None:
    assert one_change(OF_RECORDINGS, response(given)).fields["it"] == expected


@pytest.mark.parametrize(
    "given",
    [
        answer("text", None),
        answer("text", ["x"]),
        answer("choice", {}),
        answer("choice", "x"),
        answer("payment", {"amount": "1"}),
        answer("payment", "1"),
        {"type": "text", "field": {"ref": "it"}},
        {"text": "x", "field": {"ref": "it"}},
        {"type": ["text"], "text": "x", "field": {"ref": "it"}},
        {"type": "text", "text": "x"},
        {"type": "text", "text": "x", "field": {}},
        7,
    ],
)
def test_what_is_no_answer_says_nothing(given: Any) -> None:
    fields = one_change(OF_RECORDINGS, response(given, hidden=7, calculated={"score": "9"})).fields
    assert dict(fields) == {"form_id": "lT4Z3j"}


def test_a_question_without_a_name_goes_by_its_id() -> None:
    assert one_change(OF_RECORDINGS, response(answer("text", "x", None))).fields["q1"] == "x"


def test_an_answer_comes_before_a_hidden_field_of_its_name() -> None:
    change = one_change(OF_RECORDINGS, response(answer("text", "typed"), hidden={"it": "hidden", "score": "1"}))
    assert (change.fields["it"], change.fields["score"]) == ("typed", "1")


@pytest.mark.parametrize("body", [b"[]", b"{}", b'"x"', b'{"event_type": null}', b'{"form_response": {}}'])
def test_what_typeform_never_sends_is_a_bad_payload(body: bytes) -> None:
    with pytest.raises(BadPayload):
        parse_body(OF_RECORDINGS, body)


# --- registering -----------------------------------------------------------------------------------------


@dataclass
class TypeformAccount:
    """A fake Typeform and what bridge calls it with."""

    fake: Fake
    api: Api

    def registrar(self, secret: str = "our-secret", *forms: str) -> Registrar:
        assert SOURCE.registrar is not None
        settings = Settings(
            (Secret(f"{secret}\n"),), token=Secret(Fake.token), forms=forms or tuple(self.fake.forms)
        )
        made = SOURCE.registrar("crm", settings)
        assert made is not None
        return made

    def webhooks(self, form: str) -> list[dict[str, Any]]:
        return list(self.fake.forms[form].values())


@contextmanager
def account(**switches: str) -> Iterator[TypeformAccount]:
    fake = Fake("lT4Z3j", "u6nXL7", **switches)
    with fake.serve() as base_url, new_session() as session:
        yield TypeformAccount(fake, Api(base_url, session=session, connect_timeout_s=2, read_timeout_s=0.5))


@pytest.mark.parametrize("secrets", Fake.SWITCHES["secrets"])
@pytest.mark.parametrize("events", Fake.SWITCHES["events"])
def test_registering_twice_is_registering_once(secrets: str, events: str) -> None:
    with account(secrets=secrets, events=events) as one:
        done = one.registrar().register(one.api, URL, ["email"], NOW)
        assert done.done == [
            f"The webhook of the form {form} leads here, with our secret." for form in one.fake.forms
        ]
        before = json.dumps(one.fake.forms)
        for form in one.fake.forms:
            (webhook,) = one.webhooks(form)
            assert (webhook["url"], webhook["secret"], webhook["enabled"]) == (URL, "our-secret", True)
            assert (webhook["verify_ssl"], webhook["event_types"]) == (True, {"form_response": True})
        again = one.registrar().register(one.api, URL, [], NOW)
        assert done.expires_at == again.expires_at == NOW + timedelta(days=1), "it is looked after"
        assert ("already" in again.done[0]) is (secrets == "told")
        assert json.dumps(one.fake.forms) == before


@pytest.mark.parametrize("secrets", Fake.SWITCHES["secrets"])
@pytest.mark.parametrize(
    "wrong",
    [
        {"secret": "old"},
        {"enabled": False},
        {"verify_ssl": False},
        {"event_types": {"form_response_partial": True}},
    ],
)
def test_a_webhook_that_leads_here_is_set_right_where_it_is(secrets: str, wrong: dict[str, Any]) -> None:
    with account(secrets=secrets) as one:
        by_hand = {"url": URL, "tag": "phoenix", "secret": "our-secret", "enabled": True, "verify_ssl": True}
        one.fake.forms["lT4Z3j"]["phoenix"] = {**by_hand, "event_types": {"form_response": True}, **wrong}
        one.fake.forms["lT4Z3j"]["other"] = {**by_hand, "tag": "other", "url": f"{URL}/other", **wrong}
        one.registrar("our-secret", "lT4Z3j").register(one.api, URL, [], NOW)
        assert set(one.fake.forms["lT4Z3j"]) == {"phoenix", "other"}
        right = one.fake.forms["lT4Z3j"]["phoenix"]
        assert by_hand.items() <= right.items()
        assert right["event_types"] == {"form_response": True}
        assert wrong.items() <= one.fake.forms["lT4Z3j"]["other"].items()


def test_two_addresses_never_share_a_webhook() -> None:
    with account() as one:
        for url in (URL, f"{URL}/token", URL):
            one.registrar().register(one.api, url, [], NOW)
        assert [webhook["url"] for webhook in one.webhooks("u6nXL7")] == [URL, f"{URL}/token"]
        assert one.registrar().remove(one.api, URL) == [
            "Removed the webhook of the form lT4Z3j.",
            "Removed the webhook of the form u6nXL7.",
        ]
        assert one.registrar().remove(one.api, URL) == []
        assert [webhook["url"] for webhook in one.webhooks("u6nXL7")] == [f"{URL}/token"]


def test_no_secret_is_kept_or_told() -> None:
    with account(secrets="told") as one:
        for _ in range(2):
            one.registrar().register(one.api, URL, [], NOW)
        kept = repr(one.api.exchanges) + repr(one.registrar())
        assert "our-secret" not in kept
        assert Fake.token not in kept
        assert len(one.api.exchanges) == len(one.fake.calls) == 6


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ({"status": 401}, "refuses the credentials of crm"),
        ({"status": 403}, "webhooks:write"),
        ({"status": 404}, "HTTP 404"),
        ({"status": 429}, "fewer calls"),
        ({"status": 500}, "HTTP 500"),
        ({"status": 200, "body": "<html>"}, "not JSON"),
        ({"status": 200, "body": {"items": {}}}, "not a list"),
        ({"method": "PUT", "status": 400}, "HTTP 400"),
        ({"how": "drop"}, "cannot be called now"),
    ],
)
def test_trouble_on_the_way_says_what_it_is(trouble: dict[str, Any], said: str) -> None:
    with account() as one:
        one.fake.trouble(**trouble)
        with pytest.raises(SourceUnavailable, match=said) as caught:
            one.registrar().register(one.api, URL, [], NOW)
        assert str(caught.value).endswith(".")


def test_registering_is_offered_where_there_are_a_token_and_forms_only() -> None:
    assert SOURCE.registrar is not None
    assert SOURCE.registrar("crm", Settings((Secret("s"),))) is None
    assert SOURCE.read_base_url is not None
    assert SOURCE.read_base_url(Settings((Secret("s"),))) == "https://api.typeform.com"
