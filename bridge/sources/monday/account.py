"""Calls to monday.com's API: reading and listing the items of a board, its webhooks, and writing an opt-out.

One address takes everything, as GraphQL. Errors often come in a 200.
https://developer.monday.com/api-reference/reference/items and .../items-page
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

from bridge.errors import SourceUnavailable
from bridge.model import RecordKey, Secret, Value, Version
from bridge.outbound import Api
from bridge.sources.base import BatchUnreadable, Listed, Read, Registration
from bridge.sources.calling import Caller, list_of, object_of, parts_of, place_of
from bridge.sources.monday import columns
from bridge.sources.monday.columns import Parts
from bridge.sources.reading import Unclear, moment, record_id, text_or_none

TITLE = "monday.com"
READ_LIMIT = 100
PAGE = 100
PAUSE_S = 60.0  # where the budget of calls is spent and nothing says for how long
RESTARTS = 3  # of a list whose place is refused, one after the other
SCOPE = "the scope boards:read; webhooks:write to register, boards:write to write opt-outs"
CODE = re.compile(r"[A-Za-z_]{1,60}")
_SECONDS = re.compile(r"reset in ([0-9]{1,5}) seconds")
_SPENT = ("COMPLEXITY", "LIMIT", "CONCURRENCY", "TOOMANYREQUESTS")
_REFUSED = ("UNAUTHORIZED", "NOTAUTHENTICATED", "PERMISSION", "ACCESSDENIED", "FORBIDDEN")

# What is asked for: @item stands for what of each item, and @declared for the variable that this needs.
BY_IDS = f"query ($ids: [ID!]!@declared) {{ items(ids: $ids, limit: {READ_LIMIT}) {{ @item }} }}"
FIRST_PAGE = (
    "query ($board: [ID!]!@declared) "
    f"{{ boards(ids: $board) {{ items_count items_page(limit: {PAGE}) {{ cursor items {{ @item }} }} }} }}"
)
NEXT_PAGE = (
    "query ($cursor: String!@declared) "
    f"{{ next_items_page(cursor: $cursor, limit: {PAGE}) {{ cursor items {{ @item }} }} }}"
)

# What a subscription is called, for each event that concerns contacts.
EVENTS = ("create_item", "change_column_value", "change_name", "item_deleted", "item_archived", "item_restored")
GROUP_EVENT = "item_moved_to_any_group"  # only where a rule reads the group


class PlaceGone(BatchUnreadable):
    """The place in a list is not one that monday.com knows any more: they last for an hour."""


class NoSuchColumn(BatchUnreadable):
    """What a rule calls a field is no column of the board."""


class NotThere(BatchUnreadable):
    """What was asked for by its id does not exist, or is not shown to this token."""


@dataclass(frozen=True, slots=True)
class Board:
    """A board, and what its columns are called in rules."""

    id: str
    columns: Mapping[str, str]  # field: id of the column

    def fields_of(self, column_id: str, parts: Parts) -> dict[str, Value]:
        """Return what *parts* of a column come to, by field."""
        name = next((name for name, known in self.columns.items() if known == column_id), column_id)
        if name == column_id and self.columns.get(name, column_id) != column_id:
            return {}  # rules call another column by this one's id
        fields = {f"{name}{part}": value for part, value in parts.items()}
        # A further part gives way to a column that has its name.
        return {one: value for one, value in fields.items() if one == name or one not in self.columns}

    def columns_for(self, fields: Sequence[str]) -> list[str]:
        """Return the ids of the columns that *fields* need. What is no column of the board is left out there."""
        wanted: dict[str, None] = {}
        for name in fields:
            bases = [name, *(name.removesuffix(part) for part in columns.PARTS if name.endswith(part))]
            wanted |= dict.fromkeys(self.columns.get(base, base) for base in bases)
        return [column_id for column_id in wanted if column_id not in ("", "name", "group")]


class Account:
    """What one token may see and do."""

    def __init__(self, connection: str, token: Secret | None, version: str) -> None:
        self.connection = connection
        self._token = token
        headers = {"Authorization": token.reveal().strip()} if token else {}
        self._caller = Caller(TITLE, connection, {**headers, "API-Version": version.strip()}, SCOPE)

    def ask(self, api: Api, query: str, variables: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what *query* gives.

        Raises:
            BatchUnreadable: this one is refused, or answered with nonsense.
            SourceUnavailable: monday.com cannot be called now, or refuses whoever calls.
        """
        if self._token is None:
            raise SourceUnavailable(f"No token is configured for {self.connection}, so its items cannot be read.")
        answer = object_of(self._caller.json(api, "POST", "/v2", json={"query": query, "variables": variables}))
        errors = list_of(answer.get("errors"))
        if errors or answer.get("error_code") or answer.get("error_message"):
            self._refuse(answer, errors)
        data = answer.get("data")
        if not isinstance(data, dict):
            raise BatchUnreadable("monday.com's answer holds no data.")
        return data

    def column_types(self, api: Api, board_id: str) -> Mapping[str, str]:
        """Return the types of a board's columns by their ids, as far as they are shown."""
        query = "query ($board: [ID!]!) { boards(ids: $board) { columns { id type } } }"
        boards = map(object_of, list_of(self.ask(api, query, {"board": [board_id]}).get("boards")))
        found = [object_of(column) for board in boards for column in list_of(board.get("columns"))]
        return {str(one["id"]): str(one["type"]) for one in found if one.get("id") and one.get("type")}

    def _refuse(self, answer: Mapping[str, Any], errors: Sequence[Any]) -> NoReturn:
        """Raise what the first error of an answer means; no message of monday.com's own is passed on."""
        first = errors[0] if errors else None
        more = object_of(object_of(first).get("extensions"))
        code = text_or_none(more.get("code")) or text_or_none(answer.get("error_code")) or ""
        message = first if isinstance(first, str) else text_or_none(object_of(first).get("message"))
        message = message or text_or_none(answer.get("error_message")) or ""
        plain = re.sub(r"[^A-Z]", "", code.upper())
        said = f" ({code})" if CODE.fullmatch(code) else ""
        if any(word in plain for word in _SPENT):
            raise SourceUnavailable(
                f"monday.com asks for fewer calls{said}. Bridge calls again later.",
                retry_after_s=_pause_s(more.get("retry_in_seconds"), message),
            )
        if any(word in plain for word in _REFUSED) or message.strip().lower().startswith("not authenticated"):
            raise SourceUnavailable(
                f"monday.com refuses the token of {self.connection}{said}: it is wrong, was replaced, or "
                f"lacks what this call needs ({SCOPE}). Bridge tries again by itself."
            )
        if "CURSOR" in plain or "cursor" in message.lower():
            raise PlaceGone("monday.com no longer knows this place in its list.")
        meant = NoSuchColumn if "COLUMN" in plain else NotThere if "NOTFOUND" in plain else BatchUnreadable
        raise meant(f"monday.com did not do what was asked{said}. Bridge tries again later.")


def _pause_s(said: Any, message: str) -> float:
    found = _SECONDS.search(message)
    seconds = said if isinstance(said, int) and not isinstance(said, bool) else int(found[1]) if found else PAUSE_S
    return float(min(max(seconds, 1), 86_400))


# --- items -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Items:
    """Reads and lists the items of a board."""

    account: Account
    board: Board

    def read(self, api: Api, keys: Sequence[RecordKey], fields: Sequence[str]) -> list[Read]:
        """See `Source.read`. Without a limit the call would give 25 items, however many are asked for."""
        asked = list(dict.fromkeys(key.source_id for key in keys))
        if not asked:
            return []
        try:
            found = self._ask(api, BY_IDS, {"ids": asked}, fields).get("items")
        except NotThere:
            if len(asked) > 1:  # which of them is told apart by asking for fewer
                raise
            found = []
        if not isinstance(found, list):
            raise BatchUnreadable("monday.com's answer is no list of items.")
        items = {text_or_none(item.get("id")): item for item in map(object_of, found)}
        return [self._as_read(key, items.get(key.source_id), fields) for key in keys]

    def page(self, api: Api, fields: Sequence[str], after: str | None, since: datetime | None) -> Listed:
        """See `Lister.page`. The place is monday.com's own, which it forgets after an hour.

        Nothing else that a place could be made of is told: then the list begins anew, and what came before comes
        twice. Which items changed is told by each, as the list cannot be asked for those alone.
        """
        place = parts_of(after)
        cursor, restarts = place.get("cursor"), int(place.get("restarts", 0))
        total = place.get("total")
        if cursor is not None:
            try:
                found, restarts = self._next(api, fields, str(cursor)), 0
            except PlaceGone:
                if restarts >= RESTARTS:
                    raise
                cursor, restarts = None, restarts + 1
        if cursor is None:
            found, total = self._first(api, fields)
        records = [self._as_listed(item, fields) for item in map(object_of, list_of(found.get("items")))]
        kept = [one for one in records if one is not None and _changed_since(one, since)]
        going_on = text_or_none(found.get("cursor"))
        following = place_of(cursor=going_on, restarts=restarts, total=total) if going_on else None
        return Listed(kept, following, total if since is None else None)

    def _first(self, api: Api, fields: Sequence[str]) -> tuple[Mapping[str, Any], int | None]:
        boards = list_of(self._ask(api, FIRST_PAGE, {"board": [self.board.id]}, fields).get("boards"))
        if not boards:
            raise SourceUnavailable(
                f"monday.com shows no board {self.board.id} to the token of {self.account.connection}: check "
                "board_id, and whether the token's user may see the board."
            )
        board = object_of(boards[0])
        count = board.get("items_count")
        return _page_of(board.get("items_page")), count if isinstance(count, int) else None

    def _next(self, api: Api, fields: Sequence[str], cursor: str) -> Mapping[str, Any]:
        return _page_of(self._ask(api, NEXT_PAGE, {"cursor": cursor}, fields).get("next_items_page"))

    def _ask(self, api: Api, query: str, variables: Mapping[str, Any], fields: Sequence[str]) -> Mapping[str, Any]:
        """Return what *query* gives of the columns that *fields* need.

        Whether a name that is no column is left out or spoils the call is not documented.
        """
        wanted = self.board.columns_for(fields)
        try:
            return self.account.ask(api, *_about(query, variables, wanted, fields))
        except NoSuchColumn:
            there = self.account.column_types(api, self.board.id)
            known = [column_id for column_id in wanted if column_id in there]
            return self.account.ask(api, *_about(query, variables, known, fields))

    def _as_listed(self, item: Mapping[str, Any], fields: Sequence[str]) -> Read | None:
        try:
            key = RecordKey(self.account.connection, record_id(item.get("id"), "id"))
        except Unclear as error:
            raise BatchUnreadable("monday.com's list holds an item without an id.") from error
        read = self._as_read(key, item, fields)
        return read if read.fields is not None or read.problem else None

    def _as_read(self, key: RecordKey, item: Mapping[str, Any] | None, fields: Sequence[str]) -> Read:
        if item is None or item.get("state") in ("archived", "deleted"):
            return Read(key, key, None, None)
        board = text_or_none(object_of(item.get("board")).get("id"))
        if board is not None and board != self.board.id:  # it was moved there, and is no contact any more
            return Read(key, key, None, None)
        try:
            changed_at = moment(item.get("updated_at") or item.get("created_at"), "updated_at")
        except Unclear:
            problem = "monday.com's answer does not say when the item was last changed."
            return Read(key, key, None, None, problem=problem)
        told = self._told(item)
        return Read(key, key, {name: told[name] for name in fields if name in told}, Version(changed_at, "read"))

    def _told(self, item: Mapping[str, Any]) -> dict[str, Value]:
        told: dict[str, Value] = {}
        for column in map(object_of, list_of(item.get("column_values"))):
            if isinstance(column.get("id"), str) and (parts := columns.of_api(column)) is not None:
                told |= self.board.fields_of(column["id"], parts)
        for name, value in (("name", item.get("name")), ("group", object_of(item.get("group")).get("id"))):
            if isinstance(value, str):
                told[name] = value
        return told


def _about(
    query: str, variables: Mapping[str, Any], wanted: Sequence[str], fields: Sequence[str]
) -> tuple[str, Mapping[str, Any]]:
    """Return *query*, and its variables, about the columns *wanted* of each item."""
    item = "id name state created_at updated_at board { id }" + (" group { id }" if "group" in fields else "")
    if not wanted:  # asked for no columns, monday.com would give all
        return query.replace("@declared", "").replace("@item", item), variables
    item += f" column_values(ids: $columns) {{ id type text value {columns.FRAGMENTS} }}"
    whole = query.replace("@declared", ", $columns: [String!]").replace("@item", item)
    return whole, {**variables, "columns": list(wanted)}


def _page_of(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict) or not isinstance(value.get("items"), list):
        raise BatchUnreadable("monday.com's answer is no list of items.")
    return value


def _changed_since(read: Read, since: datetime | None) -> bool:
    if since is None or read.version is None:
        return True
    return read.version.occurred_at >= since.replace(microsecond=0)  # theirs are whole seconds


# --- webhooks --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Webhooks:
    """Makes and removes the webhooks of a board.

    monday.com never says where a webhook leads. Those of an app it can list by themselves, so an app that is
    bridge's alone has no others; of those that a person's token made, nobody can tell which are whose.
    """

    account: Account
    board: Board
    made_by_app: bool

    def register(self, api: Api, url: str, fields: Sequence[str], now: datetime) -> Registration:
        """See `Registrar.register`."""
        there = self._there(api)
        wanted = [*EVENTS, *([GROUP_EVENT] if "group" in fields else [])]
        done: list[str] = []
        for event in wanted:
            if event in there:
                done.append(f"The app has a webhook for {event} already ({', '.join(there[event])}).")
                continue
            done.append(f"Made the webhook for {event} ({self._make(api, url, event)}).")
        if there:
            done.append(
                "monday.com does not say where a webhook leads: those that were there are taken for bridge's, as "
                "its app made them. If the URL has changed since, remove them first and register again."
            )
        return Registration(done)

    def remove(self, api: Api, url: str) -> Sequence[str]:
        """See `Registrar.remove`: the app's webhooks on this board for the events that bridge registers."""
        done = []
        for event, ids in self._there(api).items():
            for webhook_id in ids if event in {*EVENTS, GROUP_EVENT} else ():
                query = "mutation ($id: ID!) { delete_webhook(id: $id) { id } }"
                self.account.ask(api, query, {"id": webhook_id})
                done.append(f"Removed the app's webhook for {event} ({webhook_id}).")
        return done

    def _there(self, api: Api) -> Mapping[str, list[str]]:
        """Return the ids of the app's webhooks on the board, by event."""
        if not self.made_by_app:
            raise SourceUnavailable(
                "Webhooks that no app made are made and removed by hand: monday.com does not say where they lead, "
                "so bridge could not tell its own from others. Follow the steps of the source's page."
            )
        query = "query ($board: ID!) { webhooks(board_id: $board, app_webhooks_only: true) { id event board_id } }"
        found = self.account.ask(api, query, {"board": self.board.id}).get("webhooks")
        if not isinstance(found, list | None):
            raise BatchUnreadable("monday.com's answer is no list of webhooks.")
        there: dict[str, list[str]] = {}
        for webhook in map(object_of, found or []):
            event, webhook_id = webhook.get("event"), text_or_none(webhook.get("id"))
            if isinstance(event, str) and webhook_id and text_or_none(webhook.get("board_id")) == self.board.id:
                there.setdefault(event, []).append(webhook_id)
        return there

    def _make(self, api: Api, url: str, event: str) -> str:
        query = (
            "mutation ($board: ID!, $url: String!, $event: WebhookEventType!) "
            "{ create_webhook(board_id: $board, url: $url, event: $event) { id board_id } }"
        )
        variables = {"board": self.board.id, "url": url, "event": event}
        try:
            made = self.account.ask(api, query, variables).get("create_webhook")
        except BatchUnreadable as error:
            raise SourceUnavailable(
                f"monday.com did not make the webhook for {event}. It first asks the URL a question, so bridge "
                f"must be running and its public URL be reachable. {error}"
            ) from error
        webhook_id = text_or_none(object_of(made).get("id"))
        if not webhook_id:
            raise SourceUnavailable(f"monday.com did not say that it made the webhook for {event}.")
        return webhook_id


# --- opting out ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Refusal:
    """Writes an opt-out into a column: a tick, or the configured text."""

    account: Account
    board: Board
    value: str

    def opt_out(self, api: Api, source_id: str, name: str) -> None:
        """See `Writer.opt_out`."""
        column_id = self.board.columns.get(name, name)
        written = self._written(self._type(api, column_id), name)
        query = (
            "mutation ($board: ID!, $item: ID!, $values: JSON!) "
            "{ change_multiple_column_values(board_id: $board, item_id: $item, column_values: $values) { id } }"
        )
        values = json.dumps({column_id: written})
        answer = self.account.ask(api, query, {"board": self.board.id, "item": source_id, "values": values})
        if text_or_none(object_of(answer.get("change_multiple_column_values")).get("id")) != source_id:
            raise SourceUnavailable("monday.com did not say that it wrote the opt-out.")

    def _type(self, api: Api, column_id: str) -> str:
        kind = self.account.column_types(api, self.board.id).get(column_id)
        if kind is None:
            raise SourceUnavailable(
                f"The board {self.board.id} has no column '{column_id}' that the token of "
                f"{self.account.connection} may see."
            )
        return kind

    def _written(self, kind: str, name: str) -> Any:
        kind = columns.TYPES.get(kind, kind)
        if kind == "checkbox":
            return {"checked": "true"}
        if kind not in {"status", "text"}:
            raise SourceUnavailable(
                f"The column of '{name}' cannot hold an opt-out: it must be a checkbox, a status or a text."
            )
        if not self.value:
            raise SourceUnavailable(
                f"What the column of '{name}' says of whom opted out is not configured: set opt_out_value of "
                f"{self.account.connection}."
            )
        return {"label": self.value} if kind == "status" else self.value
