"""Value transforms: what CRMs write, read into what platforms take; what cannot be read is never guessed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge import values
from bridge.model import Value
from bridge.targets.base import FieldKind
from bridge.values import BadValue, normalise


@pytest.mark.parametrize(
    ("given", "region", "expected"),
    [
        ("+44 20 7183 8750", None, "+442071838750"),
        ("020 7183 8750", "GB", "+442071838750"),
        ("(202) 555-0123", "US", "+12025550123"),
        ("+44 (0)20 7183 8750", "US", "+442071838750"),
        ("00442071838750", "DE", "+442071838750"),
        (2025550123, "US", "+12025550123"),
        ("tel:+1-202-555-0123", None, "+12025550123"),
        ("+1 202 555 0123", None, "+12025550123"),  # full-width digits
        ("  ", "US", ""),
        (None, "US", ""),
    ],
)
def test_phone_numbers_become_e164(given: Value, region: str | None, expected: str) -> None:
    assert values.e164(given, region) == expected


@pytest.mark.parametrize(
    ("given", "region", "told"),
    [
        ("020 7183 8750", None, "no default_region is configured"),
        ("+44 20", None, "not a phone number that can be in use"),
        ("555-0123", "US", "not a phone number that can be in use in US"),  # of possible length, of no area
        ("+1 123 456 7890", None, "not a phone number that can be in use"),
        ("call me", "US", "not a phone number"),
        ("+1 202 555 0123 or +1 202 555 0124", "US", "not a phone number"),
        ("+1 202 555 0123 ext. 5", "US", "extension"),
        (["+12025550123"], "US", "a list"),
        ({"number": "+12025550123"}, "US", "a group of values"),
    ],
)
def test_a_phone_number_that_is_none_is_refused(given: Value, region: str | None, told: str) -> None:
    with pytest.raises(BadValue, match=told):
        values.e164(given, region)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("Ada@Example.COM", "ada@example.com"),
        (" ada+crm@mail.example.co.uk ", "ada+crm@mail.example.co.uk"),
        ("o'neil@exämple.de", "o'neil@exämple.de"),
        ("", ""),
    ],
)
def test_addresses_are_lower_case(given: str, expected: str) -> None:
    assert values.email(given) == expected


@pytest.mark.parametrize(
    "given",
    [
        "ada", "ada@localhost", "ada@example.com, eve@example.com", "Ada <ada@example.com>", "a b@example.com",
        ".ada@example.com", "a..b@example.com", "ada@-example.com", "ada@example..com", "@example.com",
        "ada@example.com\nBcc: eve@example.com", "x" * 65 + "@example.com", "ada@" + "x." * 150 + "com", 5.5,
    ],
)  # fmt: skip
def test_what_is_not_one_address_is_refused(given: Value) -> None:
    with pytest.raises(BadValue, match="not one e-mail address"):
        values.email(given)


@pytest.mark.parametrize(
    ("given", "day", "moment"),
    [
        ("2026-03-02", "2026-03-02", "2026-03-02T00:00:00Z"),
        ("20260302", "2026-03-02", "2026-03-02T00:00:00Z"),
        ("2026-03-02T10:11:12Z", "2026-03-02", "2026-03-02T10:11:12Z"),
        ("2026-03-02T23:30:00-05:00", "2026-03-02", "2026-03-03T04:30:00Z"),
        ("2026-03-02T10:11:12.345Z", "2026-03-02", "2026-03-02T10:11:12.345Z"),
        ("2026-03-02 10:11:12", "2026-03-02", "2026-03-02T10:11:12Z"),
        ("631152000000", "1990-01-01", "1990-01-01T00:00:00Z"),  # HubSpot's midnight UTC
        (631152000000, "1990-01-01", "1990-01-01T00:00:00Z"),
        ("-86400000", "1969-12-31", "1969-12-31T00:00:00Z"),
        ("86400000", "1970-01-02", "1970-01-02T00:00:00Z"),
        ("0", "1970-01-01", "1970-01-01T00:00:00Z"),
        ("", "", ""),
        (None, "", ""),
    ],
)
def test_days_and_moments(given: Value, day: str, moment: str) -> None:
    assert values.day(given) == day
    assert values.moment(given) == moment


def test_a_day_has_the_format_that_is_asked_for() -> None:
    assert values.day("2026-03-02", "%d/%m/%Y") == "02/03/2026"
    assert values.day("2026-03-02T10:11:12Z", "%H:%M, 100%%") == "10:11, 100%"


@pytest.mark.parametrize("given", ["03/02/2026", "2026-13-01", "soon", "9" * 15, "1e9", True, ["2026-03-02"], 1.5])
def test_a_date_that_could_be_read_in_two_ways_or_none_is_refused(given: Value) -> None:
    for read in (values.day, values.moment):
        with pytest.raises(BadValue):
            read(given)


@pytest.mark.parametrize("shape", ["%999999999d", "%Q", "%", "%d" * 200])
def test_a_format_that_is_none_is_refused(shape: str) -> None:
    with pytest.raises(BadValue):
        values.day("2026-03-02", shape)


@pytest.mark.parametrize("given", [True, "true", "TRUE", " Yes ", "1", 1, 1.0, "on", "y", "t"])
def test_what_means_yes(given: Value) -> None:
    assert values.boolean(given) is True


@pytest.mark.parametrize("given", [False, "false", "No", "0", 0, "off", "n", "F"])
def test_what_means_no(given: Value) -> None:
    assert values.boolean(given) is False


@pytest.mark.parametrize(
    ("read", "given"),
    [
        (values.boolean, "maybe"), (values.boolean, 2), (values.boolean, ["true"]),
        (values.number, "1,234"), (values.number, "1.234,5"), (values.number, "five"), (values.number, True),
        (values.number, "1e999"), (values.number, "9" * 31), (values.number, float("inf")),
        (values.number, "0x10"), (values.number, 10**40),
    ],
)  # fmt: skip
def test_what_means_nothing_for_sure_is_refused(read: Callable[[Any], Any], given: Value) -> None:
    with pytest.raises(BadValue):
        read(given)


@pytest.mark.parametrize(
    ("given", "expected"),
    [("5", 5), (" -12 ", -12), ("2.50", 2.5), ("1e3", 1000.0), (7, 7), (7.5, 7.5), ("", ""), (None, "")],
)
def test_numbers(given: Value, expected: Any) -> None:
    found = values.number(given)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("given", "separator", "expected"),
    [
        ("a;b;a", ";", ["a", "b"]), (";a; ;b", ";", ["a", "b"]), ("a, b", ",", ["a", "b"]),
        (["x", " y ", "x", ""], ";", ["x", "y"]), ([1, True], ";", ["1", "true"]), ("", ";", []), (None, ";", []),
    ],
)  # fmt: skip
def test_multiple_choices(given: Value, separator: str, expected: list[str]) -> None:
    assert values.multi(given, separator) == expected


@pytest.mark.parametrize(
    ("given", "first", "last"),
    [
        ("Ada Lovelace", "Ada", "Lovelace"), ("Lovelace, Ada", "Ada", "Lovelace"),
        ("Ana  García Ruiz", "Ana", "García Ruiz"), ("Ada", "Ada", ""), ("", "", ""), (None, "", ""),
    ],
)  # fmt: skip
def test_names_are_split(given: Value, first: str, last: str) -> None:
    assert values.split_name(given, "first") == first
    assert values.split_name(given, "last") == last


def test_a_table_is_looked_up_by_text() -> None:
    table = {"1": "gold", 2: "silver", True: "yes"}
    assert values.lookup(1, table) == values.lookup("1", table) == values.lookup(1.0, table) == "gold"
    assert values.lookup("2", table) == "silver"
    assert values.lookup(True, table) == values.lookup("true", table) == "yes"
    assert values.lookup("3", table) is None
    assert values.lookup("3", table, "none") == "none"


# --- the shapes that targets want ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "given", "expected"),
    [
        (FieldKind.TEXT, "Ada", "Ada"), (FieldKind.TEXT, 5, "5"), (FieldKind.TEXT, 5.0, "5"),
        (FieldKind.TEXT, 2.5, "2.5"), (FieldKind.TEXT, True, "true"), (FieldKind.TEXT, "a\x00b\ud800c\n", "abc\n"),
        (FieldKind.EMAIL, "ADA@Example.com", "ada@example.com"),
        (FieldKind.PHONE, "(202) 555-0123", "+12025550123"), (FieldKind.PHONE, 2025550123, "+12025550123"),
        (FieldKind.BOOLEAN, "Yes", True), (FieldKind.BOOLEAN, "false", False), (FieldKind.BOOLEAN, 0, False),
        (FieldKind.NAMES, "a;b", ["a;b"]), (FieldKind.NAMES, ["a", "a", 1], ["a", "1"]),
        (FieldKind.ANY, 5, 5), (FieldKind.ANY, False, False), (FieldKind.ANY, ["a", 1], ["a", "1"]),
        (FieldKind.ANY, 1.5, 1.5), (FieldKind.ANY, "x", "x"),
    ],
)  # fmt: skip
def test_a_value_gets_the_shape_of_its_field(kind: FieldKind, given: Value, expected: Value) -> None:
    found = normalise(kind, given, "US")
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize("kind", FieldKind)
@pytest.mark.parametrize("given", [None, "", "  ", "\t\n", [], {}])
def test_nothing_has_no_shape(kind: FieldKind, given: Value) -> None:
    assert normalise(kind, given, "US") is None


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (FieldKind.TEXT, ["a"]), (FieldKind.TEXT, {"a": 1}), (FieldKind.TEXT, "x" * 70_000),
        (FieldKind.EMAIL, "nobody"), (FieldKind.PHONE, "12"), (FieldKind.BOOLEAN, "perhaps"),
        (FieldKind.NAMES, {"a": 1}), (FieldKind.NAMES, [["a"]]), (FieldKind.NAMES, ["x"] * 1001),
        (FieldKind.ANY, {"a": 1}), (FieldKind.ANY, [["a"]]), (FieldKind.ANY, float("nan")),
    ],
)  # fmt: skip
def test_what_cannot_have_the_shape_is_a_bad_value(kind: FieldKind, given: Value) -> None:
    with pytest.raises(BadValue) as caught:
        normalise(kind, given, "US")
    assert str(caught.value).endswith(".")


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(list(FieldKind)), anything)
@settings(max_examples=300, deadline=None)
def test_normalising_ends_in_the_promised_shape_and_is_final(kind: FieldKind, given: Any) -> None:
    try:
        found = normalise(kind, given, "US")
    except BadValue:
        return
    shapes: dict[FieldKind, tuple[type, ...]] = {
        FieldKind.BOOLEAN: (bool,),
        FieldKind.NAMES: (list,),
        FieldKind.ANY: (str, int, float, bool, list),
    }
    assert found is None or isinstance(found, shapes.get(kind, (str,)))
    assert normalise(kind, found, "US") == found
