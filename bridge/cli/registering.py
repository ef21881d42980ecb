"""`bridge register`: have a CRM send its webhooks here, by its own API."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bridge.cli import options, output
from bridge.errors import BridgeError
from bridge.sources.base import Registration

if TYPE_CHECKING:
    from bridge.config import SourceConnection
    from bridge.process import Opened
    from bridge.sources.base import Registrar


@click.command()
@click.argument("source")
@options.config
@click.option("--remove", is_flag=True, help="Remove what leads here instead.")
@click.option("--url", metavar="URL", help="The URL that is called, if it is not the usual one.")
@options.as_json
def register(source: str, config_path: Path | None, remove: bool, url: str | None, json_wanted: bool) -> None:
    """Create or update the webhook subscriptions of a source's CRM.

    Run again it changes nothing that is right already. Where the URL needs a secret token, it has one that stays
    the same until it is revoked.
    """
    from bridge.outbound import Api, new_session
    from bridge.pipeline import registering
    from bridge.process import address_of

    with options.opened(config_path) as here:
        connection = _connection(here, source)
        registrar = _registrar(connection)
        address = url or address_of(here.config, here.environment, here.store)(connection)
        api = Api(connection.base_url, session=new_session())
        if remove:
            made = Registration(registrar.remove(api, address))
            registering.forget(source, here.store, here.store.clock())
        else:
            routes = here.config.routes_of(source)
            made = registering.register(
                connection, registrar, here.store, api, address, routes, here.store.clock(), usual=not url
            )
    done, expires_at = made.done, made.expires_at
    secrets = {name: secret.reveal() for name, secret in made.secrets.items()}
    if json_wanted:
        output.as_json({"url": address, "done": list(done), "secrets": secrets, "expires_at": expires_at})
        return
    for sentence in done or ["Nothing was to be done."]:
        click.echo(sentence)
    for name, secret in secrets.items():
        click.echo(f"\nThe CRM made a secret, which it shows only now. Put it into {name} of [sources.{source}]:")
        click.echo(f"  {secret}")
    if expires_at is not None:
        renews = "Register it again before, for this is not the usual URL." if url else RENEWS
        click.echo(f"\nIt ends at {expires_at:%Y-%m-%d %H:%M} UTC. {renews}")


RENEWS = "The worker renews it in time, while it runs."


def _connection(here: Opened, source: str) -> SourceConnection:
    connection = here.config.sources.get(source)
    if connection is None:
        raise click.UsageError(f"There is no source {source}; there are {', '.join(sorted(here.config.sources))}.")
    return connection


def _registrar(connection: SourceConnection) -> Registrar:
    title = connection.type.title
    if connection.type.registrar is None:
        raise BridgeError(
            f"{title} has no call for that: follow the steps on the page of the source, docs/sources/"
            f"{connection.type.name}.md."
        )
    registrar = connection.registrar()
    if registrar is None:
        raise BridgeError(
            f"No credential is configured with which bridge can register itself at {title}; "
            f"'bridge sources {connection.type.name}' shows the keys."
        )
    return registrar
