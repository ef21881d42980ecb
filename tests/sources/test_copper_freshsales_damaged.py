"""Whatever Copper and Freshsales answer: it is read, or it is told in a sentence, and nothing else happens."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.errors import SourceUnavailable
from bridge.model import RecordKey, Secret
from bridge.outbound import Api, Reply
from bridge.sources import copper, freshsales
from bridge.sources.base import Listed, Read
from tests.sources.kit import NOW

SECRETS = (Secret("shown"),)
COPPER = copper._account("crm", copper.Settings(SECRETS, "ops@example.com", Secret("key")))
FRESHSALES = freshsales._account("crm", freshsales.Settings(SECRETS, "acme.myfreshworks.com", Secret("key")))
KEY = RecordKey("crm", "7")
FIELDS = ("email", "emails", "phones", "cf_1", "address_city", "id", "updated_at")
NAMES = (
    "id", "contact", "contacts", "meta", "total", "filters", "name", "updated_at", "date_modified",
    "emails", "email", "phone_numbers", "number", "category", "custom_fields", "custom_field",
    "custom_field_definition_id", "value", "cf_1", "address", "city", "websites", "url", "is_deleted",
    "target", "type", "event", "headers", "secret",
)  # fmt: skip
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(
        [7, "7", 1_790_000_000, "2026-09-21T14:13:20Z", "All Contacts", "https://x.example", "person"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=6),
    max_leaves=20,
)
bodies = values.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=30)
answers = st.tuples(st.sampled_from([200, 200, 200, 201, 204, 400, 401, 404, 429, 500]), bodies)


class Answering(Api):
    """Answers calls with what it is given, the last one for ever."""

    def __init__(self, replies: list[tuple[int, bytes]]) -> None:
        super().__init__("http://127.0.0.1:9")
        self.replies = list(replies)

    def call(self, method: str, path: str, **named: Any) -> Reply:
        status, body = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        return Reply(status, {"x-pw-total": "x", "date": "?"}, body)


Use = Callable[[Any, Api], Any]
USES: dict[str, Use] = {
    "page": lambda account, api: account.page(api, FIELDS, None, None),
    "page since": lambda account, api: account.page(api, FIELDS, None, NOW),
    "opt_out": lambda account, api: account.opt_out(api, "7", "cf_1"),
    "register": lambda account, api: account.register(api, "https://x.example", FIELDS, NOW),
    "remove": lambda account, api: account.remove(api, "https://x.example"),
}


@pytest.mark.parametrize(
    ("account", "use"),
    [
        *(pytest.param(COPPER, use, id=f"copper {use}") for use in USES),
        *(pytest.param(FRESHSALES, use, id=f"freshsales {use}") for use in ("page", "page since", "opt_out")),
    ],
)
@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(replies=st.lists(answers, min_size=1, max_size=4))
def test_any_answer_is_understood_or_told(account: Any, use: str, replies: list[tuple[int, bytes]]) -> None:
    try:
        found = USES[use](account, Answering([*replies, (503, b"")]))
    except SourceUnavailable as error:
        assert str(error).endswith(".")
        return
    if isinstance(found, Listed):
        check(*found.records)


@pytest.mark.parametrize("source", ["copper", "freshsales"])
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(replies=st.lists(answers, min_size=1, max_size=3))
def test_any_answer_is_the_record_or_none(source: str, replies: list[tuple[int, bytes]]) -> None:
    made: Any = (
        copper.Copper("crm", copper.Settings(SECRETS, "ops@example.com", Secret("key")))
        if source == "copper"
        else freshsales.Freshsales("crm", freshsales.Settings(SECRETS, "acme.myfreshworks.com", Secret("key")))
    )
    try:
        reads = made.read(Answering(replies), [KEY, RecordKey("crm", "8")], FIELDS)
    except SourceUnavailable as error:
        assert str(error).endswith(".")
        return
    assert [read.asked for read in reads] == [KEY, RecordKey("crm", "8")]
    check(*reads)


def check(*reads: Read) -> None:
    for read in reads:
        assert (read.fields is None) == (read.version is None)
        assert not read.problem or read.fields is None
        json.dumps(dict(read.fields or {}), allow_nan=False)
        assert set(read.fields or {}) <= set(FIELDS)
