"""Commands before the first start: init, check."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bridge.cli import FAILED, USAGE, options, output
from bridge.errors import BridgeError, ConfigError, Problem

if TYPE_CHECKING:
    from bridge.config import Config, SourceConnection, TargetConnection
    from bridge.process import Loaded

EXAMPLE = "bridge.example.toml"
_VARIABLE = re.compile(r"\$\{?([A-Z][A-Z0-9_]*)")

# --- init --------------------------------------------------------------------------------------------------


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=Path())
def init(folder: Path) -> None:
    """Write a bridge.toml to start from.

    Beside it goes a .env with the variables that it needs, and fresh random values for SECRET_KEY and
    BRIDGE_API_TOKEN. What is there already is never overwritten. FOLDER is this one unless another is given.
    """
    example = (resources.files("bridge") / EXAMPLE).read_text(encoding="utf-8")
    toml, env = folder / "bridge.toml", folder / ".env"
    if os.path.lexists(toml):
        raise click.ClickException(f"There is already {toml}. Nothing was written.")
    kept = os.path.lexists(env)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        toml.write_text(example, encoding="utf-8")
        if not kept:
            # Secrets go into a new file of ours only, never to where somebody's link leads.
            opened = os.open(env, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with os.fdopen(opened, "w", encoding="utf-8") as file:
                file.write(_environment(example))
    except OSError as error:
        raise click.ClickException(f"{error.filename} cannot be written: {error.strerror}.") from error
    click.echo(f"Written: {toml}" + ("" if kept else f" and {env}") + ". Next:")
    click.echo(f"  1. Edit {toml}: HubSpot and Sakari are set up in it, the others stand there as comments.")
    if kept:
        click.echo(f"  2. {env} was there and is as it was. Add the lines below to it.")
    else:
        click.echo(f"  2. Fill in {env}, and keep it out of version control.")
    click.echo(f"     Load it with: cd {folder.absolute()}; set -a; . ./.env; set +a")
    click.echo("  3. bridge check --live   looks at everything and calls each platform once, harmlessly")
    click.echo("  4. bridge url SOURCE     shows the URL to enter in the CRM")
    click.echo("  5. bridge serve")
    if kept:
        click.echo(f"\n{_environment(example)}")


def _environment(example: str) -> str:
    """Return the text of a ``.env`` for the variables that *example* uses."""
    code = "\n".join(line for line in example.splitlines() if not line.lstrip().startswith("#"))
    used = dict.fromkeys(_VARIABLE.findall(code))
    used.pop("PUBLIC_URL", None)
    return "".join(
        (
            "# What bridge.toml takes from the environment. Keep this file to yourself.\n",
            "# The URL that senders call, such as https://bridge.example.com; some sign it.\nPUBLIC_URL=\n",
            *(f"{name}=\n" for name in used),
            f"\n# Made for you. Changing it ends the URLs with tokens.\nSECRET_KEY={secrets.token_urlsafe(32)}\n",
            f"# Opens /api/v1 and /metrics.\nBRIDGE_API_TOKEN={secrets.token_urlsafe(32)}\n",
            "\n# A path with four slashes is absolute. The disk must be one that stays.\n",
            "# DATABASE_URL=sqlite:////var/lib/bridge/bridge.db\n# PORT=8000\n",
        )
    )


# --- check -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """What one platform or CRM said when it was called."""

    name: str  # "targets.sms"
    ok: bool
    said: str


@click.command()
@options.config
@click.option(
    "--live",
    is_flag=True,
    help="Also call every target and every CRM that is read from, with one harmless request each.",
)
@options.as_json
@click.pass_context
def check(ctx: click.Context, config_path: Path | None, live: bool, json_wanted: bool) -> None:
    """Check the configuration and report every problem at once.

    Nothing is called unless --live is given, and nothing is written in any case.
    """
    from bridge import process

    loaded: Loaded | None = None
    problems: tuple[Problem, ...] = ()
    try:
        loaded = process.load(config_path)
        process.database_path(loaded.environment)
    except ConfigError as error:
        if not json_wanted:
            raise
        problems = error.problems
    answers = list(_live(loaded.config)) if loaded and live and not problems else []
    if json_wanted:
        output.as_json(
            {
                "ok": not problems and all(answer.ok for answer in answers),
                "problems": [asdict(problem) for problem in problems],
                "warnings": [asdict(problem) for problem in loaded.config.warnings] if loaded else [],
                "live": [asdict(answer) for answer in answers],
            }
        )
    elif loaded:
        _tell(loaded, answers)
    if problems:
        ctx.exit(USAGE)
    if not all(answer.ok for answer in answers):
        ctx.exit(FAILED)


def _tell(loaded: Loaded, answers: list[Answer]) -> None:
    config = loaded.config
    for problem in config.warnings:
        click.echo(f"warning: {problem}")
    if not loaded.environment.api_token:
        click.echo("warning: BRIDGE_API_TOKEN is not set, so the API is closed")
    click.echo(
        f"{config.path} is right: {output.count(len(config.sources), 'source')}, "
        f"{output.count(len(config.targets), 'target')}, {output.count(len(config.routes), 'route')}."
    )
    for route in config.routes:
        click.echo(f"  {route.source} -> {route.target}: {output.count(len(route.fields), 'field')}")
    for answer in answers:
        click.echo(f"{'ok    ' if answer.ok else 'FAILED'}  {answer.name}: {answer.said}")


def _live(config: Config) -> Iterator[Answer]:
    for target in config.targets.values():
        yield _call_target(target)
    for source in config.sources.values():
        if source.source.can_read() and source.type.read_base_url is not None:
            yield _call_source(source, source.type.read_base_url(source.settings))


def _call_target(connection: TargetConnection) -> Answer:
    from bridge.outbound import Api, new_session

    name = f"targets.{connection.name}"
    with new_session() as session:
        try:
            return Answer(name, ok=True, said=connection.target.check(Api(connection.base_url, session=session)))
        except BridgeError as error:
            return Answer(name, ok=False, said=str(error))


def _call_source(connection: SourceConnection, base_url: str) -> Answer:
    """Ask the CRM for a record that is hardly there: only whether we may ask is of interest."""
    from bridge.model import RecordKey
    from bridge.outbound import Api, new_session

    name = f"sources.{connection.name}"
    with new_session() as session:
        try:
            connection.source.read(Api(base_url, session=session), [RecordKey(connection.name, "1")], [])
        except BridgeError as error:
            return Answer(name, ok=False, said=str(error))
    return Answer(name, ok=True, said=f"{connection.type.title} lets us read contacts.")
