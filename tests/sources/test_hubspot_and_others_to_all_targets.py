"""From a signed webhook of HubSpot, Pipedrive, Calendly or Typeform to four platforms, and an opt-out after it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from bridge.config import load
from bridge.demo.fakes.base import Fake
from bridge.demo.fakes.hubspot import HubSpot
from bridge.model import InboundRequest, State, iso, utc_now
from bridge.pipeline import receive
from bridge.store.protocol import Filter
from tests.platforms import PUBLIC_URL, open_bench, serve_platforms
from tests.sources.fake_pipedrive import TEXT, Pipedrive

EMAIL, PHONE = "ada@example.com", "+525512340001"
TARGETS = "[targets.marketing]"


@dataclass
class Crm:
    """A CRM, as its webhooks tell of one person: first that there is one, then that she said stop."""

    section: str  # of bridge.toml
    told: Callable[[datetime], bytes]
    stopped: Callable[[datetime], bytes]
    words: dict[str, str] = field(default_factory=dict)  # in the rules: ours for those of the shop
    fake: Fake | None = None

    @contextmanager
    def serve(self) -> Iterator[str]:
        served: AbstractContextManager[str] = (
            self.fake.serve() if self.fake else nullcontext("https://crm.example")
        )
        with served as url:
            yield url


def hubspot() -> Crm:
    fake = HubSpot()

    def told(at: datetime) -> bytes:
        fake.clock = lambda: at
        properties = {"email": EMAIL, "phone": PHONE, "firstname": "Ada", "lastname": "King", "no_texts": ""}
        return fake.webhook(fake.create(**properties)[:1])  # which says nothing but the id

    def stopped(at: datetime) -> bytes:
        fake.clock = lambda: at
        (source_id,) = fake.records
        return fake.webhook(fake.change(source_id, no_texts="true"))

    return Crm(
        f'type = "hubspot"\nsecrets = ["s"]\ntoken = "{fake.bearer}"\napi_base = "{{url}}"',
        told,
        stopped,
        {"name": "firstname", "surname": "lastname", "stop == 'yes'": "no_texts == 'true'"},
        fake,
    )


def pipedrive() -> Crm:
    fake = Pipedrive()

    def webhook(action: str, at: datetime) -> bytes:
        (person,) = fake.persons.values()
        custom = {name: {"type": "varchar", "value": value} for name, value in person["custom_fields"].items()}
        about = {"action": action, "entity": "person", "entity_id": "1234", "id": iso(at), "timestamp": iso(at)}
        meta = {**about, "version": "2.0", "webhook_id": "1"}
        known = {name: value for name, value in person.items() if name != "marketing_status"}
        return json.dumps({"meta": meta, "data": {**known, "custom_fields": custom}, "previous": None}).encode()

    def told(at: datetime) -> bytes:
        fake.clock = lambda: at
        ways = {"emails": [{"value": EMAIL, "primary": True}], "phones": [{"value": PHONE, "primary": True}]}
        fake.add(first_name="Ada", last_name="King", **ways)
        return webhook("create", at)

    def stopped(at: datetime) -> bytes:
        fake.persons[1234]["custom_fields"][TEXT] = "true"
        return webhook("change", at)

    return Crm(
        'type = "pipedrive"\ncredentials = [{{ user = "bridge", password = "p" }}]\n'
        f'token = "{fake.token}"\napi_base = "{{url}}"',
        told,
        stopped,
        {"name": "first_name", "surname": "last_name", "stop == 'yes'": f"fields['{TEXT}'] == 'true'"},
        fake,
    )


def calendly() -> Crm:
    def booking(at: datetime, number: str, answer: str) -> bytes:
        payload = {
            "uri": f"https://api.calendly.com/scheduled_events/E/invitees/{number}",
            "email": EMAIL,
            "first_name": "Ada",
            "last_name": "King",
            "text_reminder_number": PHONE,
            "created_at": iso(at),
            "updated_at": iso(at),
            "questions_and_answers": [{"question": "May we text you?", "answer": answer}],
        }
        return json.dumps({"event": "invitee.created", "created_at": iso(at), "payload": payload}).encode()

    return Crm(
        'type = "calendly"\nsecrets = ["s"]',
        lambda at: booking(at, "A", "Yes"),
        lambda at: booking(at, "B", "No"),
        {
            "name": "first_name", "surname": "last_name", "phone": "text_reminder_number",
            "stop == 'yes'": "fields['May we text you?'] == 'No'",
        },
    )  # fmt: skip


def typeform() -> Crm:
    def response(at: datetime, number: str, *, stop: bool) -> bytes:
        given: dict[str, tuple[str, Any]] = {
            "email": ("email", EMAIL), "phone": ("phone_number", PHONE), "first": ("text", "Ada"),
            "last": ("text", "King"), "no_texts": ("boolean", stop),
        }  # fmt: skip
        answers = [{"type": kind, kind: value, "field": {"ref": ref}} for ref, (kind, value) in given.items()]
        form = {"form_id": "f", "token": number, "submitted_at": iso(at), "answers": answers}
        return json.dumps({"event_id": number, "event_type": "form_response", "form_response": form}).encode()

    return Crm(
        'type = "typeform"\nsecrets = ["s"]',
        lambda at: response(at, "T1", stop=False),
        lambda at: response(at, "T2", stop=True),
        {"name": "first", "surname": "last", "stop == 'yes'": "no_texts"},
    )


@pytest.mark.parametrize("make", [hubspot, pipedrive, calendly, typeform])
def test_a_webhook_reaches_all_targets_and_so_does_an_opt_out(make: Callable[[], Crm], tmp_path: Path) -> None:
    crm = make()
    with crm.serve() as url, serve_platforms() as platforms:
        path = platforms.write_config(tmp_path)
        head, _, rest = path.read_text().partition("[sources.shop]")
        routes = TARGETS + rest.partition(TARGETS)[2]
        for theirs, ours in {
            '"id"': '"email"',
            **{f'"{old}"': f'"{new}"' for old, new in crm.words.items()},
        }.items():
            routes = routes.replace(theirs, ours)
        path.write_text(f"{head}[sources.shop]\n{crm.section.format(url=url)}\n\n{routes}")
        with open_bench(tmp_path, load(path, platforms.environ)) as bench:
            connection = bench.config.sources["shop"]

            def send(body: bytes) -> None:
                request = InboundRequest("POST", f"{PUBLIC_URL}/hooks/shop", {}, body)
                genuine = connection.source.sign(request, utc_now())
                bench.store.receive([receive(connection, genuine, utc_now())])
                bench.settle()

            at = utc_now() - timedelta(minutes=5)
            send(crm.told(at))
            assert platforms.counts() == dict.fromkeys(platforms.counts(), 1)
            person = platforms.marketing.person(EMAIL)
            assert (person["firstName"], person["lastName"]) == ("Ada", "King")
            assert platforms.sms.person(PHONE) is not None
            send(crm.stopped(at + timedelta(minutes=1)))
            (contact,) = bench.store.contact_page(Filter(), None, 9).items
            states = {delivery.target: delivery.state for delivery in bench.store.deliveries_of(contact.key)}
            assert states == dict.fromkeys(platforms.fakes, State.OPTED_OUT)
            assert platforms.loosened() == []
