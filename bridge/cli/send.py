"""Commands about single webhooks: url, send, try."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bridge.cli import FAILED, options, output, recordings
from bridge.errors import ConfigError
from bridge.model import InboundRequest, utc_now
from bridge.sources.recording import of_body

if TYPE_CHECKING:
    from bridge.config import Config, Environment, SourceConnection
    from bridge.store.protocol import Store
    from bridge.web.trial import FieldOutcome, Trial

FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
TIMEOUT_S = 30


def _connection(config: Config, name: str) -> SourceConnection:
    try:
        return config.sources[name]
    except KeyError:
        known = ", ".join(sorted(config.sources)) or "none"
        raise click.UsageError(f"There is no source {name!r} in the configuration; there is: {known}.") from None


def _hook(base: str, name: str) -> str:
    return f"{base.rstrip('/')}/hooks/{name}"


# --- url ---------------------------------------------------------------------------------------------------


@click.command()
@click.argument("source")
@options.config
@click.option("--token", is_flag=True, help="With a secret token, also for a source that signs.")
@click.option("--revoke", is_flag=True, help="End every token that was made for this source.")
@options.as_json
def url(source: str, config_path: Path | None, token: bool, revoke: bool, json_wanted: bool) -> None:
    """Show the URL that a source's CRM is to call.

    Where the source's section says require_token, each run makes a new URL with a secret token; earlier ones stay
    good until they are revoked. The name of a target gives the URL for its own webhooks, which tell of opt-outs.
    """
    with options.opened(config_path) as here:
        told = here.config.targets.get(source) if source not in here.config.sources else None
        needs_token = told is not None and told.type.feedback is not None
        needs_token = needs_token or _connection(here.config, source).needs_token
        if revoke:
            count = here.store.revoke_tokens(source, here.store.clock())
            if json_wanted:
                output.as_json({"revoked": count})
            else:
                click.echo(f"{output.count(count, 'token')} of {source} revoked; it takes a few seconds to hold.")
            return
        address = _hook(here.config.bridge.public_url, source)
        if token or needs_token:
            address = f"{address}/{_new_token(here.environment, here.store, source)}"
    if json_wanted:
        output.as_json({"url": address})
    else:
        click.echo(address)


def _new_token(environment: Environment, store: Store, source: str) -> str:
    from bridge.web import tokens

    token_id = tokens.new_token_id()
    made = tokens.make_token(_secret_key(environment), source, token_id)
    store.add_token(source, token_id, store.clock())
    return made


def _secret_key(environment: Environment) -> str:
    if key := environment.secret_key:
        return key
    from bridge.process import NO_SECRET_KEY

    raise ConfigError(NO_SECRET_KEY)


# --- send --------------------------------------------------------------------------------------------------


@click.command()
@click.argument("source")
@click.argument("file", type=FILE, required=False)
@options.config
@click.option("--to", metavar="URL", help="Where bridge runs. Default: this machine, at PORT.")
@options.as_json
@click.pass_context
def send(
    ctx: click.Context, source: str, file: Path | None, config_path: Path | None, to: str | None, json_wanted: bool
) -> None:
    """Sign a webhook as the CRM would and post it to a running bridge.

    FILE is a body (.json), or a recorded request (.http), which is signed anew. Without a file a sample is sent.
    """
    import requests

    from bridge import process
    from bridge.outbound import new_session

    loaded = process.load(config_path)
    connection = _connection(loaded.config, source)
    token = ""
    if connection.needs_token:
        with contextlib.closing(process.open_store(loaded)) as store:
            token = f"/{_new_token(loaded.environment, store, source)}"
    # It is signed for the URL that senders call, and posted to where bridge listens.
    public = _hook(loaded.config.bridge.public_url, source) + token
    request = connection.source.sign(_request(loaded.config, connection, file, public), utc_now())
    base = to or f"http://127.0.0.1:{loaded.environment.port}"
    target = _hook(base, source) + token + request.url.removeprefix(public)
    try:
        with new_session() as session:
            reply = session.request(
                request.method,
                target,
                data=request.body,
                headers=dict(request.headers),
                timeout=TIMEOUT_S,
                allow_redirects=False,
            )
    except requests.RequestException as error:
        raise click.ClickException(
            f"No bridge answers at {base}. Start one with: bridge serve (or say where with --to)."
        ) from error
    if json_wanted:
        output.as_json({"status": reply.status_code, "body": reply.text})
    else:
        click.echo(f"HTTP {reply.status_code}  {reply.text}".rstrip())
    if not reply.ok:
        ctx.exit(FAILED)


def _request(config: Config, connection: SourceConnection, file: Path | None, address: str) -> InboundRequest:
    from bridge.sources.sampling import Sampling

    if file is not None:
        return recordings.read(file, address)
    if connection.type.sample is None:
        raise click.UsageError(f"There is no sample of {connection.type.title}; give a file.")
    wanted = Sampling(utc_now(), connection.settings, reads=config.reads(connection.name))
    return of_body(connection.type.sample(wanted), address)


# --- try ---------------------------------------------------------------------------------------------------


@click.command("try")
@click.argument("source")
@click.argument("file", type=FILE)
@options.config
@click.option(
    "--field",
    "-f",
    "given",
    metavar="NAME=VALUE",
    multiple=True,
    help="What else the CRM knows of the contact, by its own field name.",
)
@click.option("--stored", is_flag=True, help="Merge it into what bridge knows of the contact already.")
@options.as_json
@click.pass_context
def dry_run(
    ctx: click.Context,
    source: str,
    file: Path,
    config_path: Path | None,
    given: tuple[str, ...],
    stored: bool,
    json_wanted: bool,
) -> None:
    """Show what each target would get of a webhook, and why; nothing is sent.

    Nothing is stored, either. FILE is a body (.json), or a recorded request (.http), whose signature does not
    matter here.
    """
    from bridge import process
    from bridge.web import shapes, trial

    extra = dict(_field(one) for one in given)
    loaded = process.load(config_path)
    connection = _connection(loaded.config, source)
    request = recordings.read(file, _hook(loaded.config.bridge.public_url, source))
    store = process.open_store(loaded) if stored else None
    try:
        routes = loaded.config.routes_of(source)
        tried = trial.run(
            connection, routes, request, extra=extra, store=store, now=utc_now(), would_read=WOULD_READ
        )
    finally:
        if store is not None:
            store.close()
    if json_wanted:
        output.as_json(shapes.tried(tried, None, "").model_dump(mode="json"))
    else:
        _tell(tried)
    if tried.problem:
        ctx.exit(FAILED)


def _field(given: str) -> tuple[str, str]:
    name, equals, value = given.partition("=")
    if not (name and equals):
        raise click.BadParameter(f"{given!r} is not NAME=VALUE", param_hint="--field")
    return name, value


WOULD_READ = (
    "Bridge would first read the rest of the record from the CRM; "
    "give it with --field NAME=VALUE to see the whole."
)
DECISIONS = {
    "send": "would be sent as",
    "opt_out": "would be told of the opt-out",
    "remove": "would remove the contact",
    "wait": "gets nothing now",
}


def _tell(tried: Trial) -> None:
    if tried.problem:
        click.echo(tried.problem)
        return
    for event in tried.events:
        if said := event.ignored or event.unreadable:
            click.echo(f"An event of it is passed over: {said}")
    for one in tried.routes:
        click.echo(f"{one.target}: contact {one.key.source_id} {DECISIONS[one.decision]}")
        if one.reason:
            click.echo(f"  {one.reason}")
        for line in _lines(one.fields):
            click.echo(f"  {line}")
    if not tried.routes:
        click.echo("It speaks of no contact, or no route starts at this source: no target would get anything.")


def _lines(fields: Sequence[FieldOutcome]) -> list[str]:
    width = max((len(one.field) for one in fields), default=0)
    return [f"{one.field.ljust(width)}  {_came_to(one)}" for one in fields]


def _came_to(one: FieldOutcome) -> str:
    if not one.left_out:
        return _shown(one.value)
    if one.value is None:
        return f"left out: {one.left_out}"
    return f"would be {_shown(one.value)}"


def _shown(value: Any) -> str:
    return "(cleared)" if value is None else str(value)
