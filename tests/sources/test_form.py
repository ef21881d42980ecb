"""Senders of forms: how a form becomes an object of texts."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.errors import BadPayload
from bridge.model import InboundRequest
from bridge.sources.form_scheme import MAX_FIELDS, SOURCE, content
from bridge.sources.sampling import Sampling
from tests.sources.kit import BASE_URL, NOW, connection_of, one_change

FORM = "application/x-www-form-urlencoded"
few = settings(max_examples=40, deadline=None, derandomize=True, database=None)


def read(body: bytes | str, content_type: str = "") -> dict[str, Any]:
    headers = {"content-type": content_type} if content_type else {}
    given = body if isinstance(body, bytes) else body.encode()
    return content(InboundRequest("POST", BASE_URL, headers, given))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("", {}),
        ("a", {"a": ""}),
        ("a=", {"a": ""}),
        ("=1", {"": "1"}),
        ("a=1&b=2", {"a": "1", "b": "2"}),
        ("a=1&a=2&a=", {"a": ["1", "2", ""]}),
        ("a[]=1", {"a": ["1"]}),
        ("a[]=1&a[]=2", {"a": ["1", "2"]}),
        ("a=1&a[]=2", {"a": ["1", "2"]}),
        ("a[]=1&a=2", {"a": ["1", "2"]}),
        ("a[b]=1&a[c][d]=2&a[c][d]=3", {"a": {"b": "1", "c": {"d": ["2", "3"]}}}),
        ("a[b][]=1", {"a": {"b": ["1"]}}),
        ("a%5Bb%5D=1", {"a": {"b": "1"}}),
        ("a[0][b]=1&a[1][b]=2", {"a": {"0": {"b": "1"}, "1": {"b": "2"}}}),
        # Names that are no path stand as they are.
        (
            "a[b=1&a]=2&[c]=3&a[]b=4&a[][b]=5&a[[b]]=6",
            {"a[b": "1", "a]": "2", "[c]": "3", "a[]b": "4", "a[][b]": "5", "a[[b]]": "6"},
        ),
        ("a=%2B1+2%20%26%3D", {"a": "+1 2 &="}),
        ("a=Z%C3%BCrich&b=Zürich", {"a": "Zürich", "b": "Zürich"}),
        ("a=1;b=2", {"a": "1;b=2"}),
        ("a=%zz%", {"a": "%zz%"}),
        ("a%00=%00", {"a\ufffd": "\ufffd"}),
        # A file ends with a line end; a value that does says so.
        ("a=1\r\n", {"a": "1"}),
        ("a=1%0A", {"a": "1\n"}),
    ],
)
def test_a_form_becomes_an_object_of_texts(body: str, expected: dict[str, Any]) -> None:
    assert read(body) == expected


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"a=\xff", "UTF-8"),
        (b"a=%FF", "UTF-8"),
        (b"a=%ED%A0%80", "UTF-8"),  # a lone surrogate
        (b"%C3=1", "UTF-8"),
        (b"a=1&a[b]=2", "both"),
        (b"a[b]=2&a=1", "both"),
        (b"a[b][c]=2&a[b]=1", "both"),
        (b"a[]=1&a[b]=2", "both"),
        (b"a" + b"[b]" * 50 + b"=1", "nested"),
        (b"&".join([b"a=1"] * (MAX_FIELDS + 1)), "more than 10,000"),
    ],
)
def test_what_is_no_form_says_why(body: bytes, said: str) -> None:
    with pytest.raises(BadPayload, match=said):
        read(body)


@pytest.mark.parametrize(
    "content_type",
    [
        FORM,
        FORM.upper(),
        f"{FORM}; charset=UTF-8",
        f'{FORM};charset="utf-8"',
        f"{FORM}; Charset = utf8",
        f"{FORM};",
    ],
)
def test_a_form_may_say_that_it_is_one(content_type: str) -> None:
    assert read("a=1", content_type) == {"a": "1"}


@pytest.mark.parametrize(
    ("content_type", "said"),
    [
        ("application/json", "is no form"),
        ("multipart/form-data; boundary=x", "is no form"),
        ("text/plain", "is no form"),
        (f"{FORM}; charset=iso-8859-1", "not in UTF-8"),
        (f"{FORM}; a=b; charset='windows-1252'", "not in UTF-8"),
    ],
)
def test_what_says_that_it_is_something_else_is_no_form(content_type: str, said: str) -> None:
    with pytest.raises(BadPayload, match=said):
        read("a=1", content_type)


texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
plain_names = texts.filter(lambda name: "[" not in name and "]" not in name)


@few
@given(form=st.dictionaries(plain_names, st.lists(texts, min_size=1, max_size=3), max_size=6))
def test_any_form_is_read_back(form: dict[str, list[str]]) -> None:
    body = urlencode([(name, value) for name, values in form.items() for value in values])
    assert read(body) == {name: values[0] if len(values) == 1 else values for name, values in form.items()}


@few
@given(body=st.one_of(st.binary(max_size=60), st.text("ab[]=&%1+;\n", max_size=40).map(str.encode)))
def test_any_bytes_are_a_form_or_no_form_and_nothing_else(body: bytes) -> None:
    try:
        found = read(body)
    except BadPayload as error:
        assert str(error).endswith(".")
        return
    assert "\0" not in repr(found)


def test_a_sample_fits_a_flat_form_too() -> None:
    section = '[sources.crm]\ntype = "form"\nsecrets = ["t"]\n'
    payload = 'payload = { id = "item.contact_id", occurred_at = "item.at", fields = "item" }\n'
    one = connection_of(section + payload)
    assert SOURCE.sample is not None
    body = SOURCE.sample(Sampling(NOW, one.settings, reads={"email", "mobile"}))
    assert b"contact_id=bridge-sample" in body
    change = one_change(one.source, body)
    assert (change.key.source_id, change.version.occurred_at) == ("bridge-sample", NOW)
    assert change.fields["mobile"] == "+14155550123"
