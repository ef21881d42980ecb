"""Commands about what the database holds: status, export, replay, prune."""

from __future__ import annotations

import csv
import getpass
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import click

from bridge.cli import FAILED, options, output
from bridge.model import Outcome, RecordKey, State
from bridge.store.protocol import Filter, Page

if TYPE_CHECKING:
    from bridge.store.protocol import Store
    from bridge.web.shapes import Status, TargetItem

Item = TypeVar("Item")

PAGE = 200
PRUNE_BATCH = 1000

# --- status ------------------------------------------------------------------------------------------------


@click.command()
@options.config
@options.as_json
@click.pass_context
def status(ctx: click.Context, config_path: Path | None, json_wanted: bool) -> None:
    """Show whether everything is healthy, and what waits.

    Exit code 1 when something needs a look: no worker runs, nothing can be written, something waits for too long,
    or a target takes nothing. A single webhook or contact that needs a look is named, and does not change it.
    """
    from bridge.web.api import Api
    from bridge.web.health import try_to_write

    with options.opened(config_path) as here:
        told = Api(
            here.config,
            here.store,
            ring=here.ring,
            clock=here.store.clock,
            trouble=lambda: try_to_write(here.store, "status", here.store.clock()),
        ).status()
    if json_wanted:
        output.as_json(told.model_dump(mode="json"))
    else:
        _tell(told)
    if not told.ready or any(target.mode != "open" for target in told.targets):
        ctx.exit(FAILED)


def _tell(told: Status) -> None:
    for check in told.checks:
        click.echo(f"{'ok  ' if check.ok else 'LOOK'}  {check.detail}")
    for detail in _to_look_at(told):
        click.echo(f"LOOK  {detail}")
    click.echo()
    output.table(
        ("source", "last webhook", "waiting", "refused"),
        (
            (one.name, output.age(one.last_inbound_at, told.now), str(one.unprocessed), str(one.refused))
            for one in told.sources
        ),
    )
    click.echo()
    output.table(
        ("target", "takes deliveries", "contacts"),
        ((one.name, "yes" if one.mode == "open" else f"no, {one.mode}", _counted(one)) for one in told.targets),
    )


def _to_look_at(told: Status) -> Iterator[str]:
    """Yield a sentence for each thing that a person has to see to, and how to find it."""
    if unreadable := told.inbound.get(Outcome.UNREADABLE, 0):
        were = "webhook was" if unreadable == 1 else "webhooks were"
        yield (f"{unreadable:,} {were} genuine and could not be read. Why: GET /api/v1/inbound?outcome=unreadable")
    for target in told.targets:
        if target.mode != "open":
            yield f"The target {target.name} is {target.mode}: {target.reason}"
        for state in (State.FAILED, State.AMBIGUOUS):
            if count := target.deliveries.get(state, 0):
                yield (
                    f"The target {target.name} has {output.count(count, 'contact')} {_IS[state]}. "
                    f"Why: bridge export deliveries --target {target.name} --state {state}"
                )


_IS = {
    State.FAILED: "whose delivery failed",
    State.AMBIGUOUS: "whose delivery is ambiguous, because more than one contact fits",
}


def _counted(target: TargetItem) -> str:
    return ", ".join(f"{count:,} {state}" for state, count in sorted(target.deliveries.items())) or "none yet"


# --- export ------------------------------------------------------------------------------------------------

Row = dict[str, Any]

COLUMNS: Mapping[str, Sequence[str]] = {
    "inbound": (
        "id", "source", "received_at", "outcome", "reason", "events", "event_types", "repeats", "signed_at",
        "processed_at", "payload_kept",
    ),
    # One line for each field of a contact: what fields there are differs from contact to contact.
    "contacts": ("source", "source_id", "alive", "field", "value", "occurred_at"),
    "deliveries": (
        "target", "source", "source_id", "state", "reason", "updated_at", "target_id", "attempts",
        "next_attempt_at", "error", "status",
    ),
    "audit": (
        "id", "at", "kind", "outcome", "reason", "source", "source_id", "target", "inbound", "event_types",
        "attempt", "status", "error", "duration_ms", "fields",
    ),
}  # fmt: skip


# What each list can be narrowed by. Any other filter is refused: passed over, it would select everything.
FILTERS: Mapping[str, frozenset[str]] = {
    "inbound": frozenset({"source", "outcome", "since", "until", "search"}),
    "contacts": frozenset({"source", "search"}),
    "deliveries": frozenset({"source", "target", "state", "error", "since", "until", "search"}),
    "audit": frozenset({"source", "target", "outcome", "error", "since", "until", "search"}),
}


@click.command()
@click.argument("what", type=click.Choice(list(COLUMNS)))
@options.config
@click.option("--format", "form", type=click.Choice(["ndjson", "csv"]), default="ndjson", show_default=True)
@click.option("--output", "-o", "to", type=click.File("w", lazy=True), default="-", help="A file. Default: print.")
@click.option(
    "--details", is_flag=True, help="With the audit log, in NDJSON: also the calls made, which hold personal data."
)
@options.filters(outcome=True)
def export(what: str, config_path: Path | None, form: str, to: TextIO, details: bool, **given: Any) -> None:
    """Write webhooks, contacts, deliveries or the audit log as NDJSON or CSV.

    NDJSON is one JSON object a line, in the API's own shape, newest first. In CSV, contacts come as one line for
    each field, and a text that a spreadsheet would compute has a ' before it. Webhooks (inbound) come without
    their bodies.
    """
    if unfit := sorted(name for name, value in given.items() if value is not None and name not in FILTERS[what]):
        raise click.UsageError(f"{what} cannot be narrowed by {', '.join(f'--{name}' for name in unfit)}.")
    with options.opened(config_path) as here:
        rows = _rows(here.store, what, options.narrowed(given), details=details)
        if form == "ndjson":
            to.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            return
        writer = csv.DictWriter(to, COLUMNS[what], extrasaction="ignore")
        writer.writeheader()
        for row in rows:
            writer.writerows(_flat(what, row))


def _rows(store: Store, what: str, narrowed: Filter, *, details: bool) -> Iterator[Row]:
    from bridge.web import shapes

    if what == "inbound":
        for inbound in _all(store.inbound_page, narrowed):
            yield shapes.inbound_item(inbound).model_dump(mode="json")
    elif what == "contacts":
        for contact in _all(store.contact_page, narrowed):
            yield shapes.contact_item(contact).model_dump(mode="json")
    elif what == "deliveries":
        for delivery in _all(store.delivery_page, narrowed):
            yield shapes.delivery_item(delivery).model_dump(mode="json")
    else:
        for entry in _all(store.audit_page, narrowed):
            row = shapes.audit_item(entry).model_dump(mode="json")
            if not details:
                del row["detail"]
            yield row


def _all(read: Callable[[Filter, str | None, int], Page[Item]], narrowed: Filter) -> Iterator[Item]:
    """Yield every item of a list, page by page."""
    cursor: str | None = None
    while True:
        page = read(narrowed, cursor, PAGE)
        yield from page.items
        if page.next is None:
            return
        cursor = page.next


def _flat(what: str, row: Row) -> list[Row]:
    """Return *row* as lines of CSV."""
    from bridge.web.cells import cell

    if what == "contacts":
        return [
            {**row, "field": name, "value": cell(field["value"]), "occurred_at": field["occurred_at"]}
            for name, field in row["fields"].items()
        ]
    return [{name: cell(value) for name, value in row.items()}]


# --- replay ------------------------------------------------------------------------------------------------


@click.command()
@click.argument("contacts", nargs=-1, type=options.record)
@options.config
@options.filters(outcome=False)
@click.option("--inbound", type=click.IntRange(min=1), multiple=True, help="Read this stored webhook again.")
@click.option("--all", "everything", is_flag=True, help="Every contact.")
@options.as_json
def replay(
    contacts: tuple[RecordKey, ...],
    config_path: Path | None,
    inbound: tuple[int, ...],
    everything: bool,
    json_wanted: bool,
    **given: Any,
) -> None:
    """Decide contacts again, or read stored webhooks again.

    CONTACTS are written as source/id, such as hubspot/42. Instead of them, filters say which deliveries are meant,
    and --inbound names webhooks. A replay looks at what is so now: nothing old is sent again, and what a target
    already holds costs no call.
    """
    narrowed = options.narrowed(given)
    chosen = sum((bool(contacts), bool(inbound), narrowed != Filter(), everything))
    if chosen != 1:
        raise click.UsageError(
            "Say what to replay, in one way: contacts, --inbound, filters such as --state failed, or --all."
        )
    by = f"command line ({getpass.getuser()})"
    with options.opened(config_path) as here:
        if inbound:
            count = here.store.replay_inbound(here.store.clock(), by, inbound)
        else:
            count = here.store.replay(
                here.store.clock(), by, keys=contacts, narrowed=None if contacts else narrowed
            )
        here.ring()
    if json_wanted:
        output.as_json({"count": count})
    else:
        what = "stored webhook" if inbound else "contact"
        click.echo(f"{output.count(count, what)} will be looked at again by the worker.")


# --- prune -------------------------------------------------------------------------------------------------


@click.command()
@options.config
@click.option(
    "--days", type=click.IntRange(min=0), help="Keep them for this long. Default: retention_days of bridge.toml."
)
@options.as_json
def prune(config_path: Path | None, days: int | None, json_wanted: bool) -> None:
    """Delete personal payloads that are older than they should be.

    Request and response bodies go; the facts of the audit log stay. The worker does the same by itself every hour.
    """
    from bridge.worker import KEYS_KEPT

    with options.opened(config_path) as here:
        kept_days = here.config.bridge.retention_days if days is None else days
        now = here.store.clock()
        total = 0
        while removed := here.store.prune(
            payloads_before=now - timedelta(days=kept_days), keys_before=now - KEYS_KEPT, limit=PRUNE_BATCH
        ):
            total += removed
    if json_wanted:
        output.as_json({"deleted": total})
    else:
        click.echo(f"{output.count(total, 'row')} older than {output.count(kept_days, 'day')} deleted.")
