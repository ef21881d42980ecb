"""Options that several commands share, and the opening of what they work on."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from bridge.model import RecordKey, State, utc_now
from bridge.store.protocol import Filter

if TYPE_CHECKING:
    from bridge.process import Opened

AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Any])

UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def moment(text: str) -> datetime:
    """Read a moment as ISO 8601, UTC where no offset is given; or an age: 30m, 2h, 7d, 1w.

    Raises:
        click.BadParameter: it is neither.
    """
    if aged := re.fullmatch(r"([0-9]{1,5})([mhdw])", text):
        return utc_now() - timedelta(**{UNITS[aged[2]]: int(aged[1])})
    try:
        read = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(
            "give a moment such as 2026-03-01T12:00Z, or an age such as 30m, 2h or 7d"
        ) from None
    return read.replace(tzinfo=UTC) if read.tzinfo is None else read.astimezone(UTC)


def record(text: str) -> RecordKey:
    """Read a contact: the source's name and the CRM's id, as in hubspot/42.

    Raises:
        click.BadParameter: it is none.
    """
    source, slash, source_id = text.partition("/")
    if not (source and slash and source_id):
        raise click.BadParameter("give the source's name, a slash and the CRM's id, such as hubspot/42")
    return RecordKey(source, source_id)


config = click.option(
    "--config",
    "config_path",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The configuration. Default: the file that BRIDGE_CONFIG names, else bridge.toml here.",
)
as_json = click.option("--json", "json_wanted", is_flag=True, help="Print JSON, for scripts.")

_SOURCE = click.option("--source", metavar="NAME", help="Only of this source.")
_TARGET = click.option("--target", metavar="NAME", help="Only of this target.")
_STATE = click.option(
    "--state", type=click.Choice([state.value for state in State]), help="Only deliveries in this state."
)
_OUTCOME = click.option("--outcome", metavar="WORD", help="Only what came to this, in the audit log.")
_ERROR = click.option("--error", metavar="CLASS", help="Only where the last attempt failed like this.")
_SINCE = click.option(
    "--since", metavar="MOMENT", type=moment, help="Not before this moment, or this long ago: 2h, 7d."
)
_UNTIL = click.option("--until", metavar="MOMENT", type=moment, help="Before this moment, or this long ago.")
_TEXT = click.option(
    "--search", metavar="TEXT", help="Only contacts with a word that begins so: of an id, an address, a name."
)


def filters(*, outcome: bool) -> Callable[[AnyFunction], AnyFunction]:
    """Return a decorator that adds the options which `narrowed` reads."""
    options = [_SOURCE, _TARGET, _STATE, *([_OUTCOME] if outcome else []), _ERROR, _SINCE, _UNTIL, _TEXT]

    def decorate(function: AnyFunction) -> AnyFunction:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def narrowed(given: dict[str, Any]) -> Filter:
    """Return the filter that the options of `filters` give."""
    return Filter(
        source=given["source"],
        target=given["target"],
        state=given["state"],
        outcome=given.get("outcome"),
        error=given["error"],
        since=given["since"],
        until=given["until"],
        q=given["search"],
    )


@contextmanager
def opened(config_path: Path | None) -> Iterator[Opened]:
    """Read the configuration and open its database, which is closed at the end.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    from bridge import process

    loaded = process.load(config_path)
    store = process.open_store(loaded)
    try:
        yield process.Opened(loaded.config, loaded.environment, store)
    finally:
        store.close()
