"""What an account has (custom fields, lists, tags), and how a custom field takes and shows values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Generic, TypeVar

from bridge.model import Value
from bridge.targets.activecampaign.client import Client, Json, Taken

REREAD_AFTER = timedelta(seconds=30)  # something unknown is not looked for again before that
BLANKS = frozenset({"", "0000-00-00", "0000-00-00 00:00:00"})

SINGLE_CHOICE = frozenset({"dropdown", "radio"})
MULTIPLE_CHOICE = frozenset({"checkbox", "listbox", "multiselect"})
# What an empty text does to these is not documented. Every other type, known to us or not, is text.
NOT_TEXT = SINGLE_CHOICE | MULTIPLE_CHOICE | {"date", "datetime"}

T = TypeVar("T")


# --- fields, lists, tags ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CustomField:
    """A custom field. *options*: what to write, by each text that stands for an option, in small letters."""

    id: str
    type: str
    options: Mapping[str, str] = field(default_factory=dict)

    def option(self, text: str) -> str | None:
        return self.options.get(text.strip().casefold())


class Table(Generic[T]):
    """Something of the account by name, read at first use, and again for a name that is not in it."""

    def __init__(self, read: Callable[[Client], Mapping[str, T]]) -> None:
        self._read = read
        self._known: Mapping[str, T] = {}
        self._at: datetime | None = None

    def find(
        self, client: Client, name: str, now: datetime, fits: Callable[[T], bool] = lambda found: True
    ) -> T | None:
        """Return what has this *name*, in any case of letters. One that does not fit may have changed since."""
        found = self._known.get(name.casefold())
        old = self._at is None or now - self._at >= REREAD_AFTER
        if old and (found is None or not fits(found)):
            # Two lanes may read at the same time; then both keep the same answer.
            self._known, self._at = self._read(client), now
            found = self._known.get(name.casefold())
        return found


class Account:
    """What is remembered of an account between pushes."""

    def __init__(self) -> None:
        self.fields = Table(_read_fields)
        self.lists = Table(_read_lists)
        self._tags: dict[str, str] = {}

    def tag(self, client: Client, name: str) -> str | None:
        """Return the id of the tag *name*, None when there is no such tag."""
        if name not in self._tags and (found := _find_tag(client, name)) is not None:
            self._tags[name] = found
        return self._tags.get(name)

    def forget_tag(self, name: str) -> None:
        self._tags.pop(name, None)


def _read_fields(client: Client) -> dict[str, CustomField]:
    """Read the custom fields by tag and by id: https://developers.activecampaign.com/reference/retrieve-fields."""
    rows: list[Json] = []
    options: dict[str, dict[str, str]] = {}
    for page in client.pages("/fields", "fields", doing="reading the custom fields"):
        rows += page.rows("fields")
        for option in page.rows("fieldOptions") if page.body.get("fieldOptions") else ():
            texts = options.setdefault(str(option.get("field")), {})
            label = str(option.get("label") or option.get("value") or "")
            value = str(option.get("value") or label)
            texts.setdefault(label.strip().casefold(), value)
            texts[value.strip().casefold()] = value  # where a value is another one's label, the value is meant
    table: dict[str, CustomField] = {}
    for row in rows:
        number = str(row.get("id"))
        found = CustomField(number, str(row.get("type")).casefold(), options.get(number, {}))
        table[number] = found
        if tag := str(row.get("perstag") or "").strip("%"):
            table[tag.casefold()] = found
    return table


def _read_lists(client: Client) -> dict[str, tuple[str, ...]]:
    """Read the ids of the lists by name, which two may share, and by id."""
    by_name: dict[str, tuple[str, ...]] = {}
    by_id: dict[str, tuple[str, ...]] = {}
    for page in client.pages("/lists", "lists", doing="reading the lists"):
        for row in page.rows("lists"):
            number, name = str(row.get("id")), str(row.get("name") or "").strip().casefold()
            by_name[name] = (*by_name.get(name, ()), number)
            by_id[number] = (number,)
    return by_name | by_id


def _find_tag(client: Client, name: str) -> str | None:
    alike = None
    # The search finds every tag that contains the text.
    for page in client.pages("/tags", "tags", doing="looking for a tag", query={"search": name}):
        for row in page.rows("tags"):
            if row.get("tag") == name:
                return str(row["id"])
            if str(row.get("tag")).casefold() == name.casefold():
                alike = alike or str(row["id"])
    return alike


def create_tag(client: Client, account: Account, name: str) -> str:
    """Make the tag *name* and return its id. Raises Permanent when the platform does not want it."""
    tag = {"tag": name, "tagType": "contact", "description": ""}
    try:
        return str(client.call("POST", "/tags", json={"tag": tag}, doing="creating a tag").row("tag")["id"])
    except Taken:  # another worker was first
        if (found := account.tag(client, name)) is None:
            raise
        return found


# --- values ----------------------------------------------------------------------------------------------


def is_blank(value: Value) -> bool:
    """Say whether *value*, wanted or held, means that there is none."""
    if isinstance(value, str):
        return value.strip(" |") in BLANKS
    return value is None or value == []


def written(value: Value, custom: CustomField) -> str:
    """Return *value* as the field takes it: https://developers.activecampaign.com/reference/create-fieldvalue.

    Raises:
        ValueError: it cannot hold it; the message completes "it was left out because …" and has no values.
    """
    if custom.type in MULTIPLE_CHOICE:
        items = value if isinstance(value, list) else [value]
        return "||" + "||".join(dict.fromkeys(_option(item, custom) for item in items)) + "||"
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if custom.type in SINGLE_CHOICE:
        return _option(value, custom)
    if custom.type == "date":
        return _date(plain(value))
    if custom.type == "datetime":
        return moment(plain(value)).isoformat(timespec="seconds")
    return plain(value)


def why_not(value: Value, custom: CustomField) -> str:
    """Say why the field cannot hold *value*; "" when it can."""
    try:
        written(value, custom)
    except ValueError as error:
        return str(error)
    return ""


def plain(value: Value) -> str:
    """Return *value* as text. Raises ValueError for a mapping, which no field takes."""
    match value:
        case bool():
            return "true" if value else "false"
        case float() if value.is_integer():
            return str(int(value))
        case list():
            return ", ".join(plain(item) for item in value)
        case dict():
            raise ValueError("it takes a text or a number")
        case None:
            return ""
        case _:
            return str(value)


def _option(value: Value, custom: CustomField) -> str:
    spellings: tuple[str, ...] = (plain(value),)
    if isinstance(value, bool):
        spellings = ("true", "yes", "1", "on") if value else ("false", "no", "0", "off")
    found = next((option for text in spellings if (option := custom.option(text)) is not None), None)
    if found is None:
        raise ValueError("the value is not one of the field's options")
    return found


def _date(text: str) -> str:
    try:
        return datetime.fromisoformat(text.strip()).date().isoformat()
    except ValueError as error:
        raise ValueError("it takes a date such as 2026-03-02") from error


def moment(text: str) -> datetime:
    """Read a time that names its offset from UTC. Raises ValueError for any other: it could mean anything."""
    wanted = "it takes a time with its offset from UTC, such as 2026-03-02T13:05:00+01:00"
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise ValueError(wanted) from error
    if found.tzinfo is None:
        raise ValueError(wanted)
    return found


def same(held: str, wanted: str, custom: CustomField) -> bool:
    """Say whether *held*, as read, is *wanted*, as `written`: options as sets, times as instants."""
    if custom.type in MULTIPLE_CHOICE:
        return _options(held, custom) == _options(wanted, custom)
    if custom.type in SINGLE_CHOICE:
        return (custom.option(held) or held) == wanted
    if custom.type == "date":
        return held[:10] == wanted
    if custom.type == "datetime":
        try:
            return moment(held) == moment(wanted)
        except ValueError:
            return False
    return held == wanted


def _options(text: str, custom: CustomField) -> set[str]:
    return {custom.option(part) or part for part in text.strip("|").split("||")}
