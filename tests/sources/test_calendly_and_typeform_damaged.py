"""What Calendly, Typeform, HubSpot and Pipedrive send or answer, with one part of it replaced by anything.

A webhook is then a change, or says why it is none; an answer teaches something, or is told to be unusable.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from flask import Flask, Response
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.demo.fakes.base import Fake, answer
from bridge.errors import BadPayload, SourceUnavailable
from bridge.model import RecordKey, Secret
from bridge.outbound import Api, new_session
from bridge.sources import calendly, hubspot, pipedrive, typeform
from bridge.sources.recording import read_recording
from tests.sources.kit import BASE_URL, FIXTURES, NOW, connection, parse_body

KINDS = ("calendly", "hubspot", "pipedrive", "typeform")
BODIES = {
    kind: [
        json.loads(read_recording(path.read_bytes(), BASE_URL).body)
        for path in sorted((FIXTURES / kind).glob("*.http"))
    ]
    for kind in KINDS
}
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
few = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def places(value: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every part of *value*."""
    yield where
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield from places(part, (*where, key))


def put(value: Any, where: tuple[Any, ...], new: Any) -> Any:
    if not where:
        return new
    key, *rest = where
    changed = dict(value) if isinstance(value, dict) else list(value)
    changed[key] = put(value[key], tuple(rest), new)
    return changed


@pytest.mark.parametrize("kind", KINDS)
@few
@given(data=st.data(), new=anything)
def test_a_damaged_recording_is_a_change_or_says_why_not(kind: str, data: st.DataObject, new: Any) -> None:
    body = data.draw(st.sampled_from(BODIES[kind]))
    damaged = put(body, data.draw(st.sampled_from(sorted(places(body), key=repr))), new)
    try:
        events = parse_body(connection(kind).source, damaged)
    except BadPayload as error:
        assert str(error).endswith(".")
        return
    assert events
    for event in events:
        assert bool(event.changes) + bool(event.ignored) + bool(event.unreadable) == 1
        assert event.key.isascii()
        assert len(event.key) <= 100
        for change in event.changes:
            assert 0 < len(change.key.source_id) <= 100
            assert change.version.occurred_at.tzinfo is not None
            json.dumps([change.key.source_id, change.version.event_id, dict(change.fields)], allow_nan=False)


# --- answers ---------------------------------------------------------------------------------------------

RECORD = {"id": "1", "properties": {"email": "a@b.c", "lastmodifieddate": "2026-09-21T14:13:20Z"}}
PERSON = {
    "id": 1,
    "update_time": "2026-09-21T14:13:20Z",
    "is_deleted": False,
    "emails": [{"value": "a@b.c", "primary": True}],
    "custom_fields": {"9dc80c50d78a15643bfc4ca79d76156a73a1ca0e": {"value": "x", "currency": "EUR"}},
}
URL = f"{BASE_URL}/hooks/crm"
ANSWERS: list[Any] = [
    {"results": [RECORD], "total": 9, "paging": {"next": {"after": "7"}}, "errors": [{"context": {"ids": ["2"]}}]},
    RECORD,
    {"targetUrl": URL, "throttling": {"maxConcurrentRequests": 10}, "results": [{"id": "1", "eventType": "x"}]},
    {"success": True, "data": [PERSON], "additional_data": {"next_cursor": "c2"}},
    {"success": True, "data": PERSON},
    {"success": True, "data": [{"id": 7, "subscription_url": URL, "http_auth_password": "p", "is_active": 1}]},
    {
        "resource": {"uri": "u", "current_organization": "o"},
        "collection": [{"uri": "/webhook_subscriptions/S", "callback_url": URL, "events": ["invitee.created"]}],
        "pagination": {"next_page_token": None},
    },
    {"items": [{"tag": "t", "url": URL, "secret": "s", "enabled": True, "event_types": {"form_response": True}}]},
]
HUBSPOT = hubspot.Settings((Secret("s"),), Secret("t"), app_id=7, developer_key=Secret("k"))
PIPEDRIVE = pipedrive.Settings((pipedrive.Login("u", Secret("p")),), token=Secret("t"))
CALENDLY = calendly.Settings((Secret("s"),), token=Secret("t"))
TYPEFORM = typeform.Settings((Secret("s"),), token=Secret("t"), forms=("f",))


def calls(api: Api) -> Iterator[Callable[[], object]]:
    """Yield every call that bridge makes at the four."""
    keys, names = [RecordKey("crm", "1"), RecordKey("crm", "2")], ["email", "marketing_status"]
    for kind, given_ in ((hubspot.SOURCE, HUBSPOT), (pipedrive.SOURCE, PIPEDRIVE)):
        assert kind.lister is not None
        assert kind.writer is not None
        source, lister, writer = kind.make("crm", given_), kind.lister("crm", given_), kind.writer("crm", given_)
        assert lister is not None
        assert writer is not None
        yield partial(source.read, api, keys, names)
        yield partial(lister.page, api, names, None, None)
        yield partial(lister.page, api, names, None, NOW)
        yield partial(writer.opt_out, api, "1", "marketing_status")
    types = (hubspot.SOURCE, pipedrive.SOURCE, calendly.SOURCE, typeform.SOURCE)
    for kind, configured in zip(types, (HUBSPOT, PIPEDRIVE, CALENDLY, TYPEFORM), strict=True):
        assert kind.registrar is not None
        registrar = kind.registrar("crm", configured)
        assert registrar is not None
        yield partial(registrar.register, api, URL, names, NOW)
        yield partial(registrar.remove, api, URL)


class Parrot(Fake):
    """Answers everything with the same."""

    said: Any = None

    def routes(self, app: Flask) -> None:
        for path in ("/<path:path>", "/"):
            app.route(path, methods=["GET", "POST", "PUT", "PATCH", "DELETE"], endpoint=path)(self._say)

    def _say(self, path: str = "") -> Response:
        return answer(200, self.said)


def test_an_answer_of_any_shape_teaches_something_or_is_told_to_be_unusable() -> None:
    parrot = Parrot()
    with parrot.serve() as base_url, new_session() as session:
        every = list(calls(Api(base_url, session=session)))

        @settings(max_examples=20, deadline=None, derandomize=True, database=None)
        @given(data=st.data(), new=anything)
        def check(data: st.DataObject, new: Any) -> None:
            body = data.draw(st.sampled_from(ANSWERS))
            parrot.said = put(body, data.draw(st.sampled_from(sorted(places(body), key=repr))), new)
            for call in every:
                try:
                    call()
                except SourceUnavailable as error:
                    assert str(error).endswith((".", "?"))

        check()
