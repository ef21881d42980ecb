"""A monday.com account on loopback: one board whose items can be read, listed and written, and its webhooks.

https://developer.monday.com/api-reference/reference/items and .../items-page and .../webhooks
"""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from flask import Flask, Response, request

from bridge.demo.fakes.base import Fake, answer
from bridge.model import utc_now
from tests.sources.graphql_of_monday_and_shopify import KIND, Invalid, Schema, execute

ITEMS = 100  # in one call by their ids
PAGE = 500
CURSOR_LASTS = timedelta(minutes=60)
BOARD = "1771812698"
EVENTS = {
    "change_column_value", "change_name", "change_specific_column_value", "create_item", "create_update",
    "item_archived", "item_deleted", "item_moved_to_any_group", "item_restored",
}  # fmt: skip

_ITEM = {
    "id": "", "name": "", "state": "", "updated_at": "", "created_at": "", "board": "Board", "group": "Group",
    "column_values": "ColumnValue",
}  # fmt: skip
_COLUMN_VALUE = {"id": "", "type": "", "text": "", "value": ""}
SCHEMA: Schema = {
    "Query": {"items": "Item", "boards": "Board", "next_items_page": "ItemsPage", "webhooks": "Webhook"},
    "Mutation": {
        "create_webhook": "Webhook",
        "delete_webhook": "Webhook",
        "change_multiple_column_values": "Item",
    },
    "Item": _ITEM,
    "Group": {"id": "", "title": ""},
    "Board": {"id": "", "items_count": "", "items_page": "ItemsPage", "columns": "Column"},
    "Column": {"id": "", "type": "", "title": ""},
    "ItemsPage": {"cursor": "", "items": "Item"},
    "ColumnValue": _COLUMN_VALUE,
    "PhoneValue": {**_COLUMN_VALUE, "phone": "", "country_short_name": ""},
    "EmailValue": {**_COLUMN_VALUE, "email": "", "label": ""},
    "CheckboxValue": {**_COLUMN_VALUE, "checked": ""},
    "DropdownValue": {**_COLUMN_VALUE, "values": "Label"},
    "MirrorValue": {**_COLUMN_VALUE, "display_value": ""},
    "BoardRelationValue": {**_COLUMN_VALUE, "display_value": ""},
    "Label": {"id": "", "label": ""},
    "Webhook": {"id": "", "event": "", "board_id": "", "config": ""},
}
COLUMNS = {
    "email": "email", "phone": "phone", "color_mks7": "status", "boolean_mkv1": "checkbox", "text_mkx9": "text",
    "dropdown_mkt3": "dropdown", "numeric_mkn2": "numbers", "date_mkd4": "date", "mirror_mkm1": "mirror",
    "country_mkc5": "country", "link_mkl6": "link",
}  # fmt: skip
WEBHOOK_TYPES = {"status": "color", "checkbox": "boolean", "numbers": "numeric"}


class Failed(Exception):
    """What is asked for cannot be done: an error in a 200."""

    def __init__(self, code: str, message: str = "", **more: Any) -> None:
        self.code, self.message, self.more = code, message or code, more


@dataclass(slots=True)
class Item:
    id: str
    name: str
    columns: dict[str, Any]  # what each holds; "" is empty
    updated_at: datetime
    group: str = "topics"
    state: str = "active"
    board: str = BOARD


@dataclass(slots=True)
class Webhook:
    id: str
    event: str
    url: str
    board: str = BOARD
    by_app: bool = True


@dataclass(slots=True)
class Cursor:
    ids: list[str]
    until: datetime


class Monday(Fake):
    """See the module's docstring. What changes an item returns the webhook's body.

    - ``unknown_ids``: whether ids that lead to nothing are left out, or spoil the call.
    - ``unknown_columns``: the same of columns.
    - ``gone``: whether items that were archived or deleted are shown with their state, or left out.
    - ``errors_as``: how an error is written: with ``extensions``, or as it was before.
    - ``rows``: whether a list is what it was at its first page, or leaves out what has gone since.
    """

    title = "monday.com"
    token = "demo-monday-token"
    SWITCHES: Mapping[str, tuple[Any, ...]] = {
        "unknown_ids": ("left_out", "error"),
        "unknown_columns": ("left_out", "error"),
        "gone": ("with_state", "left_out"),
        "errors_as": ("extensions", "old"),
        "rows": ("as_they_were", "as_they_are"),
    }

    def __init__(self, *, clock: Callable[[], datetime] = utc_now, **switches: Any) -> None:
        self.clock = clock
        self.items: dict[str, Item] = {}
        self.webhooks: dict[str, Webhook] = {}
        self.cursors: dict[str, Cursor] = {}
        self.reachable = True  # the URL of a new webhook answers the question
        self.page = PAGE  # at most so many come on a page
        self._last_id = 1_771_812_727
        self._limit = 25
        super().__init__(**switches)

    # --- what people do on the board ---

    def create(self, name: str = "Ada Lovelace", **columns: Any) -> dict[str, Any]:
        with self.lock:
            self._last_id += 1
            item = Item(str(self._last_id), name, columns, self.clock())
            self.items[item.id] = item
            return self._event("create_pulse", item, pulseName=name, columnValues={})

    def change(self, item_id: str, column_id: str, value: Any) -> dict[str, Any]:
        with self.lock:
            item = self._touched(item_id)
            item.columns[column_id] = value
            kind = COLUMNS[column_id]
            return self._event(
                "update_column_value",
                item,
                pulseName=item.name,
                columnId=column_id,
                columnType=WEBHOOK_TYPES.get(kind, kind),
                value=_in_webhook(kind, value),
                previousValue=None,
                changedAt=self.clock().timestamp(),
            )

    def put_away(self, item_id: str, state: str = "deleted") -> dict[str, Any]:
        with self.lock:
            item = self._touched(item_id)
            item.state = state
            word = {"deleted": "delete_pulse", "archived": "archive_pulse"}[state]
            return self._event(word, item, itemId=int(item.id), itemName=item.name)

    def move_away(self, item_id: str) -> None:
        with self.lock:
            self._touched(item_id).board = "1999999999"

    @staticmethod
    def webhook(event: Mapping[str, Any]) -> bytes:
        return json.dumps({"event": event}, separators=(",", ":"), ensure_ascii=False).encode()

    def _touched(self, item_id: str) -> Item:
        item = self.items[item_id]
        item.updated_at = self.clock()
        return item

    def _event(self, kind: str, item: Item, **more: Any) -> dict[str, Any]:
        about = {} if "itemId" in more else {"pulseId": int(item.id), "groupId": item.group}
        return {
            "app": "monday",
            "type": kind,
            "triggerTime": _iso(self.clock(), "milliseconds"),
            "subscriptionId": 73759690,
            "isRetry": False,
            "userId": 4012689,
            "originalTriggerUuid": None,
            "boardId": int(item.board),
            **about,
            **more,
            "triggerUuid": f"{item.id}-{kind}-{self.clock().isoformat()}",
        }

    # --- the API ---

    def routes(self, app: Flask) -> None:
        app.post("/v2")(self._ask)

    def _ask(self) -> Response:
        given = request.headers.get("Authorization", "").encode()
        if not hmac.compare_digest(given, self.token.encode()):
            return answer(401, {"errors": ["Not Authenticated"]})
        if not request.headers.get("API-Version"):
            return self._failed(Failed("ApiVersionMissing"))
        asked = request.get_json()
        unknown = set(asked["variables"].get("columns", ())) - COLUMNS.keys()
        if unknown and self.switches["unknown_columns"] == "error":
            return self._failed(Failed("InvalidColumnIdException"))
        limit = re.search(r"items_page ?\([^)]*limit: ([0-9]+)", asked["query"])
        self._limit = int(limit[1]) if limit else 25
        try:
            return answer(200, {"data": execute(asked["query"], asked["variables"], SCHEMA, self._resolve)})
        except Invalid as error:
            return self._failed(Failed("undefinedField", str(error)))
        except Failed as error:
            return self._failed(error)

    def _failed(self, error: Failed) -> Response:
        if self.switches["errors_as"] == "old":
            return answer(
                200, {"error_code": error.code, "error_message": error.message, "errors": [error.message]}
            )
        more = {"code": error.code, **error.more}
        return answer(200, {"errors": [{"message": error.message, "extensions": more}], "account_id": 1825529})

    def _resolve(self, name: str, arguments: Mapping[str, Any]) -> Any:
        return getattr(self, f"_{name}")(arguments)

    def _items(self, arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
        ids = [str(one) for one in arguments["ids"]]
        if len(ids) > ITEMS:
            raise Failed("InvalidArgumentException", "at most 100 ids")
        if self.switches["unknown_ids"] == "error" and set(ids) - self.items.keys():
            raise Failed("ResourceNotFoundException")
        found = [self.items[one] for one in ids if one in self.items]
        if self.switches["gone"] == "left_out":
            found = [item for item in found if item.state == "active"]
        # In no order that was asked for, and never more than the limit, which is 25 where none is given.
        return [self._shown(item) for item in reversed(found)][: arguments.get("limit", 25)]

    def _boards(self, arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
        if arguments["ids"] != [BOARD]:
            return []
        there = [item for item in self.items.values() if self._listed(item)]
        return [
            {
                "id": BOARD,
                "items_count": len(there),
                "items_page": self._page([item.id for item in there]),
                "columns": [{"id": one, "type": kind, "title": one} for one, kind in COLUMNS.items()],
            }
        ]

    def _next_items_page(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        cursor = self.cursors.get(arguments["cursor"])
        if cursor is None or self.clock() > cursor.until:
            raise Failed("CursorException", "CursorExpiredError: The cursor provided for pagination has expired.")
        return self._page(cursor.ids)

    def _page(self, ids: list[str]) -> dict[str, Any]:
        size = min(self.page, self._limit)
        now, later = ids[:size], ids[size:]
        cursor = None
        if later:
            cursor = f"cursor-{len(self.cursors)}"
            self.cursors[cursor] = Cursor(later, self.clock() + CURSOR_LASTS)
        items = [self.items[one] for one in now]
        if self.switches["rows"] == "as_they_are":
            items = [item for item in items if self._listed(item)]
        return {"cursor": cursor, "items": [self._shown(item) for item in items]}

    @staticmethod
    def _listed(item: Item) -> bool:
        return item.state == "active" and item.board == BOARD

    def _shown(self, item: Item) -> dict[str, Any]:
        return {
            "id": item.id,
            "name": item.name,
            "state": item.state,
            "created_at": _iso(item.updated_at, "seconds"),
            "updated_at": _iso(item.updated_at, "seconds"),
            "board": {"id": item.board},
            "group": {"id": item.group, "title": item.group.title()},
            "column_values": [_column(one, kind, item.columns.get(one, "")) for one, kind in COLUMNS.items()],
        }

    def _webhooks(self, arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
        only_own = arguments.get("app_webhooks_only")
        found = [one for one in self.webhooks.values() if one.board == str(arguments["board_id"])]
        return [
            {"id": one.id, "event": one.event, "board_id": one.board, "config": None}
            for one in found
            if one.by_app or not only_own
        ]

    def _create_webhook(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if arguments["event"] not in EVENTS or arguments["board_id"] != BOARD:
            raise Failed("InvalidArgumentException")
        if not self.reachable:
            raise Failed("WEBHOOK_CHALLENGE_FAILED", "Failed to verify https://bridge.example.com")
        webhook = Webhook(str(900 + len(self.webhooks)), arguments["event"], arguments["url"])
        self.webhooks[webhook.id] = webhook
        return {"id": webhook.id, "board_id": BOARD, "event": webhook.event}

    def _delete_webhook(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if (webhook := self.webhooks.pop(str(arguments["id"]), None)) is None:
            raise Failed("ResourceNotFoundException")
        return {"id": webhook.id, "board_id": webhook.board}

    def _change_multiple_column_values(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        item = self.items.get(str(arguments["item_id"]))
        if item is None or arguments["board_id"] != item.board:
            raise Failed("ResourceNotFoundException")
        for column_id, value in json.loads(arguments["column_values"]).items():
            kind = COLUMNS.get(column_id)
            if kind == "checkbox" and value == {"checked": "true"}:
                item.columns[column_id] = True
            elif kind == "status" and value in ({"label": "Unsubscribed"}, {"label": "Subscribed"}):
                item.columns[column_id] = value["label"]
            elif kind == "text" and isinstance(value, str):
                item.columns[column_id] = value
            else:
                raise Failed("ColumnValueException", f"Ada Lovelace cannot have {value}")
        item.updated_at = self.clock()
        return self._shown(item)


def _iso(moment: datetime, precision: str) -> str:
    return moment.astimezone(UTC).isoformat(timespec=precision).replace("+00:00", "Z")


def _column(column_id: str, kind: str, held: Any) -> dict[str, Any]:
    """Return a column as the API writes it."""
    told: dict[str, Any] = {"id": column_id, "type": kind, "text": str(held), "value": None}
    if kind == "phone":
        number, country = held or ("", "")
        return {**told, KIND: "PhoneValue", "text": number, "phone": number or None, "country_short_name": country}
    if kind == "email":
        return {**told, KIND: "EmailValue", "email": held or None, "label": held or None}
    if kind == "checkbox":
        return {**told, KIND: "CheckboxValue", "text": "v" if held else "", "checked": held or None}
    if kind == "dropdown":
        values = [{"id": n, "label": label} for n, label in enumerate(held or [])]
        return {**told, KIND: "DropdownValue", "text": ", ".join(held) if held else None, "values": values}
    if kind == "mirror":
        return {**told, KIND: "MirrorValue", "text": None, "display_value": held}
    if kind == "status":
        return {**told, KIND: "StatusValue", "text": held or None}
    if kind == "date" and held:
        day, _, time = held.partition(" ")
        value = {"date": day, "time": time or None, "icon": None, "changed_at": "2026-09-21T14:13:20.123Z"}
        return {**told, KIND: "DateValue", "text": f"{day} 16:00", "value": json.dumps(value)}
    if kind == "country" and held:
        value = {"countryCode": held[0], "countryName": held[1]}
        return {**told, KIND: "CountryValue", "text": held[1], "value": json.dumps(value)}
    if kind == "link" and held:
        value = {"url": held, "text": "her page"}
        return {**told, KIND: "LinkValue", "text": f"her page - {held}", "value": json.dumps(value)}
    return told


def _in_webhook(kind: str, held: Any) -> Any:
    """Return what a column holds as a webhook writes it."""
    if held in ("", [], False):
        return None
    if kind == "phone":
        return {"phone": held[0], "countryShortName": held[1]}
    if kind == "dropdown":
        return {"chosenValues": [{"id": n, "name": label} for n, label in enumerate(held)]}
    if kind == "status":
        return {"label": {"index": 1, "text": held, "style": {}, "is_done": False}, "post_id": None}
    if kind == "country":
        return {"countryCode": held[0], "countryName": held[1]}
    if kind == "date":
        day, _, time = held.partition(" ")
        return {"date": day, "icon": None, "time": time or None}
    names = {"email": "email", "checkbox": "checked", "link": "url"}
    number = float(held) if kind == "numbers" else held
    return {names.get(kind, "value"): number}
