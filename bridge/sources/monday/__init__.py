"""monday.com: the webhooks of one board, whose items are the contacts, and reading, listing and writing them.

A webhook tells of one column at most. What proves it is a token beside it, which does not cover the body; webhooks
that were not made by an app have not even that. https://developer.monday.com/api-reference/reference/webhooks
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from bridge.contact import clamp
from bridge.errors import BadPayload, Complaints
from bridge.model import Change, Event, InboundRequest, Kind, RecordKey, Secret, Value, Verified, Version, iso
from bridge.outbound import Api
from bridge.sources.base import Answer, Genuine, Proof, Read, SourceType
from bridge.sources.monday import columns, tokens
from bridge.sources.monday.account import READ_LIMIT, Account, Board, Items, Refusal, Webhooks
from bridge.sources.reading import (
    Unclear,
    event_key,
    fingerprint,
    moment,
    read_json,
    receipt_key,
    record_id,
    short,
    text_or_none,
)
from bridge.sources.sampling import SAMPLE_NUMBER, Sampling, made_up

LONGEST_CHALLENGE = 200  # characters
LONGEST_QUESTION = 2048  # bytes: each of them may be written as \uXXXX
SAMPLE_BOARD = "1771812698"
COLUMN_CHANGED = "update_column_value"
RENAMED = "update_name"
MOVED = "move_pulse_into_group"
CREATED = "create_pulse"
# What a webhook calls an event, and what a subscription to it is called: either may come.
SAME = {
    "change_column_value": COLUMN_CHANGED,
    "change_specific_column_value": COLUMN_CHANGED,
    "change_status_column_value": COLUMN_CHANGED,
    "change_name": RENAMED,
    "item_moved_to_any_group": MOVED,
    "item_moved_to_specific_group": MOVED,
    "create_item": CREATED,
    "item_deleted": "delete_pulse",
    "item_archived": "archive_pulse",
    "item_restored": "restore_pulse",
    "unarchive_pulse": "restore_pulse",
}
KINDS = {
    CREATED: Kind.CREATED,
    COLUMN_CHANGED: Kind.CHANGED,
    RENAMED: Kind.CHANGED,
    MOVED: Kind.CHANGED,
    "delete_pulse": Kind.DELETED,
    "archive_pulse": Kind.DELETED,  # it is off the board; restored, it comes back under the same id
    "restore_pulse": Kind.CREATED,
}
OTHER_BOARD = "It is about an item of another board than the configured board_id."
SUBITEM = "It is about a subitem, which is part of a contact and none itself."
# What differs between a delivery and its repeats, or may.
VOLATILE = frozenset({"isRetry", "originalTriggerUuid", "triggerUuid", "triggerTime", "subscriptionId"})


@dataclass(frozen=True, slots=True)
class Settings:
    """The webhooks of one monday.com board."""

    board_id: int | str = field(
        metadata={"help": "the board whose items are the contacts: the number in its URL", "example": SAMPLE_BOARD}
    )
    proof: Literal["jwt", "url"] = field(
        default="jwt",
        metadata={
            "help": "what proves a request: 'jwt' for webhooks that an app made, 'url' for others, which have "
            "nothing but the secret token in the URL (require_token)"
        },
    )
    secrets: tuple[Secret, ...] = field(
        default=(),
        metadata={
            "help": "the app's Signing Secret, for proof = 'jwt'; new first, old next",
            "variable": "SIGNING_SECRET",
        },
    )
    columns: Mapping[str, str] = field(
        default_factory=dict,
        metadata={"help": "field = id of a column; a column that is not named here goes by its own id"},
    )
    token: Secret | None = field(
        default=None, metadata={"help": "an API token that may read the board: items are then read whole"}
    )
    api_base: str = field(default="https://api.monday.com", metadata={"help": "where items are read"})
    api_version: str = field(default="2026-07", metadata={"help": "the version of monday.com's API to call"})
    opt_out_value: str = field(
        default="",
        metadata={"help": "what bridge writes into a status or text column to say that a person opted out"},
    )
    audience: str = field(
        default="", metadata={"help": "whom tokens may name as their 'aud', where it is not the webhook's URL"}
    )
    require_token: bool = field(
        default=False, metadata={"help": "accept only the URL with a token, from 'bridge url'"}
    )


class Monday:
    """One board's webhooks. Raises `ValueError` where the settings cannot work."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name = name
        self._settings = settings
        self._keys = tuple(secret.reveal().strip().encode() for secret in settings.secrets)
        self._board = board_of(settings)
        with Complaints() as complaints:
            _look_at(settings, self._keys, self._board, complaints)

    # --- verifying ---------------------------------------------------------------------------------------

    def verify(self, request: InboundRequest, now: datetime) -> Genuine:
        """See `Source.verify`. Where only the URL proves a request, that is looked at before."""
        if self._settings.proof == "url":
            return Genuine(Verified(request), 0)
        audiences = {request.url, request.url.partition("?")[0], self._settings.audience} - {""}
        index, signed_at = tokens.checked(request.headers.get("authorization", ""), self._keys, audiences, now)
        return Genuine(Verified(request), index, signed_at)

    def sign(self, request: InboundRequest, now: datetime) -> InboundRequest:
        if self._settings.proof == "url":
            return request
        token = tokens.made(self._keys[0], self._settings.audience or request.url, now)
        headers = {**request.headers, "authorization": token}
        return InboundRequest(request.method, request.url, headers, request.body)

    # --- parsing -----------------------------------------------------------------------------------------

    def parse(self, genuine: Genuine, received_at: datetime) -> list[Event]:
        body = read_json(genuine.request.body)
        event = body.get("event") if isinstance(body, dict) else None
        if not isinstance(event, dict):
            raise BadPayload("The body is no webhook of monday.com's: it has no 'event'.")
        return [self._event(event, received_at)]

    def _event(self, event: Mapping[str, Any], received_at: datetime) -> Event:
        word = text_or_none(event.get("type")) or ""
        content = fingerprint(event)
        if not word:
            return Event(content, unreadable="It does not say what happened (no type).")
        if event.get("parentItemId"):
            return Event(_key(event), ignored=SUBITEM, type=word)
        action = SAME.get(word, word)
        if action not in KINDS:
            return Event(_key(event), ignored=f"'{short(word)}' changes no field of an item.", type=word)
        try:
            if record_id(event.get("boardId"), "boardId") != self._board.id:
                return Event(_key(event), ignored=OTHER_BOARD, type=word)
            change, timed = self._change(action, event, received_at)
        except Unclear as error:
            # Not under the event's own key: nonsense must not pass for the event that it resembles.
            return Event(content, unreadable=str(error), type=word)
        key = _key(event) if timed else receipt_key(received_at, content)
        return Event(key, (clamp(change, received_at),), type=word)

    def _change(self, action: str, event: Mapping[str, Any], received_at: datetime) -> tuple[Change, bool]:
        """Return what an event says, and whether it says when."""
        kind = KINDS[action]
        item_id = event.get("pulseId") if event.get("pulseId") is not None else event.get("itemId")
        key = RecordKey(self.name, record_id(item_id, "pulseId"))
        at, exact = _occurred_at(event)
        version = Version(at or received_at, _uuid(event) or f"receipt:{fingerprint(event)[:16]}")
        if kind is Kind.DELETED:
            return Change(key, kind, version), at is not None
        fields, complete = self._told(action, event)
        thin = kind is Kind.CREATED or not complete or not exact
        return Change(key, kind, version, fields, thin=thin), at is not None

    def _told(self, action: str, event: Mapping[str, Any]) -> tuple[dict[str, Value], bool]:
        """Return the fields that an event tells, and whether that is all it is about."""
        if action == COLUMN_CHANGED:
            column_id, kind = event.get("columnId"), event.get("columnType")
            if not isinstance(column_id, str) or not column_id:
                raise Unclear("It is a change of a column that it does not name.")
            known = isinstance(kind, str) and "value" in event
            parts = columns.of_webhook(str(kind), event["value"]) if known else None
            return (self._board.fields_of(column_id, parts), True) if parts is not None else ({}, False)
        if action == RENAMED:
            value = event.get("value")
            name = value.get("name") if isinstance(value, dict) else None
            return ({"name": name}, True) if isinstance(name, str) else ({}, False)
        if action == MOVED:
            group = event.get("destGroupId")
            return ({"group": group}, True) if isinstance(group, str) and group else ({}, False)
        fields: dict[str, Value] = {}
        values = event.get("columnValues")
        for column_id, value in values.items() if isinstance(values, dict) else ():
            fields |= self._board.fields_of(column_id, columns.of_unnamed(value) or {})
        for name, told in (("name", event.get("pulseName")), ("group", event.get("groupId"))):
            if action == CREATED and isinstance(told, str) and told:
                fields[name] = told
        return fields, False

    # --- reading -----------------------------------------------------------------------------------------

    def can_read(self) -> bool:
        return self._settings.token is not None

    def read(self, api: Api, keys: Sequence[RecordKey], fields: Sequence[str]) -> list[Read]:
        """See `Source.read`. At most 100 items a call."""
        return Items(account_of(self.name, self._settings), self._board).read(api, keys, fields)


def board_of(settings: Settings) -> Board:
    return Board(str(settings.board_id).strip(), settings.columns)


def account_of(name: str, settings: Settings) -> Account:
    return Account(name, settings.token, settings.api_version)


def _look_at(settings: Settings, keys: Sequence[bytes], board: Board, complaints: Complaints) -> None:
    """Complain about settings that prove nothing, or cannot work together."""
    number = board.id.isascii() and board.id.isdigit()
    complaints.unless(number, "board_id: it is the number in the board's URL, behind /boards/")
    if settings.proof == "jwt":
        complaints.unless(bool(keys), "secrets: at least one is needed, or anyone could send")
        complaints.unless(all(keys), "secrets: the secret is empty: anyone could sign with it")
    else:
        complaints.unless(
            settings.require_token,
            "require_token: it must be true with proof = 'url': nothing else proves such a webhook",
        )
        complaints.unless(not keys, "secrets: they prove nothing with proof = 'url'; leave the key out")
    for name, column_id in settings.columns.items():
        complaints.unless(bool(name.strip() and column_id.strip()), "columns: a name or a column's id is empty")
        complaints.unless(
            name not in ("name", "group"), f"columns: every item has a field '{name}' already; choose another name"
        )
    several = len(set(settings.columns.values())) < len(settings.columns)
    complaints.unless(not several, "columns: two fields lead to one column; one is enough")
    empty = settings.token is not None and not settings.token.reveal().strip()
    complaints.unless(not empty, "token: it is empty; leave the key out if items are not to be read")


# --- one event -------------------------------------------------------------------------------------------


def _uuid(event: Mapping[str, Any]) -> str | None:
    """Return what tells an event and its repeats from others.

    A repeat is documented to name the first delivery. What it calls itself may be new; and what a first delivery
    names as its origin may be something else, such as the automation that set it off.
    """
    first = text_or_none(event.get("originalTriggerUuid")) if event.get("isRetry") is True else None
    return first or text_or_none(event.get("triggerUuid")) or None


def _key(event: Mapping[str, Any]) -> str:
    told = {name: value for name, value in event.items() if name not in VOLATILE}
    uuid = _uuid(event)
    return event_key("monday", uuid or text_or_none(event.get("triggerTime")), fingerprint(told))


def _occurred_at(event: Mapping[str, Any]) -> tuple[datetime | None, bool]:
    """Return when it happened, and whether that is sure.

    Of a repeat, the time of the trigger may be that of the repeat: then the item is read, if it can be.
    """
    if event.get("changedAt") is not None:
        return moment(event["changedAt"], "changedAt"), True
    if event.get("triggerTime") is not None:
        return moment(event["triggerTime"], "triggerTime"), event.get("isRetry") is not True
    return None, False


# --- what else monday.com asks, and takes ----------------------------------------------------------------


def handshake(request: InboundRequest) -> Answer | None:
    """Answer the question that monday.com asks of a URL before it makes a webhook: say the same."""
    if len(request.body) > LONGEST_QUESTION:  # whoever asks has proven nothing
        return None
    try:
        body = read_json(request.body)
    except BadPayload:
        return None
    challenge = body.get("challenge") if isinstance(body, dict) and len(body) == 1 else None
    if not isinstance(challenge, str) or not 0 < len(challenge) <= LONGEST_CHALLENGE:
        return None
    return Answer(json.dumps({"challenge": challenge}, separators=(",", ":")).encode(), "application/json")


def sample(wanted: Sampling) -> bytes:
    """Return a new item, with values in the columns that rules read."""
    settings = wanted.settings if isinstance(wanted.settings, Settings) else None
    values = dict(made_up(wanted.reads) or {"email": "ada@example.com", "phone": "+14155550123"})
    name = values.pop("name", "Ada Lovelace")
    ids = settings.columns if settings else {}
    at = iso(wanted.at)
    event = {
        "app": "monday",
        "type": CREATED,
        "triggerTime": at,
        "subscriptionId": 73759690,
        "isRetry": False,
        "userId": 4012689,
        "originalTriggerUuid": None,
        "boardId": int(board_of(settings).id if settings else SAMPLE_BOARD),
        "groupId": "topics",
        "pulseId": SAMPLE_NUMBER,
        "pulseName": name,
        "columnValues": {ids.get(one, one): _written(value) for one, value in values.items()},
        "triggerUuid": event_key("trigger", at)[:32],
    }
    return json.dumps({"event": event}, separators=(",", ":")).encode()


def _written(value: str) -> dict[str, str]:
    if "@" in value:
        return {"email": value, "text": value}
    return {"phone": value, "countryShortName": "US"} if value.startswith("+") else {"value": value}


def _items(name: str, settings: Settings) -> Items | None:
    return Items(account_of(name, settings), board_of(settings)) if settings.token else None


def _webhooks(name: str, settings: Settings) -> Webhooks | None:
    made_by_app = settings.proof == "jwt"
    return Webhooks(account_of(name, settings), board_of(settings), made_by_app) if settings.token else None


def _refusal(name: str, settings: Settings) -> Refusal | None:
    value = settings.opt_out_value.strip()
    return Refusal(account_of(name, settings), board_of(settings), value) if settings.token else None


SOURCE = SourceType(
    name="monday",
    title="monday.com",
    settings=Settings,
    make=Monday,
    kept_headers=("content-type", "user-agent"),
    proof=Proof.SHOWN,
    read_limit=READ_LIMIT,
    read_base_url=lambda settings: str(settings.api_base),
    known_fields=("email", "group", "name", "phone", "phone_country"),
    sample=sample,
    usual={
        "email": "email",
        "phone": "phone | e164(phone_country)",
        "first_name": "name | split_name('first')",
        "last_name": "name | split_name('last')",
        "name": "name",
    },
    steps=(
        "In monday.com open the *Developer Center* (your picture, *Developers*) and create an app for bridge "
        "alone. Under *OAuth & permissions* choose the scopes `boards:read`, `webhooks:read` and "
        "`webhooks:write` (and `boards:write` if bridge shall write opt-outs), and install it.",
        "Copy the app's *Signing Secret* (`secrets`), and a token that was given out to the app by OAuth "
        "(`token`), into the environment variables that `bridge.toml` names for them.",
        "Open the board. The number in its URL behind `/boards/` is `board_id`. Switch on *Developer mode* under "
        "*monday.labs*, read the ids of its columns in each column's menu, and give them names under `columns`.",
        "Start bridge, so that it can answer the question that monday.com asks of a new URL, and run "
        "`bridge register {name}`: it makes the webhooks, as the app.",
        "By hand instead, without an app: set `proof` to `url` and `require_token` to `true`, open *Integrate* on "
        "the board, search for *webhooks*, and add *When an item is created*, *When any column changes*, *When an "
        "item name changes*, *When an item is deleted* and *When an item is archived*, each with the URL that "
        "`bridge url {name}` prints.",
    ),
    manual="https://developer.monday.com/api-reference/reference/webhooks",
    handshake=handshake,
    lister=_items,
    registrar=_webhooks,
    writer=_refusal,
)
