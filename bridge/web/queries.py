"""What the API takes: query parameters and bodies, checked in one place and described from the same models."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from werkzeug.datastructures import MultiDict

from bridge.model import Outcome, State
from bridge.store.protocol import Filter
from bridge.web.problem import Fault, HttpProblem

LONGEST_TEXT = 512
MOST_IDS = 1000
GREATEST_ID = 2**63 - 1  # of a row in any of the databases


class Input(BaseModel):
    """Unknown names are refused: a filter with a slip in its name must not select everything."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=False)


def _moment(given: object) -> object:
    """Read ISO 8601. A date is its midnight, and without an offset UTC is meant."""
    # The plus of an offset arrives as a blank when the client forgot to encode it.
    text = re.sub(r"(T.*) (\d\d:?\d\d)$", r"\1+\2", str(given).strip())
    try:
        moment = datetime.fromisoformat(text)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError("give an ISO 8601 moment, such as 2026-03-01T12:00:00Z") from None
    if not 1970 <= moment.year <= 9000:
        raise ValueError("give a moment after 1970")
    return moment


Moment = Annotated[datetime, BeforeValidator(_moment, json_schema_input_type=datetime)]


def _no_nul(text: str) -> str:
    if "\x00" in text:  # no database takes it in a text
        raise ValueError("must not hold a NUL character")
    return text


Text = Annotated[str, Field(min_length=1, max_length=LONGEST_TEXT), AfterValidator(_no_nul)]
Sought = Annotated[
    Text | None,
    Field(
        description="How a word of a contact's id, e-mail address, phone number, name or other value begins, in "
        "any case of letters; of a phone number, digits in any spelling. Reasons are not looked into."
    ),
]
RowId = Annotated[int, Field(ge=1, le=GREATEST_ID)]


class Paging(Input):
    cursor: Annotated[Text | None, Field(description="The `next` of the page before.")] = None
    limit: Annotated[int, Field(ge=1, le=200, description="How many items at most.")] = 50


class Span(Input):
    since: Annotated[Moment | None, Field(alias="from", description="Not before this moment.")] = None
    until: Annotated[Moment | None, Field(alias="to", description="Before this moment.")] = None


class InboundQuery(Span, Paging):
    source: Text | None = None
    outcome: Outcome | None = None
    q: Sought = None

    def narrowed(self) -> Filter:
        return Filter(
            source=self.source,
            outcome=self.outcome and self.outcome.value,
            since=self.since,
            until=self.until,
            q=self.q,
        )


class RefusalQuery(Input):
    source: Annotated[Text | None, Field(description="Of one source only.")] = None


class ContactQuery(Paging):
    source: Text | None = None
    q: Sought = None

    def narrowed(self) -> Filter:
        return Filter(source=self.source, q=self.q)


class DeliveryFilter(Span):
    """Which deliveries are meant."""

    target: Text | None = None
    source: Text | None = None
    source_id: Text | None = None
    state: State | None = None
    error: Annotated[Text | None, Field(description="Class of the last attempt's error.")] = None
    q: Sought = None

    def narrowed(self) -> Filter:
        return Filter(
            target=self.target,
            source=self.source,
            source_id=self.source_id,
            state=self.state and self.state.value,
            error=self.error,
            since=self.since,
            until=self.until,
            q=self.q,
        )


class DeliveryQuery(DeliveryFilter, Paging):
    pass


class AuditQuery(Span, Paging):
    kind: Annotated[Text | None, Field(description="inbound, contact, delivery, target or replay.")] = None
    outcome: Text | None = None
    source: Text | None = None
    source_id: Text | None = None
    target: Text | None = None
    error: Text | None = None
    status: Annotated[int | None, Field(ge=100, le=599, description="HTTP status that a target answered.")] = None
    field: Annotated[Text | None, Field(description="The name of a field that it was about.")] = None
    inbound: Annotated[RowId | None, Field(description="The id of an inbound.")] = None
    q: Sought = None

    def narrowed(self) -> Filter:
        return Filter(
            kind=self.kind,
            outcome=self.outcome,
            source=self.source,
            source_id=self.source_id,
            target=self.target,
            error=self.error,
            status=self.status,
            field=self.field,
            inbound_id=self.inbound,
            since=self.since,
            until=self.until,
            q=self.q,
        )


# --- bodies ----------------------------------------------------------------------------------------------


class ContactRef(Input):
    source: Text
    source_id: Text


class ReplayBody(Input):
    """Exactly one of *contacts*, *deliveries* and *inbound* says what is to be evaluated again."""

    contacts: Annotated[list[ContactRef] | None, Field(min_length=1, max_length=MOST_IDS)] = None
    deliveries: Annotated[
        DeliveryFilter | None, Field(description="All contacts with such a delivery; {} means every one.")
    ] = None
    inbound: Annotated[list[RowId] | None, Field(min_length=1, max_length=MOST_IDS)] = None
    dry_run: Annotated[bool, Field(description="Only say how many it would be.")] = False

    @model_validator(mode="after")
    def _one(self) -> ReplayBody:
        if sum(part is not None for part in (self.contacts, self.deliveries, self.inbound)) != 1:
            raise ValueError("give exactly one of contacts, deliveries and inbound")
        return self


class PauseBody(Input):
    reason: Annotated[Text, Field(description="Why, for whoever reads the audit log.")]


class ResumeBody(Input):
    reason: Annotated[Text | None, Field(description="Why, for whoever reads the audit log.")] = None


class RawRequest(Input):
    """A request as the source would send it."""

    body: str = Field(max_length=4 * 1024 * 1024)
    headers: Annotated[dict[str, str], Field(max_length=100)] = Field(default_factory=dict)


class TryBody(Input):
    """Exactly one of *payload* (JSON, as the source sends it) and *request* (anything else)."""

    source: Text
    payload: Annotated[Any, Field(description="The webhook's JSON.")] = None
    request: RawRequest | None = None
    fields: Annotated[
        dict[str, Any], Field(description="What else the CRM knows of each contact, by its own field names.")
    ] = Field(default_factory=dict)
    stored: Annotated[bool, Field(description="Merge into what bridge knows of the contact already.")] = False

    @model_validator(mode="after")
    def _one(self) -> TryBody:
        if (self.payload is None) == (self.request is None):
            raise ValueError("give exactly one of payload and request")
        return self


# --- reading them ----------------------------------------------------------------------------------------

Model = TypeVar("Model", bound=Input)


def read_query(model: type[Model], given: MultiDict[str, str]) -> Model:
    """Return the query parameters as *model*.

    Raises:
        HttpProblem: 400 that names every wrong parameter, and the right name where one is close.
    """
    twice = [Fault(name, "was given more than once") for name, values in given.lists() if len(values) > 1]
    if twice:
        raise HttpProblem(400, "A query parameter was given more than once.", faults=twice)
    try:
        return model.model_validate(given.to_dict())
    except ValidationError as error:
        raise _problem(400, "The query parameters are not right", model, error) from None


def read_form(model: type[Model], given: MultiDict[str, str]) -> Model:
    """Return the query parameters of a page as *model*; what was left empty in a form was not given.

    Raises:
        HttpProblem: as `read_query`.
    """
    return read_query(model, MultiDict((name, value) for name, value in given.items(multi=True) if value.strip()))


def read_body(model: type[Model], given: object) -> Model:
    """Return a JSON body as *model*.

    Raises:
        HttpProblem: 422 that names every wrong place.
    """
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise _problem(422, "The body is not right", model, error) from None


def names_of(model: type[Input]) -> list[str]:
    """Return the names that a client uses."""
    return [field.alias or name for name, field in model.model_fields.items()]


def _problem(status: int, what: str, model: type[Input], error: ValidationError) -> HttpProblem:
    faults = [_fault(model, one["loc"], one["type"], one["msg"]) for one in error.errors(include_url=False)]
    first = faults[0]
    where = f"{first.where}: " if first.where else ""
    end = "" if first.what.endswith(("?", ".")) else "."
    return HttpProblem(status, f"{what}: {where}{first.what}{end}", faults=faults)


# The models inside others, by the name they have there.
INNER: dict[int | str, type[Input]] = {"deliveries": DeliveryFilter, "contacts": ContactRef, "request": RawRequest}


def _fault(model: type[Input], place: Sequence[int | str], kind: str, message: str) -> Fault:
    where = ".".join(str(part) for part in place)
    if kind == "extra_forbidden":
        known = names_of(INNER.get(place[0], model) if len(place) > 1 else model)
        close = difflib.get_close_matches(str(place[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean '{close[0]}'?" if close else f"it takes {', '.join(known)}"
        return Fault(where, f"unknown name; {hint}")
    return Fault(where, message.removeprefix("Value error, "))
