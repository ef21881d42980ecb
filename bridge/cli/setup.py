"""Commands before the first start: init, check."""

from __future__ import annotations

import os
import re
import secrets
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from bridge.cli import FAILED, USAGE, options, output
from bridge.errors import BridgeError, ConfigError, Problem, Retryable, StoreUnavailable

if TYPE_CHECKING:
    from bridge.cli import starter
    from bridge.config import Config, SourceConnection, TargetConnection
    from bridge.database import Database
    from bridge.process import Loaded
    from bridge.sources.base import SourceType
    from bridge.targets.base import TargetType

Type = TypeVar("Type", "SourceType", "TargetType")

EXAMPLE = "bridge.example.toml"
PROOFS = ("secrets", "credentials")  # settings of sources that a webhook is proven by
PASSING = ("unavailable", "rate_limited", "nonsense")  # classes of a platform's own troubles
_VARIABLE = re.compile(r"\$\{?([A-Z][A-Z0-9_]*)")

# --- init --------------------------------------------------------------------------------------------------


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=Path())
@click.option(
    "--source", "sources", multiple=True, metavar="[NAME=]TYPE", help="A CRM that sends webhooks. May be repeated."
)
@click.option(
    "--target", "targets", multiple=True, metavar="[NAME=]TYPE", help="A platform to keep equal. May be repeated."
)
@click.option("--public-url", metavar="URL", default="", help="The URL that the CRM calls, without /hooks.")
def init(folder: Path, sources: Sequence[str], targets: Sequence[str], public_url: str) -> None:
    """Write a bridge.toml to start from.

    On a terminal it asks which CRMs and platforms there are, unless --source and --target say so; elsewhere,
    without them, it writes an example with HubSpot and Sakari. Beside it goes a .env with the variables that it
    needs, and fresh random values for SECRET_KEY and BRIDGE_API_TOKEN. What is there already is never overwritten.
    FOLDER is this one unless another is given.
    """
    toml, env = folder / "bridge.toml", folder / ".env"
    if os.path.lexists(toml):
        raise click.ClickException(f"There is already {toml}. Nothing was written.")
    if bool(sources) != bool(targets):
        raise click.UsageError("Give both --source and --target, each as often as there are CRMs and platforms.")
    plan = _plan(sources, targets, _checked_url(public_url))
    kept = os.path.lexists(env)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        toml.write_text(plan.toml, encoding="utf-8")
        if not kept:
            # Secrets go into a new file of ours only, never to where somebody's link leads.
            opened = os.open(env, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with os.fdopen(opened, "w", encoding="utf-8") as file:
                file.write(_environment(plan))
    except OSError as error:
        raise click.ClickException(f"{error.filename} cannot be written: {error.strerror}.") from error
    _tell_next(plan, toml, env, kept=kept)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be written. *variables*: those of the file, and what each holds; *sources*: the names of them."""

    toml: str
    variables: Mapping[str, str]
    sources: Sequence[str]
    public_url: str
    is_example: bool = False


def _plan(sources: Sequence[str], targets: Sequence[str], public_url: str) -> Plan:
    from bridge.cli import starter
    from bridge.sources import SOURCES
    from bridge.targets import TARGETS

    if not sources and not _asks():
        example = (resources.files("bridge") / EXAMPLE).read_text(encoding="utf-8")
        code = "\n".join(line for line in example.splitlines() if not line.lstrip().startswith("#"))
        names = [name for name in dict.fromkeys(_VARIABLE.findall(code)) if name != "PUBLIC_URL"]
        return Plan(example, dict.fromkeys(names, ""), ["hubspot"], public_url, is_example=True)
    if not sources:
        sources = _ask("Which CRMs send webhooks?", SOURCES)
        targets = _ask("Which platforms are to be kept equal?", TARGETS)
        public_url = public_url or click.prompt(
            "The URL under which the CRM reaches this bridge, such as https://bridge.example.com (empty: later)",
            default="",
            show_default=False,
            value_proc=_checked_url,
        )
    chosen = [_chosen(text, SOURCES, "--source") for text in sources]
    made = starter.start(_named(chosen), _named([_chosen(text, TARGETS, "--target") for text in targets]))
    return Plan(made.toml, made.variables, [one.name for one in chosen], public_url)


def _asks() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _ask(question: str, types: Mapping[str, Type]) -> list[str]:
    """Let a person choose from a list, by numbers or names."""
    click.echo(question)
    known = list(types)
    for number, name in enumerate(known, 1):
        click.echo(f"  {number}  {types[name].title} ({name})")

    def read(text: str) -> list[str]:
        words = [word for word in re.split(r"[\s,]+", text) if word]
        names = [
            known[int(word) - 1] if word.isdecimal() and 0 < int(word) <= len(known) else word for word in words
        ]
        if not names:
            raise click.BadParameter("choose at least one")
        for name in names:
            _chosen(name, types, "")
        return list(dict.fromkeys(names))

    answer: list[str] = click.prompt("Numbers or names, with commas between", value_proc=read)
    return answer


def _chosen(text: str, types: Mapping[str, Type], option: str) -> starter.Chosen[Type]:
    """Read ``TYPE`` or ``NAME=TYPE``.

    Raises:
        click.BadParameter: there is no such type, or the name is none.
    """
    from bridge.cli import starter
    from bridge.config.words import did_you_mean, one_of, plain_name

    name, _, type_ = text.rpartition("=")
    if type_ not in types:
        hint = did_you_mean(type_, types) or one_of(types)
        raise click.BadParameter(f"there is no {type_!r}; {hint}", param_hint=option or None)
    name = name or type_
    if name != plain_name(name):
        raise click.BadParameter(
            f"a name is made of a-z, 0-9, _ and -; call it {plain_name(name)!r}", param_hint=option or None
        )
    return starter.Chosen(name, types[type_])


def _named(chosen: Sequence[starter.Chosen[Type]]) -> Sequence[starter.Chosen[Type]]:
    names = [one.name for one in chosen]
    for name in names:
        if names.count(name) > 1:
            raise click.UsageError(f"There are two named {name!r}. Name them: --source first={name} and so on.")
    return chosen


def _checked_url(text: str) -> str:
    """Return *text* as it goes into PUBLIC_URL.

    Raises:
        click.BadParameter: it is no URL that a CRM could call.
    """
    from bridge.config.words import url_problem

    url = text.strip().rstrip("/").removesuffix("/hooks")
    if url and (found := url_problem(url)):
        raise click.BadParameter("; ".join(part for part in found if part), param_hint="--public-url")
    return url


def _environment(plan: Plan) -> str:
    """Return the text of a ``.env`` with the variables of *plan*."""
    given = [(f"# {what}\n" if what else "") + f"{name}=\n" for name, what in plan.variables.items()]
    return "".join(
        (
            "# What bridge.toml takes from the environment. Keep this file to yourself.\n",
            "# The URL that senders call, such as https://bridge.example.com; some sign it.\n",
            f"PUBLIC_URL={plan.public_url}\n",
            *given,
            "\n# Made for you. Changing it signs everybody out, and ends the URLs with tokens.\n",
            f"SECRET_KEY={secrets.token_urlsafe(32)}\n",
            f"# Opens /api/v1 and /metrics.\nBRIDGE_API_TOKEN={secrets.token_urlsafe(32)}\n",
            "\n# A path with four slashes is absolute. The disk must be one that stays.\n",
            "# DATABASE_URL=sqlite:////var/lib/bridge/bridge.db\n# PORT=8000\n",
        )
    )


def _tell_next(plan: Plan, toml: Path, env: Path, *, kept: bool) -> None:
    click.echo(f"Written: {toml}" + ("" if kept else f" and {env}") + ". Next:")
    if plan.is_example:
        click.echo(f"  1. Edit {toml}: HubSpot and Sakari are set up in it, the others stand there as comments.")
    else:
        click.echo(f"  1. Read {toml} and change the rules: they say which of the CRM's fields goes where.")
    names = ["PUBLIC_URL", *plan.variables]
    missing = ", ".join(name for name in names if not (name == "PUBLIC_URL" and plan.public_url))
    if kept:
        click.echo(f"  2. {env} was there and is as it was. Add the lines below to it.")
    else:
        click.echo(f"  2. Fill in {env}, and keep it out of version control. It lacks {missing}.")
    click.echo(f"     Load it with: cd {toml.parent.absolute()}; set -a; . ./.env; set +a")
    click.echo("  3. bridge check --live   looks at everything and calls each platform once, harmlessly")
    click.echo("  4. bridge serve")
    for number, name in enumerate(plan.sources, 5):
        click.echo(f"  {number}. Let {name} call {plan.public_url or '$PUBLIC_URL'}/hooks/{name}")
    click.echo(
        "     What to click in the CRM is in docs/sources; `bridge url SOURCE` shows the URL again, and the"
    )
    click.echo("     one with a secret token, for a source that wants one.")
    if kept:
        click.echo(f"\n{_environment(plan)}")


# --- check -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """What one platform or CRM said when it was called."""

    name: str  # "targets.sms"
    ok: bool
    said: str
    fix: str = ""


@click.command()
@options.config
@click.option(
    "--live",
    is_flag=True,
    help="Also ask each target, each CRM that is read from, and a PostgreSQL database, one harmless thing.",
)
@options.as_json
@click.pass_context
def check(ctx: click.Context, config_path: Path | None, live: bool, json_wanted: bool) -> None:
    """Check the configuration and report every problem at once.

    Nothing is called unless --live is given, and nothing is written in any case.
    """
    from bridge import process
    from bridge.database import database_of

    loaded: Loaded | None = None
    problems: tuple[Problem, ...] = ()
    try:
        loaded = process.load(config_path)
        database_of(loaded.environment)
    except ConfigError as error:
        if not json_wanted:
            raise
        problems = error.problems
    answers = list(_live(loaded)) if loaded and live and not problems else []
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
    if not loaded.environment.secret_key:
        click.echo("warning: SECRET_KEY is not set, so nobody can sign in to the pages")
    click.echo(
        f"{config.path} is right: {output.count(len(config.sources), 'source')}, "
        f"{output.count(len(config.targets), 'target')}, {output.count(len(config.routes), 'route')}."
    )
    for route in config.routes:
        click.echo(f"  {route.source} -> {route.target}: {output.count(len(route.fields), 'field')}")
    for answer in answers:
        click.echo(f"{'ok    ' if answer.ok else 'FAILED'}  {answer.name}: {answer.said}")
        if answer.fix:
            click.echo(f"        fix: {answer.fix}")
    unasked = sorted({f"sources.{name}" for name in config.sources} - {answer.name for answer in answers})
    if answers and unasked:
        click.echo(
            f"        {', '.join(unasked)}: nothing to call; the first webhook shows whether the secret is right."
        )


def _live(loaded: Loaded) -> Iterator[Answer]:
    from bridge.database import database_of

    config, database = loaded.config, database_of(loaded.environment)
    if database.shared:  # a file may not be there yet, and nothing is to be written
        yield _ask_database(database)
    for target in config.targets.values():
        yield _call_target(config, target)
    for source in config.sources.values():
        if source.source.can_read() and source.type.read_base_url is not None:
            yield _call_source(config, source, source.type.read_base_url(source.settings))


def _ask_database(database: Database) -> Answer:
    try:
        database.open({}, "check").close()
    except StoreUnavailable as error:
        return Answer("database", ok=False, said=str(error), fix="look at DATABASE_URL in the environment")
    return Answer("database", ok=True, said=f"The {database.place} answers, and is up to date.")


def _call_target(config: Config, connection: TargetConnection) -> Answer:
    from bridge.outbound import Api, new_session

    name = f"targets.{connection.name}"
    with new_session() as session:
        try:
            return Answer(name, ok=True, said=connection.target.check(Api(connection.base_url, session=session)))
        except BridgeError as error:
            fix = _fix(error, config, f"targets/{connection.type.name}.md", "targets", connection.name)
            return Answer(name, ok=False, said=str(error), fix=fix)


def _call_source(config: Config, connection: SourceConnection, base_url: str) -> Answer:
    """Ask the CRM for a record that is hardly there: only whether we may ask is of interest."""
    from bridge.model import RecordKey
    from bridge.outbound import Api, new_session

    name = f"sources.{connection.name}"
    with new_session() as session:
        try:
            connection.source.read(Api(base_url, session=session), [RecordKey(connection.name, "1")], [])
        except BridgeError as error:
            fix = _fix(error, config, f"sources/{connection.type.name}.md", "sources", connection.name)
            return Answer(name, ok=False, said=str(error), fix=fix)
    return Answer(name, ok=True, said=f"{connection.type.title} takes the token and lets us read contacts.")


def _fix(error: BridgeError, config: Config, page: str, section: str, name: str) -> str:
    """Return what a person can do about *error*, which a platform answered to the connection *name*."""
    if isinstance(error, Retryable) and error.code in PASSING:
        return "try again a little later; bridge would do so by itself"
    names = _variables(config, section, name)
    where = f"look at {', '.join(names)} in the environment" if names else f"look at [{section}.{name}]"
    return f"{where}; docs/{page} says where to find what belongs there, and which rights it needs"


def _variables(config: Config, section: str, name: str) -> list[str]:
    """Return the variables that hold what a connection calls with. What proves webhooks does not belong to it."""
    from bridge.config.document import variables

    if config.path is None:
        return []
    table = tomllib.loads(config.path.read_text(encoding="utf-8"))[section][name]
    return sorted(variables({key: value for key, value in table.items() if key not in PROOFS}))
