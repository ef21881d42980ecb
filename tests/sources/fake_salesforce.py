"""A Salesforce organization on loopback: its contacts, its REST API, and the messages that it would send.

Strict: what Salesforce refuses is refused here, and times have seconds only, as there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any
from urllib.parse import parse_qs

from flask import Flask, Response, request

from bridge.demo.fakes.base import Fake, answer
from bridge.model import utc_now
from bridge.sources.salesforce.messages import write_message

API = "/services/data/v63.0"
SYSTEM = {"Id", "CreatedDate", "LastModifiedDate", "SystemModstamp", "IsDeleted", "MasterRecordId"}
FIELDS = {
    "Email", "FirstName", "LastName", "Phone", "MobilePhone", "HasOptedOutOfEmail", "DoNotCall", "SMS_Opt_In__c",
    "Calls__c", "MailingAddress", "Last_Call__c",
}  # fmt: skip
CHECKBOXES = {"HasOptedOutOfEmail", "DoNotCall", "SMS_Opt_In__c"}
MOST_IDS = 2000
LITERAL = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z"
LIST = re.compile(
    r"SELECT (?P<columns>[\w, ]+) FROM Contact(?: WHERE (?P<where>.+))? "
    r"ORDER BY SystemModstamp ASC, Id ASC LIMIT (?P<limit>[0-9]+)"
)
COUNT = re.compile(r"SELECT COUNT\(\) FROM Contact(?: WHERE (?P<where>.+))?")
SINCE = re.compile(rf"SystemModstamp >= (?P<at>{LITERAL})")
BEHIND = re.compile(
    rf"SystemModstamp > (?P<at>{LITERAL}) OR \(SystemModstamp = (?P=at) AND Id > '(?P<id>[A-Za-z0-9]{{18}})'\)"
)
MERGED = re.compile(
    r"SELECT Id, MasterRecordId FROM Contact WHERE Id IN \((?P<ids>'[A-Za-z0-9]{18}'(?:, '[A-Za-z0-9]{18}')*)\) "
    r"AND IsDeleted = true AND MasterRecordId != null"
)
BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def id18(short: str) -> str:
    """Return an id with the three characters that tell the case of its letters."""
    checks = ""
    for five in (short[0:5], short[5:10], short[10:15]):
        bits = sum(2**place for place, letter in enumerate(five) if letter.isupper())
        checks += "ABCDEFGHIJKLMNOPQRSTUVWXYZ012345"[bits]
    return short + checks


class Salesforce(Fake):
    """See the module's docstring.

    - ``nothing``: how a message has a field without a value: left out, as nil, or empty.
    - ``gone``: what a message says of a record that was deleted meanwhile.
    - ``blank``: whether a read has null for a field without a value, or leaves it out.
    - ``pages``: whether a query answers with all that was asked for, or with less and a link to more.
    - ``said``: whether an answer says when it was made.
    - ``offset``: how times are written in answers.
    """

    title = "Salesforce"
    organization = "00D1I000003qqqEUAQ"
    client_id, client_secret, refresh_token = "consumer-key", "consumer-secret", "5Aep861.refresh"
    SWITCHES: Mapping[str, tuple[Any, ...]] = {
        "nothing": ("left_out", "nil", "empty"),
        "gone": ("no_object", "nil", "empty", "only_the_id"),
        "blank": ("null", "left_out"),
        "pages": ("whole", "short"),
        "said": ("told", "untold"),
        "offset": ("+0000", "Z"),
    }

    def __init__(self, *, clock: Callable[[], datetime] = utc_now, **switches: Any) -> None:
        self.clock = clock
        self.records: dict[str, dict[str, Any]] = {}
        self.tokens: list[str] = []
        self.fields = set(FIELDS)
        self.used_up = False  # the calls of the day
        self._last = 0
        super().__init__(**switches)

    # --- what people do in Salesforce ---

    def create(self, **fields: Any) -> str:
        with self.lock:
            self._last += 1
            source_id = self._id("003", self._last)
            self.records[source_id] = {**dict.fromkeys(CHECKBOXES, False), **fields, "CreatedDate": self._now()}
            self._touch(source_id)
            return source_id

    def change(self, source_id: str, **fields: Any) -> None:
        with self.lock:
            self.records[source_id] |= fields
            self._touch(source_id)

    def delete(self, source_id: str, master: str | None = None) -> None:
        """Put a contact into the recycle bin; merged into *master*, where that is named."""
        with self.lock:
            self.records[source_id] |= {"IsDeleted": True, "MasterRecordId": master}
            self._touch(source_id)

    def message(self, *ids: str, ticked: Sequence[str] = ("Email", "LastName", "LastModifiedDate")) -> bytes:
        """Return an Outbound Message about contacts, as they are now."""
        told = {}
        with self.lock:
            for source_id in ids:
                self._last += 1
                told[self._id("04l", self._last)] = self._told(source_id, ticked)
        body = write_message(self.organization, told)
        return self._as_switched(body)

    def _told(self, source_id: str, ticked: Sequence[str]) -> dict[str, str]:
        record = self.records[source_id]
        if record.get("IsDeleted"):
            return {"GONE": source_id}
        values = {"Id": source_id}
        for name in ticked:
            value = record.get(name)
            if isinstance(value, datetime):
                value = f"{value:%Y-%m-%dT%H:%M:%S}.000Z"
            if value in (None, ""):
                if self.switches["nothing"] != "left_out":
                    values[name] = ""
            else:
                values[name] = str(value).lower() if isinstance(value, bool) else str(value)
        return values

    def _as_switched(self, body: bytes) -> bytes:
        text = body.decode()
        if self.switches["nothing"] == "nil":
            text = re.sub(r"<sf:(\w+)></sf:\1>", r'<sf:\1 xsi:nil="true"/>', text)
        begin = r'<sObject xsi:type="sf:Contact" xmlns:sf="[^"]+">'
        shown = {
            "no_object": "",
            "nil": '<sObject xsi:nil="true"/>',
            "empty": "<sObject/>",
            "only_the_id": r"\g<1><sf:Id>\g<2></sf:Id></sObject>",
        }[self.switches["gone"]]
        return re.sub(rf"({begin})<sf:GONE>(\w+)</sf:GONE></sObject>", shown, text).encode()

    def callout(self, source_id: str, event: str = "contact.updated", **more: Any) -> dict[str, Any]:
        """Return what a flow sends with the body that the page about Salesforce has."""
        at = self.records[source_id]["LastModifiedDate"]
        told = {"event": event, "org_id": self.organization, "record_id": source_id}
        return {**told, "changed_at": f"{at:%Y-%m-%dT%H:%M:%S}Z", **more}

    @staticmethod
    def _id(prefix: str, number: int) -> str:
        digits = ""
        for _ in range(7):
            number, digit = divmod(number, 62)
            digits = BASE62[digit] + digits
        return id18(f"{prefix}1I000{digits}")

    def _now(self) -> datetime:
        return self.clock().astimezone(UTC).replace(microsecond=0)

    def _touch(self, source_id: str) -> None:
        now = self._now()
        self.records[source_id] |= {"Id": source_id, "LastModifiedDate": now, "SystemModstamp": now}

    # --- the API ---

    def routes(self, app: Flask) -> None:
        app.post("/services/oauth2/token")(self._token)
        app.post(f"{API}/composite/sobjects/Contact")(self._read)
        app.get(f"{API}/query")(self._query)
        app.get(f"{API}/queryAll")(self._query_all)
        app.route(f"{API}/sobjects/Contact/<source_id>", methods=["PATCH"])(self._patch)
        app.before_request(self._authorise)
        app.after_request(self._date)

    def expire(self) -> None:
        """End every session."""
        self.tokens.clear()

    def _date(self, response: Response) -> Response:
        if self.switches["said"] == "told":
            response.headers["Date"] = format_datetime(self._now(), usegmt=True)
        return response

    def _token(self) -> Response:
        form = {name: values[0] for name, values in parse_qs(request.get_data(as_text=True)).items()}
        given = {"client_id": self.client_id, "client_secret": self.client_secret}
        if form.get("grant_type") == "refresh_token":
            given["refresh_token"] = self.refresh_token
        elif form.get("grant_type") != "client_credentials":
            return answer(400, {"error": "unsupported_grant_type"})
        if {name: value for name, value in form.items() if name != "grant_type"} != given:
            return answer(400, {"error": "invalid_grant", "error_description": "authentication failure"})
        self.tokens.append(f"00D1I000003qqqE!AQ.{len(self.calls)}")
        # It names no time, and another instance: nothing of that is to be believed.
        return answer(
            200,
            {"access_token": self.tokens[-1], "instance_url": "http://127.0.0.1:9", "token_type": "Bearer"},
        )

    def _authorise(self) -> Response | None:
        if request.path == "/services/oauth2/token":
            return None
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in self.tokens:
            return _errors(401, "INVALID_SESSION_ID", "Session expired or invalid")
        if self.used_up:
            return _errors(403, "REQUEST_LIMIT_EXCEEDED", "TotalRequests Limit exceeded.")
        return None

    def _read(self) -> Response:
        asked = request.get_json()
        ids, names = asked["ids"], asked["fields"]
        if len(ids) > MOST_IDS or len(set(ids)) != len(ids):
            return _errors(400, "TOO_MANY_RECORDS", "at most 2000 ids, each once")
        if not all(re.fullmatch(r"003[A-Za-z0-9]{15}", one) for one in ids):
            return _errors(400, "MALFORMED_ID", "malformed id")
        if refused := self._refused(names):
            return refused
        shown = [self.records.get(one) for one in ids]
        return answer(
            200, [None if one is None or one.get("IsDeleted") else self._shown(one, names) for one in shown]
        )

    def _refused(self, names: Sequence[str]) -> Response | None:
        lower = [name.lower() for name in names]
        if len(set(lower)) != len(lower):
            return _errors(400, "MALFORMED_QUERY", f"duplicate field selected: {names[0]}")
        known = {name.lower() for name in SYSTEM | self.fields}
        for name in names:
            if name.lower() not in known:
                message = (
                    f"\nERROR at Row:1:Column:8\nNo such column '{name}' on entity 'Contact'. ada@example.com"
                )
                return _errors(400, "INVALID_FIELD", message)
        return None

    def _shown(self, record: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
        spelt = {name.lower(): name for name in SYSTEM | self.fields}
        shown: dict[str, Any] = {
            "attributes": {"type": "Contact", "url": f"{API}/sobjects/Contact/{record['Id']}"}
        }
        for name in (spelt[one.lower()] for one in names):
            value = record.get(name)
            if isinstance(value, datetime):
                value = f"{value:%Y-%m-%dT%H:%M:%S}.000{self.switches['offset']}"
            if value not in (None, "") or self.switches["blank"] == "null":
                shown[name] = None if value == "" else value
        return shown

    def _query(self) -> Response:
        query = request.args["q"]
        alive = [one for one in self.records.values() if not one.get("IsDeleted")]
        if counted := COUNT.fullmatch(query):
            return answer(200, {"totalSize": len(_chosen(alive, counted["where"])), "done": True, "records": []})
        listed = LIST.fullmatch(query)
        if listed is None or int(listed["limit"]) > MOST_IDS:
            return _errors(400, "MALFORMED_QUERY", "unexpected token")
        names = listed["columns"].split(", ")
        if refused := self._refused(names):
            return refused
        rows = sorted(_chosen(alive, listed["where"]), key=lambda one: (one["SystemModstamp"], one["Id"]))
        rows = rows[: int(listed["limit"])]
        body: dict[str, Any] = {"totalSize": len(rows), "done": True}
        if self.switches["pages"] == "short" and len(rows) > 2:
            rows = rows[: len(rows) // 2]
            body |= {"done": False, "nextRecordsUrl": "http://127.0.0.1:9/services/data/v63.0/query/01g-500"}
        return answer(200, {**body, "records": [self._shown(one, names) for one in rows]})

    def _query_all(self) -> Response:
        asked = MERGED.fullmatch(request.args["q"])
        if asked is None:
            return _errors(400, "MALFORMED_QUERY", "unexpected token")
        rows = [self.records[one] for one in re.findall(r"\w+", asked["ids"]) if one in self.records]
        gone = [one for one in rows if one.get("IsDeleted") and one.get("MasterRecordId")]
        shown = [self._shown(one, ["Id", "MasterRecordId"]) for one in gone]
        return answer(200, {"totalSize": len(gone), "done": True, "records": shown})

    def _patch(self, source_id: str) -> Response:
        if self.records.get(source_id, {"IsDeleted": True}).get("IsDeleted"):
            return _errors(404, "NOT_FOUND", "Provided external ID field does not exist or is not accessible")
        given = request.get_json()
        for name, value in given.items():
            if name not in self.fields:
                return _errors(400, "INVALID_FIELD", f"No such column '{name}' on sobject of type Contact")
            if name in CHECKBOXES and not isinstance(value, bool):
                return _errors(400, "JSON_PARSER_ERROR", "Cannot deserialize instance of boolean")
        self.change(source_id, **given)
        return Response("", 204)


def _chosen(rows: Sequence[dict[str, Any]], where: str | None) -> list[dict[str, Any]]:
    """Return the rows for which a condition holds; it is one of those that bridge may use."""
    if where is None:
        return list(rows)
    if since := SINCE.fullmatch(where):
        return [one for one in rows if one["SystemModstamp"] >= _moment(since["at"])]
    behind = BEHIND.fullmatch(where)
    assert behind, where
    place = (_moment(behind["at"]), behind["id"])
    return [one for one in rows if (one["SystemModstamp"], one["Id"]) > place]


def _moment(literal: str) -> datetime:
    return datetime.strptime(literal, "%Y-%m-%dT%H:%M:%S.%f%z").astimezone(UTC)


def _errors(status: int, code: str, message: str) -> Response:
    return answer(status, [{"message": message, "errorCode": code}])
