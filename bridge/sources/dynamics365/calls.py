"""Calls to the Web API of a Dataverse environment: read, list, write an opt-out.

https://learn.microsoft.com/power-apps/developer/data-platform/webapi/overview
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from bridge.errors import SourceUnavailable
from bridge.model import RecordKey, Value, Version
from bridge.outbound import Api, segment
from bridge.sources.base import BatchUnreadable, Listed, Read
from bridge.sources.calling import Caller, list_of, object_of, parts_of, place_of
from bridge.sources.dynamics365.payloads import CONTACT, is_guid
from bridge.sources.dynamics365.settings import Settings, shown
from bridge.sources.oauth import AccessTokens
from bridge.sources.reading import Unclear, moment, text_or_none

ROOT = "/api/data/v9.2"
CONTACTS = f"{ROOT}/contacts"
COLUMNS = f"{ROOT}/EntityDefinitions(LogicalName='{CONTACT}')/Attributes"
READ_LIMIT = 50  # ids in one filter: the URL must stay short
PAGE = 500
MOST_MERGES = 10  # followed from a record to the one that it lives on as
NEEDED = "an application user with a security role that may read and write contacts"
HEADERS = {"OData-Version": "4.0", "OData-MaxVersion": "4.0"}
LOOKUPS = frozenset({"Lookup", "Customer", "Owner"})
CHOICES = "MultiSelectPicklistType"
OWN = ("contactid", "modifiedon", "merged", "_masterid_value")  # asked for whatever the rules read
_QUERY = re.compile(r"[\x21-\x7e]{1,8000}")


@dataclass(frozen=True, slots=True)
class Column:
    """A column of contacts: how the Web API names it, and whether it is a choice of several."""

    wire: str
    choices: bool = False


@dataclass
class _Columns:
    """The columns of contacts, asked for once: to name one that is not there makes the whole call fail."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    known: Mapping[str, Column] | None = None
    no_filter: bool = False  # this environment takes no list of ids

    def get(self, ask: Callable[[], Mapping[str, Column]]) -> Mapping[str, Column]:
        with self.lock:
            if self.known is None:
                self.known = ask()
            return self.known

    def forget(self) -> None:
        """Ask again next time: somebody may have removed one."""
        with self.lock:
            self.known = None


@dataclass(frozen=True)
class Environment:
    """The contacts of one environment."""

    name: str  # of the connection
    base: str
    caller: Caller
    _columns: _Columns = field(default_factory=_Columns)

    # --- reading -----------------------------------------------------------------------------------------

    def read(self, api: Api, keys: Sequence[RecordKey], fields: Sequence[str]) -> list[Read]:
        """See `Source.read`. A record that was merged into another is read as that one."""
        asked = list(dict.fromkeys(key.source_id for key in keys))
        usable = [one for one in asked if is_guid(one)]
        columns = self._named(api, fields) if usable else {}
        rows, problems = self._rows(api, usable, columns)
        reads = {}
        for source_id in asked:
            if source_id in problems:
                key = RecordKey(self.name, source_id)
                reads[source_id] = Read(key, key, None, None, problem=problems[source_id])
                continue
            row = rows.get(source_id)
            try:
                reads[source_id] = self._as_read(source_id, self._survivor(api, row, columns), columns)
            except BatchUnreadable as error:
                key = RecordKey(self.name, source_id)
                reads[source_id] = Read(key, key, None, None, problem=str(error))
        return [replace(reads[key.source_id], asked=key) for key in keys]

    def _rows(
        self, api: Api, ids: Sequence[str], columns: Mapping[str, Column]
    ) -> tuple[dict[str, Mapping[str, Any]], dict[str, str]]:
        """Return the rows of *ids* by id, and why nothing was learnt of some."""
        if len(ids) > 1 and not self._columns.no_filter:
            listed = ",".join(f"'{one}'" for one in ids)
            chosen = f"Microsoft.Dynamics.CRM.In(PropertyName='contactid',PropertyValues=[{listed}])"
            query = {"$select": _select(columns), "$filter": chosen}
            reply = self.caller.call(api, "GET", CONTACTS, query=query, expected=(200, 400, 404, 414, 501))
            if reply.status == 200:
                return self._by_id(reply.json_or_none()), {}
            # The filter, a column that is gone, or one record: alone, each says what is the matter with it.
        rows: dict[str, Mapping[str, Any]] = {}
        problems: dict[str, str] = {}
        for one in ids:
            try:
                row = self._row(api, one, columns)
            except BatchUnreadable as error:
                self._columns.forget()  # one may be gone
                problems[one] = str(error)
                continue
            rows |= {one: row} if row is not None else {}
        if len(ids) > 1 and not problems:
            self._columns.no_filter = True
        return rows, problems

    def _row(self, api: Api, source_id: str, columns: Mapping[str, Column]) -> Mapping[str, Any] | None:
        """Return one row, None where there is none."""
        path = f"{CONTACTS}({segment(source_id)})"
        reply = self.caller.call(api, "GET", path, query={"$select": _select(columns)}, expected=(200, 404))
        if reply.status == 404:
            return None
        row = object_of(reply.json_or_none())
        if _id(row) != source_id:
            raise BatchUnreadable("Dataverse's answer is not the contact that was asked for.")
        return row

    def _by_id(self, answer: Any) -> dict[str, Mapping[str, Any]]:
        rows = object_of(answer).get("value")
        if not isinstance(rows, list):
            raise BatchUnreadable("Dataverse's answer holds no list of contacts.")
        return {_id(row): row for row in map(object_of, rows) if _id(row)}

    def _survivor(
        self, api: Api, row: Mapping[str, Any] | None, columns: Mapping[str, Column]
    ) -> Mapping[str, Any] | None:
        """Return the row that *row* lives on as, which is mostly itself."""
        for _ in range(MOST_MERGES):
            master = _master(row)
            if not master:
                return row
            row = self._row(api, master, columns)
        raise BatchUnreadable("The contact was merged, and what it was merged into leads nowhere.")

    def _as_read(self, source_id: str, row: Mapping[str, Any] | None, columns: Mapping[str, Column]) -> Read:
        asked = RecordKey(self.name, source_id)
        if row is None:
            return Read(asked, asked, None, None)
        try:
            changed_at = moment(row.get("modifiedon"), "modifiedon")
        except Unclear:
            problem = "Dataverse's answer does not say when the contact was last changed."
            return Read(asked, asked, None, None, problem=problem)
        # Null: the column is empty. Absent: the application user may not see it.
        said = {name: _value(row[one.wire], one) for name, one in columns.items() if one.wire in row}
        return Read(asked, RecordKey(self.name, _id(row)), said, Version(changed_at, "read"))

    # --- columns -----------------------------------------------------------------------------------------

    def _named(self, api: Api, names: Iterable[str]) -> dict[str, Column]:
        """Return those of the columns *names* that there are."""
        known = self._columns.get(lambda: self._ask_columns(api))
        return {name: known[name] for name in sorted(set(names)) if name in known}

    def _ask_columns(self, api: Api) -> Mapping[str, Column]:
        answer = self.caller.json(
            api, "GET", COLUMNS, query={"$select": "LogicalName,AttributeType,AttributeTypeName,IsValidForRead"}
        )
        found = {}
        for one in map(object_of, list_of(object_of(answer).get("value"))):
            name = text_or_none(one.get("LogicalName")) or ""
            if name and one.get("IsValidForRead") is not False:
                wire = f"_{name}_value" if one.get("AttributeType") in LOOKUPS else name
                found[name] = Column(wire, object_of(one.get("AttributeTypeName")).get("Value") == CHOICES)
        if not found:
            raise BatchUnreadable("Dataverse's answer holds no list of columns.")
        return found

    # --- listing -----------------------------------------------------------------------------------------

    def page(self, api: Api, fields: Sequence[str], after: str | None, since: datetime | None) -> Listed:
        """See `Lister.page`. Ordered by id, and the next page begins behind an id: rows do not shift.

        Of the link to the next page only the query counts, and it must be a link to what we call.
        https://learn.microsoft.com/power-apps/developer/data-platform/webapi/query/page-results
        """
        columns = self._named(api, fields)
        query = {"$select": _select(columns), "$orderby": "contactid asc"}
        if since is not None:
            at = since.astimezone(UTC).replace(microsecond=0).isoformat().replace("+00:00", "Z")
            query["$filter"] = f"modifiedon ge {at}"
        following = text_or_none(parts_of(after).get("query"))
        caller = replace(self.caller, headers={**HEADERS, "Prefer": f"odata.maxpagesize={PAGE}"})
        path = f"{CONTACTS}?{following}" if following else CONTACTS
        try:
            answer = caller.json(api, "GET", path, query=None if following else query)
            rows = self._by_id(answer)
        except BatchUnreadable:
            self._columns.forget()
            raise
        # One that was merged is there still, deactivated; who it was lives on as another row.
        reads = [self._as_read(one, row, columns) for one, row in rows.items() if not _master(row)]
        link = object_of(answer).get("@odata.nextLink")
        if link is None:
            return Listed(reads, None)
        if (query_of_next := self._query_of(link)) == following:
            raise BatchUnreadable("Dataverse's list does not go on where the last page ended.")
        return Listed(reads, place_of(query=query_of_next))

    def _query_of(self, link: Any) -> str:
        """Return the query of a link to the next page, if it is one of our own contacts.

        Raises:
            SourceUnavailable: it leads elsewhere.
        """
        try:
            parts, base = urlsplit(str(link)), urlsplit(self.base)
            ours = (parts.scheme, parts.hostname, parts.port) == (base.scheme, base.hostname, base.port)
        except ValueError:
            ours = False
        if not ours or parts.path != base.path + CONTACTS or not _QUERY.fullmatch(parts.query):
            raise SourceUnavailable(
                f"Dataverse's list goes on at another address than the api_base of {self.name}, which bridge does "
                "not call. Check api_base."
            )
        return parts.query

    # --- writing -----------------------------------------------------------------------------------------

    def opt_out(self, api: Api, source_id: str, name: str) -> None:
        """See `Writer.opt_out`. Nobody is created who is not there."""
        if not is_guid(source_id) or name not in self._columns.get(lambda: self._ask_columns(api)):
            raise SourceUnavailable("Dataverse has no such contact, or contacts have no such column.")
        caller = replace(self.caller, headers={**HEADERS, "If-Match": "*"})
        path = f"{CONTACTS}({segment(source_id)})"
        caller.call(api, "PATCH", path, json={name: True}, expected=(200, 204))


def environment(name: str, settings: Settings) -> Environment | None:
    """Return the environment that *settings* lead to, None where nothing gives access to it."""
    if not settings.can_call:
        return None
    path = f"/{segment(shown(settings.tenant_id))}/oauth2/v2.0/token"
    tokens = AccessTokens("Microsoft Entra ID", name, settings.login_base, path, settings.form)
    caller = Caller("Dataverse", name, headers=HEADERS, scope=NEEDED, tokens=tokens)
    return Environment(name, settings.base, caller)


def _select(columns: Mapping[str, Column]) -> str:
    return ",".join(dict.fromkeys([*OWN, *(one.wire for one in columns.values())]))


def _id(row: Mapping[str, Any]) -> str:
    given = row.get("contactid")
    return given.lower() if isinstance(given, str) and is_guid(given) else ""


def _master(row: Mapping[str, Any] | None) -> str:
    """Return the id of the record that *row* was merged into, "" where it was not."""
    master = row.get("_masterid_value") if row and row.get("merged") is True else None
    return master.lower() if isinstance(master, str) and is_guid(master) else ""


def _value(value: Any, column: Column) -> Value:
    if column.choices and isinstance(value, str):  # "1,2", where a webhook has a list
        return [
            int(one) if one.strip().lstrip("-").isdigit() else one.strip()
            for one in value.split(",")
            if one.strip()
        ]
    kept: Value = value
    return kept
