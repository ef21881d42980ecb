"""Sakari: https://developer.sakari.io/api-reference.

What shapes this adapter:

- A PUT replaces the contact, the person's opt-out (``blocked``, and ``optOut`` of each list) with it. So a contact
  is read right before it is written, sent back whole, and read again after; an opt-out that is gone then is put
  back and raises an alarm.
- The mobile number is the only key, and the search finds parts of numbers: every page is read, and each number
  compared exactly.
- A POST for a number that is there already overwrites that contact, so a search always comes first.
- What the vendor leaves open (how far PUT replaces, in which shape POST answers, whether ``blocked`` can be set)
  is never relied upon: what was written is read back, and what did not come about is said in a note.
"""

from __future__ import annotations

import base64
import json
import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC
from typing import Any, NoReturn

from bridge import values
from bridge.errors import Ambiguous, DeliveryFailed, Permanent, Refused, Retryable
from bridge.model import Mode, Receipt, Secret, Value
from bridge.outbound import Api, Reply, segment
from bridge.targets.base import FieldKind, Job, TargetField, TargetType, fail, quotable

TITLE = "Sakari"
ATTRIBUTE = "attributes."
TEXTS = ("email", "firstName", "lastName")
# What a PUT takes of a contact that was read. ``tags`` is of the older API; a replacing PUT would drop it.
ECHOED = (*TEXTS, "lists", "attributes", "optIn", "blocked", "tags")
LINKED = ("activecampaign", "hubspot", "pipedrive")  # Sakari's own integrations, which write contacts too
STOPPED = "CONT-010"  # "Contact has requested no further communication"
BAD_MOBILE = "CONT-001"
NO_ADDRESS = "no_address"  # our code for a path that the platform does not have
ACCOUNT_TROUBLE = {
    "ACCT-001": "the free limit is reached",
    "ACCT-006": "the account has not enough credit",
    "ACCT-008": "the account id is wrong",
    "ACCT-010": "this server's IP address is blocked",
    "ACCT-016": "the account has no access to the API",
    "ACCT-017": "the account has to be verified first",
}
PAGE = 100  # the most that a list gives at once
PAGES_MAX = 200  # a list that goes on for longer makes no sense
TOKEN_LIFE_S = 3600.0  # where a token does not say when it ends
TOKEN_EARLY_S = 60.0
CATALOGUE_LIFE_S = 900.0
CATALOGUE_PAUSE_S = 60.0  # an unknown attribute does not cost a call with every contact

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Settings:
    """The section of one Sakari account in ``bridge.toml``."""

    account_id: str = field(metadata={"help": "The account id, shown beside the API credentials in hub.sakari.io"})
    client_id: Secret = field(metadata={"help": "The client id of the API credentials"})
    client_secret: Secret = field(metadata={"help": "The client secret of the API credentials"})
    api_base: str = field(
        default="https://api.sakari.io", metadata={"help": "Where the API is; only to be changed for a proxy"}
    )

    def __post_init__(self) -> None:
        for name, text in (
            ("account_id", self.account_id),
            ("client_id", self.client_id.reveal()),
            ("client_secret", self.client_secret.reveal()),
        ):
            if not text.strip():
                raise ValueError(f"{name} is empty")


class _Gone(Retryable):
    """The contact is not there any more."""

    code = "stale"


class _SaidStop(Permanent):
    """The platform refuses a write because the person asked for no further communication."""

    code = "opted_out"


# --- speaking with the platform ----------------------------------------------------------------------------------


class _Tokens:
    """The account's access token, in memory only; one thread fetches it and the others wait for it.

    https://developer.sakari.io/api-reference/authentication/get-token-for-accessing-apis
    """

    def __init__(self, settings: Settings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        self._token = ""
        self._use_until = 0.0  # by the clock

    def current(self, api: Api, *, finishes: bool) -> str:
        with self._lock:
            if not self._token or self._clock() >= self._use_until:
                self._token, life_s = self._fetch(api, finishes=finishes)
                self._use_until = self._clock() + life_s - TOKEN_EARLY_S
            return self._token

    def drop(self, token: str) -> None:
        """Forget *token*, unless another thread has replaced it by now."""
        with self._lock:
            if self._token == token:
                self._token = ""

    def _fetch(self, api: Api, *, finishes: bool) -> tuple[str, float]:
        """Return a new token and for how many seconds it may be used."""
        asked = {
            "grant_type": "client_credentials",
            "client_id": self._settings.client_id.reveal(),
            "client_secret": self._settings.client_secret.reveal(),
        }
        reply = api.call("POST", "/oauth2/token", json=asked, confidential=True, finishes=finishes)
        if 400 <= reply.status < 500 and reply.status not in {408, 425, 429}:
            raise Refused(
                f"Sakari gives no access for the client id and client secret (HTTP {reply.status}).",
                status=reply.status,
            )
        if not reply.ok:
            fail(TITLE, reply, doing="asking for access")
        body = reply.json()
        if isinstance(body, dict) and (body.get("error") or body.get("success") is False):
            raise Refused("Sakari gives no access for the client id and client secret.", status=reply.status)
        token = body.get("access_token") if isinstance(body, dict) else None
        if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]+", token):
            raise Retryable("Sakari answered without an access token.", code="nonsense", status=reply.status)
        return token, self._life_s(token, body)

    def _life_s(self, token: str, body: Json) -> float:
        """Return how long the token lives, by the shortest of what is said about it."""
        told = [_seconds(body.get("expires_in"))]
        # In seconds, as the standard has it. The vendor's own client takes it for milliseconds.
        expires_at = _seconds(_claims(token).get("exp"))
        told.append(expires_at - self._clock() if expires_at is not None else None)
        return min((life_s for life_s in told if life_s is not None), default=TOKEN_LIFE_S)


def _seconds(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _claims(token: str) -> Json:
    """Return what a JWT says, unchecked: it is only used to know when to ask for the next one."""
    try:
        part = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (IndexError, ValueError, RecursionError):
        return {}
    return claims if isinstance(claims, dict) else {}


@dataclass(frozen=True, slots=True)
class _Account:
    """Calls to one account, for one push."""

    api: Api
    tokens: _Tokens
    path: str  # "/v1/accounts/<id>"

    def call(
        self,
        method: str,
        path: str = "",
        *,
        json: Any = None,
        query: Mapping[str, str | int] | None = None,
        creates: bool = False,
        finishes: bool = False,
    ) -> Reply:
        """Send one request; a token that is refused is replaced once.

        *finishes*: it completes a write that was made, and must not give way to newer state.
        """
        for last in (False, True):
            token = self.tokens.current(self.api, finishes=finishes)
            reply = self.api.call(
                method,
                self.path + path,
                json=json,
                query=query,
                headers={"Authorization": f"Bearer {token}"},
                creates=creates,
                finishes=finishes,
            )
            if reply.status != 401:
                break
            self.tokens.drop(token)
            if last:
                raise Refused("Sakari refuses an access token that it has just given out.", status=401)
        return reply

    def pages(self, path: str, query: Mapping[str, str | int], *, doing: str) -> Iterator[Json]:
        """Yield every row of a list, over all its pages."""
        offset = 0
        previous: list[Any] = []
        for _ in range(PAGES_MAX):
            reply = self.call("GET", path, query={**query, "offset": offset, "limit": PAGE})
            body = _body(reply, doing=doing)
            rows = body.get("data")
            if not isinstance(rows, list) or (rows and rows == previous):
                raise _nonsense(reply, doing)
            yield from (row for row in rows if isinstance(row, dict))
            offset += len(rows) or PAGE  # a page may be thinned out after it was cut
            previous = rows
            if not _more(body.get("pagination"), offset, len(rows)):
                return
        raise _nonsense(reply, doing)


def _more(pagination: Any, offset: int, rows: int) -> bool:
    """Say whether there is a next page, in both shapes that the vendor has documented."""
    if isinstance(pagination, dict):
        if isinstance(pagination.get("hasNext"), bool):
            return bool(pagination["hasNext"])
        total = pagination.get("totalCount")
        if isinstance(total, int):
            return offset < total
    return rows >= PAGE


def _nonsense(reply: Reply, doing: str) -> Retryable:
    return Retryable(
        f"Sakari answered something that bridge does not understand while {doing}.",
        code="nonsense",
        status=reply.status,
    )


def _body(reply: Reply, *, doing: str, sent: Any = None) -> Json:
    """Return the JSON object of a success.

    Raises:
        Retryable, Refused, Permanent: it is none, also when a 2xx says ``"success": false``.
    """
    if not reply.ok:
        _refuse(reply, doing, sent)
    body = reply.json() if reply.body else {}
    if not isinstance(body, dict):
        raise _nonsense(reply, doing)
    if body.get("success") is False:
        _refuse(reply, doing, sent)
    return body


def _refuse(reply: Reply, doing: str, sent: Any = None) -> NoReturn:
    """Raise what an error means: https://support.sakari.io, "Error codes"."""
    body = reply.json_or_none()
    error = body.get("error") if isinstance(body, dict) else None
    code = _code(error)
    if code.startswith("ACCT-"):
        why = ACCOUNT_TROUBLE.get(code, "something is wrong with the account")
        raise Refused(f"Sakari refuses {doing}: {why} ({code}).", status=reply.status)
    if reply.ok or (400 <= reply.status < 500 and reply.status not in {408, 425, 429}):
        if code == STOPPED:
            raise _SaidStop(f"The person asked for no further communication ({code}).", status=reply.status)
        if code == BAD_MOBILE:
            message = f"Sakari does not take the mobile number ({code})."
            raise Permanent(message, status=reply.status)
    if reply.status == 404:
        message = f"Sakari does not know the address used for {doing} (HTTP 404). Check account_id and api_base."
        raise Refused(message, code=NO_ADDRESS, status=404)
    said = quotable(error.get("message"), sent) if isinstance(error, dict) else ""
    detail = ", ".join(part for part in (code, said) if part)
    if reply.status == 409:
        message = f"Sakari says that another contact stands in the way (HTTP 409) of {doing}."
        raise Ambiguous(message, status=reply.status)
    if not reply.ok:
        fail(TITLE, reply, doing=doing, detail=detail)
    message = f"Sakari answered that {doing} failed" + (f": {detail}." if detail else ".")
    if code.startswith("CONT-"):
        raise Permanent(message, status=reply.status)
    raise Retryable(message, code="nonsense", status=reply.status)


def _code(error: Any) -> str:
    """Return the code of an ``error`` object, such as CONT-001, if it looks like one."""
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, str) and re.fullmatch(r"[A-Z]{2,8}-\d{1,4}", code) else ""


# --- a contact, as it was read -----------------------------------------------------------------------------------


def _is_contact(data: Any) -> bool:
    """Say whether *data* is a whole contact in the shapes that are built upon."""
    return (
        isinstance(data, dict)
        and isinstance(data.get("mobile"), dict)
        and isinstance(data.get("lists") or [], list)
        and isinstance(data.get("attributes") or {}, dict)
    )


def _opted_out(contact: Json) -> bool:
    return bool(contact.get("blocked")) or _code(contact.get("error")) == STOPPED


def _list_id(entry: Any) -> str:
    found = entry.get("id") if isinstance(entry, dict) else entry
    return str(found)


def _entries(contact: Json) -> dict[str, Any]:
    return {_list_id(entry): entry for entry in contact.get("lists") or []}


def _left(contact: Json) -> set[str]:
    """Return the ids of the lists that the person opted out of."""
    entries = _entries(contact).items()
    return {list_id for list_id, entry in entries if isinstance(entry, dict) and entry.get("optOut")}


def _lost(before: Json, after: Json) -> list[str]:
    """Name the opt-outs that were there *before* and are not *after*: nothing, unless something is very wrong."""
    lost = ["blocked"] if before.get("blocked") and not after.get("blocked") else []
    if not lost and "error" in after and _opted_out(before) and not _opted_out(after):
        lost = [STOPPED]
    return lost + [f"list {list_id}" for list_id in sorted(_left(before) - _left(after))]


def _echo(contact: Json) -> Json:
    """Return what a PUT has to hold so that it changes nothing: as read, and absent what was absent or null.

    A null would take away what came in since, such as an opt-out.
    """
    mobile = {name: contact["mobile"].get(name) for name in ("country", "number")}
    body: Json = {"mobile": {name: value for name, value in mobile.items() if value is not None}}
    body |= {name: contact[name] for name in ECHOED if contact.get(name) is not None}
    if "lists" in body:
        body["lists"] = [_without_nulls(entry) for entry in body["lists"]]
    if "attributes" in body:
        body["attributes"] = _without_nulls(body["attributes"])
    return body


def _without_nulls(entry: Any) -> Any:
    if not isinstance(entry, dict):
        return entry
    return {name: value for name, value in entry.items() if value is not None}


def _number(mobile: Any) -> str | None:
    """Return a contact's number as E.164, None if it has none that can be compared."""
    if not isinstance(mobile, dict) or not isinstance(mobile.get("number"), str):
        return None
    compact = re.sub(r"[\s()./-]", "", mobile["number"])
    if re.fullmatch(r"\+\d+", compact):
        return compact
    country = mobile.get("country")
    try:
        return values.e164(mobile["number"], country if isinstance(country, str) else None)
    except values.BadValue:
        return None


def _mobile(number: str) -> Json:
    """Return an E.164 number as the platform wants it, beside the country that it is of.

    Raises:
        Permanent: it belongs to no country.
    """
    # Only here: nothing else in the targets has to know the world's dialling plans, and loading them takes time.
    import phonenumbers

    try:
        parsed = phonenumbers.parse(number)
    except phonenumbers.NumberParseException as error:
        raise Permanent("The mobile number is not an international one.", code="invalid") from error
    # A number of a range that is not handed out (yet) still has a calling code.
    by_code = phonenumbers.region_code_for_country_code(parsed.country_code or 0)
    region = phonenumbers.region_code_for_number(parsed) or by_code
    if not re.fullmatch(r"[A-Z]{2}", region) or region == "ZZ":
        raise Permanent("The mobile number belongs to no country, and Sakari wants one.", code="invalid")
    return {"country": region, "number": number}


# --- fields ------------------------------------------------------------------------------------------------------


def _held(contact: Json, name: str) -> Value:
    """Return what *contact* holds of a target field."""
    if name == "mobile":
        return _number(contact["mobile"])
    if name == "lists":
        return [list_id for list_id in _entries(contact) if list_id not in _left(contact)]
    if name.startswith(ATTRIBUTE):
        name = name.removeprefix(ATTRIBUTE)
        contact = contact.get("attributes") or {}
    held: Value = contact.get(name)
    return held


def _text(value: Value) -> str:
    """Return *value* as the platform keeps it: attributes are texts."""
    if isinstance(value, list):
        return ", ".join(values.text(item) for item in value)
    return values.text(value)


def _same(contact: Json, name: str, wanted: Value) -> bool:
    """Say whether the contact holds *wanted*. Lists: whether the person is on each of them."""
    held = _held(contact, name)
    if name == "lists":
        return isinstance(held, list) and set(_names(wanted)) <= set(held)
    if values.is_empty(wanted) or values.is_empty(held):
        return values.is_empty(wanted) and values.is_empty(held)
    try:
        return held == wanted or _text(held) == _text(wanted)
    except values.BadValue:  # nothing that bridge could have written
        return False


def _names(wanted: Value) -> list[str]:
    return [str(name) for name in wanted] if isinstance(wanted, list) else []


def _accepted(contact: Json, fields: Mapping[str, Value]) -> dict[str, Value]:
    """Return what *contact* holds of *fields*, in the words of the rules where it is the same."""
    accepted: dict[str, Value] = {}
    for name, wanted in fields.items():
        if _same(contact, name, wanted):
            accepted[name] = wanted
        elif name == "lists":
            held = set(_entries(contact)) - _left(contact)
            accepted[name] = [list_id for list_id in _names(wanted) if list_id in held]
        else:
            accepted[name] = _held(contact, name)
    return accepted


def _due(contact: Json, job: Job, fields: Mapping[str, Value], notes: list[str]) -> dict[str, Value]:
    """Return those of *fields* that are to be written to *contact*."""
    due: dict[str, Value] = {}
    for name, wanted in fields.items():
        mode = job.desired.mode(name)
        kept = mode is Mode.IF_BLANK and not values.is_empty(_held(contact, name))
        if kept or mode is Mode.CREATE_ONLY or _same(contact, name, wanted):
            continue
        if name == "mobile" and values.is_empty(wanted):
            _note(notes, "The mobile number was left as it is: a Sakari contact cannot be without one.")
        elif name == "lists" and not (wanted := _joinable(contact, job, _names(wanted), notes)):
            continue
        else:
            due[name] = wanted
    return due


def _joinable(contact: Json, job: Job, wanted: Sequence[str], notes: list[str]) -> list[str]:
    """Return the lists that the person may be put on; never one that they left, and none once they said stop."""
    left = sorted(_left(contact) & set(wanted))
    if left:
        _note(notes, f"The person left {_naming_lists(left)} in Sakari and is not put there again.")
    missing = [list_id for list_id in wanted if list_id not in _entries(contact)]
    if missing and (_opted_out(contact) or job.desired.opt_out):
        _note(notes, f"The person opted out, so they were not put on {_naming_lists(missing)}.")
        return []
    return missing


def _naming_lists(list_ids: Sequence[str]) -> str:
    return ("list " if len(list_ids) == 1 else "lists ") + ", ".join(list_ids)


def _note(notes: list[str], note: str) -> None:
    if note not in notes:
        notes.append(note)


def _overlay(body: Json, due: Mapping[str, Value]) -> Json:
    """Return *body* with *due* written over it; what is cleared is left out, or empty where *body* says so."""
    laid = {**body, "attributes": dict(body.get("attributes") or {}), "lists": list(body.get("lists") or [])}
    for name, wanted in due.items():
        into, key = laid, name
        if name.startswith(ATTRIBUTE):
            into, key = laid["attributes"], name.removeprefix(ATTRIBUTE)
        if name == "mobile":
            laid[name] = _mobile(_text(wanted))
        elif name == "lists":
            laid[name] += [{"id": list_id} for list_id in _names(wanted)]
        elif values.is_empty(wanted):
            into.pop(key, None)
        else:
            into[key] = _text(wanted)
    # What was absent stays absent.
    return {name: value for name, value in laid.items() if value not in ({}, []) or name in body}


class _Catalogue:
    """The attributes that the account defines. The platform drops or refuses any other.

    https://developer.sakari.io/api-reference/accounts/fetch-account-attributes
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._names: frozenset[str] | None = None  # None: the account does not say
        self._read_at: float | None = None

    def unknown(self, account: _Account, wanted: set[str]) -> set[str]:
        """Return those of *wanted* that the account does not have."""
        with self._lock:
            age_s = math.inf if self._read_at is None else self._clock() - self._read_at
            stale = age_s >= CATALOGUE_LIFE_S
            doubtful = age_s >= CATALOGUE_PAUSE_S and self._names is not None and not wanted <= self._names
            if wanted and (stale or doubtful):
                self._read(account)
            return set() if self._names is None else wanted - self._names

    def changed(self, account: _Account) -> bool:
        """Read it again, if the last time was a while ago, and say whether it is another now."""
        with self._lock:
            if self._read_at is None or self._clock() - self._read_at < CATALOGUE_PAUSE_S:
                return False
            before = self._names
            self._read(account)
            return self._names != before

    def _read(self, account: _Account) -> None:
        names = set()
        try:
            for row in account.pages("/attributes/contacts", {}, doing="reading the account's attributes"):
                if isinstance(row.get("name"), str):
                    names.add(row["name"])
        except Refused as error:
            if error.code != NO_ADDRESS:
                raise
            self._names = None  # an account without this list: the platform has to sort them out
        else:
            self._names = frozenset(names)
        self._read_at = self._clock()


# --- the adapter -------------------------------------------------------------------------------------------------


class Sakari:
    """See the module's docstring. One instance serves all threads of the process."""

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.time) -> None:
        self._path = f"/v1/accounts/{segment(settings.account_id)}"
        self._account_id = settings.account_id
        self._tokens = _Tokens(settings, clock)
        self._catalogue = _Catalogue(clock)
        self._digits_found = False  # the filter was seen to find digits without the plus
        self._links_noted: set[str] = set()

    def deliver(self, api: Api, job: Job) -> Receipt:
        account = _Account(api, self._tokens, self._path)
        try:
            return self._deliver(account, job)
        except Permanent as error:
            # Perhaps an attribute was deleted in the account since its attributes were read.
            if error.code != Permanent.code or not _attributes(job) or not self._catalogue.changed(account):
                raise
            return self._deliver(account, job)

    def remove(self, api: Api, job: Job) -> Receipt:
        account = _Account(api, self._tokens, self._path)
        target_id = job.target_id
        if target_id is None:
            number = job.desired.fields.get("mobile") or (job.accepted or {}).get("mobile")
            target_id = self._find(account, number) if isinstance(number, str) else None
        if target_id is None:
            job.check_settled()
            return Receipt("absent")
        opted_out = False
        try:
            # Whoever removes the contact also removes its opt-out: it is remembered here instead.
            opted_out = _opted_out(self._get(account, target_id))
            reply = account.call("DELETE", f"/contacts/{segment(target_id)}")
            if reply.status not in {404, 410}:
                _body(reply, doing="removing the contact")
        except _Gone:
            pass
        return Receipt("removed", target_id, opted_out=opted_out)

    def check(self, api: Api) -> str:
        account = _Account(api, self._tokens, self._path)
        reply = account.call("GET")
        if reply.status == 404:
            raise Refused(f"Sakari knows no account {self._account_id}.", status=404)
        _body(reply, doing="reading the account")
        return f"Sakari gives access to the account {self._account_id}."

    def _deliver(self, account: _Account, job: Job) -> Receipt:
        notes: list[str] = []
        fields = self._known_fields(account, job, notes)
        if job.target_id is not None:
            try:
                return self._update(account, job, job.target_id, fields, notes)
            except _Gone:
                pass  # somebody removed it there: the number decides, once
        number = job.desired.fields.get("mobile")
        if not isinstance(number, str) or not number:
            if not job.may_create():
                return Receipt("absent", notes=tuple(notes))
            raise Permanent("There is no mobile number, without which Sakari has no contact.")
        target_id = self._find(account, number)
        if target_id is None:
            if not job.may_create():
                return Receipt("absent", notes=tuple(notes))
            try:
                return self._create(account, job, number, fields, notes)
            except Ambiguous as error:
                # Somebody was faster by a moment, if it can be found now.
                target_id = self._find(account, number) if error.status == 409 else None
                if target_id is None:
                    raise
        job.link(target_id)
        return self._update(account, job, target_id, fields, notes)

    def _known_fields(self, account: _Account, job: Job, notes: list[str]) -> dict[str, Value]:
        """Return the desired fields without attributes that the account does not define."""
        wanted = _attributes(job)
        unknown = self._catalogue.unknown(account, wanted)
        for name in sorted(unknown):
            _note(notes, f"The attribute {name} was left out: it has to be defined in the Sakari account first.")
        return {
            name: value
            for name, value in job.desired.fields.items()
            if not (name.startswith(ATTRIBUTE) and name.removeprefix(ATTRIBUTE) in unknown)
        }

    # --- finding ---

    def _find(self, account: _Account, number: str) -> str | None:
        """Return the id of the contact with exactly this number.

        Raises:
            Ambiguous: there are several.
        """
        found = self._holders(account, number)
        if len(found) > 1:
            raise Ambiguous("Several contacts in Sakari have this mobile number.")
        return found[0] if found else None

    def _holders(self, account: _Account, number: str) -> list[str]:
        """Return the ids of all contacts with exactly this number; the filter also finds parts of numbers."""
        digits = number.removeprefix("+")
        # The vendor does not say whether the filter wants the plus, so nothing counts as absent by one way only.
        for text in (digits, number):
            rows = account.pages("/contacts", {"mobile": text}, doing="searching for the contact")
            found = {row["id"]: None for row in rows if row.get("id") and _number(row.get("mobile")) == number}
            if found:
                self._digits_found = self._digits_found or text == digits
                return [str(contact_id) for contact_id in found]
            if self._digits_found:
                break
        return []

    def _get(self, account: _Account, target_id: str, *, finishes: bool = False) -> Json:
        reply = account.call("GET", f"/contacts/{segment(target_id)}", finishes=finishes)
        doing = "reading the contact"
        if reply.status in {404, 410}:
            raise _Gone("The contact is not in Sakari any more.", status=reply.status)
        contact: Json = _body(reply, doing=doing).get("data") or {}
        if not _is_contact(contact) or str(contact.get("id", target_id)) != target_id:
            raise _nonsense(reply, doing)
        return contact

    # --- creating ---

    def _create(
        self, account: _Account, job: Job, number: str, fields: Mapping[str, Value], notes: list[str]
    ) -> Receipt:
        """Create the contact.

        https://developer.sakari.io/api-reference/contacts/create-contact
        """
        body = _overlay({}, {name: value for name, value in fields.items() if not values.is_empty(value)})
        # Stated, as its default is not documented: of a contact that is there after all, nothing is removed.
        query = {"mergeStrategy": "append"}
        try:
            reply = account.call("POST", "/contacts", json=body, query=query, creates=True)
            made = _made(reply, number, body)
        except _SaidStop:
            note = "Sakari did not create the contact: the person asked for no further communication."
            return Receipt("absent", opted_out=True, notes=(*notes, note))
        target_id = str(made["id"]) if made.get("id") else self._find(account, number)
        if target_id is None:
            message = "Sakari says that it created the contact, but it cannot be found yet."
            raise Retryable(message, code="unsure", maybe_done=True)
        job.link(target_id)
        try:
            made = self._reread(account, target_id)
        except _Gone:
            if not _is_contact(made):
                raise
        self._note_mismatches(made, fields, notes)
        return self._receipt("created", made, target_id, fields, notes)

    # --- updating ---

    def _update(
        self, account: _Account, job: Job, target_id: str, fields: Mapping[str, Value], notes: list[str]
    ) -> Receipt:
        contact = self._get(account, target_id)
        written = False
        if job.desired.opt_out and not _opted_out(contact):
            # First and alone, so that no other field can stand in its way.
            contact, written = self._block(account, job, target_id, contact, notes)
        due = _due(contact, job, fields, notes)
        if "mobile" in due:
            self._check_free(account, _text(due["mobile"]), target_id)
            contact = self._get(account, target_id)  # the search took time in which the person may have said stop
            due = _due(contact, job, fields, notes)
        if due:
            written = True
            try:
                contact = self._write_fields(account, target_id, contact, due)
            except _SaidStop:
                note = "Sakari takes no changes: the person asked for no further communication."
                return Receipt("unchanged", target_id, _accepted(contact, fields), True, (*notes, note))
            self._note_mismatches(contact, due, notes)
        self._note_lists_kept(job, fields, notes)
        return self._receipt("updated" if written else "unchanged", contact, target_id, fields, notes)

    def _check_free(self, account: _Account, number: str, target_id: str) -> None:
        """Raise Ambiguous if another contact has *number*: what a PUT would do to the two is not documented."""
        if any(holder != target_id for holder in self._holders(account, number)):
            raise Ambiguous("Another contact in Sakari has the new mobile number already.")

    def _block(
        self, account: _Account, job: Job, target_id: str, contact: Json, notes: list[str]
    ) -> tuple[Json, bool]:
        """Write the opt-out; return the contact as it is then, and whether it was written.

        That ``blocked`` can be set is likely but not documented, so it counts only once it was read back.
        """
        since = job.now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        try:
            contact = self._write(account, target_id, contact, {**_echo(contact), "blocked": since})
        except _SaidStop:
            return {**contact, "error": {"code": STOPPED}}, True
        except Permanent as error:
            if error.status not in {400, 422}:
                raise
            contact = self._get(account, target_id)  # the next write is to follow its own reading
        if _opted_out(contact):
            return contact, True
        note = (
            "Manual action needed: Sakari did not take the opt-out. Open the contact there and block it. Bridge "
            "sees that with the next change."
        )
        _note(notes, note)
        return contact, False

    def _write_fields(self, account: _Account, target_id: str, contact: Json, due: Mapping[str, Value]) -> Json:
        """Write *due* over *contact* and return the contact as it is then."""
        try:
            contact = self._write(account, target_id, contact, _overlay(_echo(contact), due))
        except (_SaidStop, Ambiguous):
            raise
        except Permanent as error:
            if "mobile" in due and error.status in {400, 422} and BAD_MOBILE not in str(error):
                message = "Sakari does not let this contact have the new mobile number; another one may have it."
                raise Ambiguous(message, status=error.status) from error
            raise
        kept = [name for name, wanted in due.items() if values.is_empty(wanted) and not _same(contact, name, None)]
        return self._empty(account, target_id, contact, kept) if kept else contact

    def _empty(self, account: _Account, target_id: str, contact: Json, names: Sequence[str]) -> Json:
        """Clear what a PUT that left it out did not clear, by writing the empty text."""
        body = _echo(contact)
        for name in names:
            if name.startswith(ATTRIBUTE):
                body["attributes"] = {**body["attributes"], name.removeprefix(ATTRIBUTE): ""}
            else:
                body[name] = ""
        try:
            return self._write(account, target_id, contact, body)
        except Permanent:
            return contact  # it stays, and a note says so

    # --- writing, and proving that nobody's opt-out was lost ---

    def _write(self, account: _Account, target_id: str, before: Json, body: Json) -> Json:
        """Replace the contact and return it as it is then. *before* is what it was when *body* was made.

        https://developer.sakari.io/api-reference/contacts/updates-a-contact

        Raises:
            Refused: with the code ``loosened``, if an opt-out that was there before is gone.
        """
        try:
            answer = self._put(account, target_id, body)
        except Retryable as error:
            if not isinstance(error, Refused | _Gone) and error.code != "rate_limited":
                self._prove_after_trouble(account, target_id, before)
            raise
        if answer is not None:
            self._prove(account, target_id, before, answer)
        after = self._reread(account, target_id)
        self._prove(account, target_id, before, after)
        return after

    def _put(self, account: _Account, target_id: str, body: Json, *, finishes: bool = False) -> Json | None:
        """Send the PUT and return the contact that it answers with, None if it does not show one."""
        reply = account.call("PUT", f"/contacts/{segment(target_id)}", json=body, finishes=finishes)
        if reply.status in {404, 410}:
            raise _Gone("The contact is not in Sakari any more.", status=reply.status)
        data = _body(reply, doing="updating the contact", sent=body).get("data")
        return data if _is_contact(data) else None

    def _reread(self, account: _Account, target_id: str) -> Json:
        """Read what a write came to; a hiccup must not leave it unproven."""
        try:
            return self._get(account, target_id, finishes=True)
        except _Gone:
            raise
        except Retryable:
            return self._get(account, target_id, finishes=True)

    def _prove_after_trouble(self, account: _Account, target_id: str, before: Json) -> None:
        """The PUT may have happened though nobody said so: look, if one can."""
        try:
            after = self._reread(account, target_id)
        except Retryable:
            return
        self._prove(account, target_id, before, after)

    def _prove(self, account: _Account, target_id: str, before: Json, after: Json) -> None:
        lost = _lost(before, after)
        if not lost:
            return
        restored = self._restore(account, target_id, before)
        done = "Bridge has put it back" if restored else "Bridge could not put it back: block the contact by hand"
        raise Refused(
            f"Sakari lost an opt-out ({', '.join(lost)}) of the contact {target_id} when bridge wrote to it. "
            f"{done}. Nothing more is sent until a person has looked at this.",
            code="loosened",
        )

    def _restore(self, account: _Account, target_id: str, before: Json) -> bool:
        """Write back the opt-outs of *before*, and nothing else; say whether they are there again."""
        try:
            body = _echo(self._get(account, target_id, finishes=True))
            if before.get("blocked"):
                body["blocked"] = body.get("blocked") or before["blocked"]
            entries = _entries(body)
            entries |= {
                list_id: _without_nulls(_entries(before)[list_id]) for list_id in _left(before) - _left(body)
            }
            if entries:
                body["lists"] = list(entries.values())
            self._put(account, target_id, body, finishes=True)
            return not _lost(before, self._get(account, target_id, finishes=True))
        except DeliveryFailed:
            return False

    # --- what is said about it ---

    def _receipt(
        self, outcome: str, contact: Json, target_id: str, fields: Mapping[str, Value], notes: list[str]
    ) -> Receipt:
        self._note_links(contact, notes)
        return Receipt(outcome, target_id, _accepted(contact, fields), _opted_out(contact), tuple(notes))

    def _note_mismatches(self, contact: Json, written: Mapping[str, Value], notes: list[str]) -> None:
        for name in sorted(written):
            if _same(contact, name, written[name]):
                continue
            if values.is_empty(written[name]):
                _note(notes, f"Sakari did not clear {name}; clear it there by hand.")
            elif not (name == "lists" and set(_names(written[name])) <= set(_entries(contact))):
                _note(notes, f"Sakari does not hold {name} as it was sent.")
        code = _code(contact.get("error"))
        if code and code != STOPPED:
            _note(notes, f"Sakari marks the contact with the error {code}.")

    @staticmethod
    def _note_lists_kept(job: Job, fields: Mapping[str, Value], notes: list[str]) -> None:
        wanted = set(_names(fields.get("lists")))
        before = set(_names((job.accepted or {}).get("lists")))
        if "lists" in fields and (over := sorted(before - wanted)):
            _note(notes, f"Bridge takes nobody off a list: {_naming_lists(over)} is left as it is.")

    def _note_links(self, contact: Json, notes: list[str]) -> None:
        """Warn once of each integration that writes to the same contacts."""
        for name in LINKED:
            linked = contact.get(name)
            if isinstance(linked, dict) and linked.get("id") and name not in self._links_noted:
                self._links_noted.add(name)
                _note(
                    notes,
                    f"Sakari's own {name} integration writes to this contact too; if both carry the same fields, "
                    "they can undo each other's changes.",
                )


def _attributes(job: Job) -> set[str]:
    """Return the names of the attributes that are to hold something."""
    return {
        name.removeprefix(ATTRIBUTE)
        for name, value in job.desired.fields.items()
        if name.startswith(ATTRIBUTE) and not values.is_empty(value)
    }


def _made(reply: Reply, number: str, sent: Json) -> Json:
    """Return the contact that a POST made, from any shape of its answer; {} if it does not show one.

    The vendor documents a list of contacts and a summary of an upload; one contact alone would be natural, too.

    Raises:
        Permanent: the answer has an error for it, also within a 2xx. Others as `_body`.
    """
    doing = "creating the contact"
    body = _body(reply, doing=doing, sent=sent)
    data = body.get("data")
    summary = data if isinstance(data, dict) else {}
    errors = summary.get("errors") or body.get("errors")
    if errors:
        _refuse_row(errors[0] if isinstance(errors, list) else errors, reply)
    rows = summary.get("contacts") if "contacts" in summary else data
    rows = [row for row in (rows if isinstance(rows, list) else [rows]) if isinstance(row, dict)]
    ours = [row for row in rows if _number(row.get("mobile")) == number]
    made: Json = ours[0] if ours else {}
    if made and not made.get("id") and made.get("error"):
        _refuse_row(made, reply)
    return made


def _refuse_row(row: Any, reply: Reply) -> NoReturn:
    """Raise what the error of one row of a POST means."""
    code = _code(row.get("error")) if isinstance(row, dict) else ""
    code = code or _code(row)
    if code == STOPPED:
        raise _SaidStop(f"The person asked for no further communication ({code}).", status=reply.status)
    if code.startswith("ACCT-"):
        raise Refused(f"Sakari refuses creating the contact ({code}).", status=reply.status)
    detail = f" ({code})" if code else ""
    message = f"Sakari did not create the contact{detail}; most often the mobile number is wrong."
    raise Permanent(message, status=reply.status)


TARGET = TargetType(
    name="sakari",
    title=TITLE,
    settings=Settings,
    fields=(
        TargetField("mobile", FieldKind.PHONE, clearable=False, help="the mobile number; finds the contact"),
        TargetField("email", FieldKind.EMAIL),
        TargetField("firstName"),
        TargetField("lastName"),
        TargetField("attributes.*", FieldKind.ANY, help="an attribute that the account defines, by its name"),
        TargetField(
            "lists", FieldKind.NAMES, clearable=False, help="ids of lists to be on; nobody is taken off one"
        ),
    ),
    identities=(("mobile",),),
    lanes=2,
    rate_per_s=5.0,  # "frequency limits" exist but are not published
    burst=2,
    make=Sakari,
    base_url=lambda settings: str(settings.api_base),
)
