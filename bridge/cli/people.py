"""Commands about who may look: login-link, user."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from bridge.cli import options, output
from bridge.model import AuditEntry, utc_now
from bridge.store.looking import Role, User

if TYPE_CHECKING:
    from bridge.process import Opened

ROLES = click.Choice([role.value for role in Role])
LINK_FOR = timedelta(minutes=15)
OWNER = "owner"  # who is meant when nobody is named: whoever can run commands here may do everything
UNSIGNED = (
    "SECRET_KEY is not set, so nobody can sign in. Set it to a long random text, the same one for bridge and for "
    "this command: python -c 'import secrets; print(secrets.token_urlsafe(32))' makes one."
)


@click.command("login-link")
@options.config
@click.option("--user", "name", default=OWNER, show_default=True, help="Who signs in with it.")
@click.option(
    "--role", type=ROLES, help="The role of somebody who is not known yet; default: admin for owner, else viewer."
)
@click.option(
    "--minutes", type=click.IntRange(1, 24 * 60), default=15, show_default=True, help="How long it holds."
)
@options.as_json
def login_link(config_path: Path | None, name: str, role: str | None, minutes: int, json_wanted: bool) -> None:
    """Print a link that signs in to the pages once.

    It is for whoever can run commands where bridge runs: no password is needed. Somebody who is not known yet is
    added, and can sign in by links only.
    """
    with options.opened(config_path) as opened:
        url = make_link(opened, _named(name), role, timedelta(minutes=minutes))
    if json_wanted:
        output.as_json({"url": url, "user": name, "minutes": minutes})
    else:
        click.echo(url)
        click.echo(f"It signs {name} in once, within {minutes} minutes.", err=True)


def make_link(opened: Opened, name: str, role: str | None, valid_for: timedelta) -> str:
    """Return a URL that signs *name* in once; who is not known yet is added.

    Raises:
        click.ClickException: no SECRET_KEY is set, or somebody known has another role than *role*.
    """
    from bridge.web.pages.access import login_path

    if not opened.environment.secret_key:
        raise click.ClickException(UNSIGNED)
    store, now = opened.store, opened.store.clock()
    user = store.user(name)
    if user is None:
        user = User(name, Role(role) if role else (Role.ADMIN if name == OWNER else Role.VIEWER))
        store.save_user(user, now)
        store.note([_fact(f"{name} was added on the command line with the role {user.role.value}.")])
    elif role and user.role.value != role:
        raise click.ClickException(
            f"{name} is {user.role.value} already; bridge user role {name} {role} changes it."
        )
    base = opened.config.bridge.public_url.rstrip("/")
    return base + login_path(opened.environment.secret_key, store, name, now, valid_for)


@click.group()
def user() -> None:
    """Say who may sign in to the pages, and with which role.

    A viewer looks; an operator also pauses, retries and sends samples; an admin may do everything.
    """


@user.command()
@options.config
@click.argument("name")
@click.option("--role", type=ROLES, default=Role.VIEWER.value, show_default=True, help="What they may do.")
@click.option("--password-file", type=click.File(), help="Read the password from here ('-': standard input).")
def add(config_path: Path | None, name: str, role: str, password_file: TextIO | None) -> None:
    """Add somebody who signs in with a password, which is asked for."""
    name = _named(name)
    with options.opened(config_path) as opened:
        if opened.store.user(name) is not None:
            raise click.ClickException(
                f"There is {name} already. bridge user password {name} sets a new password."
            )
        added = User(name, Role(role), _hashed(password_file))
        opened.store.save_user(added, opened.store.clock())
        opened.store.note([_fact(f"{name} was added on the command line with the role {role}.")])
    click.echo(f"{name} can sign in as {role}.")


@user.command("list")
@options.config
@options.as_json
def show(config_path: Path | None, json_wanted: bool) -> None:
    """Show who may sign in."""
    with options.opened(config_path) as opened:
        users = opened.store.users()
    if json_wanted:
        output.as_json(
            [
                {
                    "name": one.name,
                    "role": one.role.value,
                    "password": bool(one.password_hash),
                    "last_seen_at": one.last_seen_at,
                }
                for one in users
            ]
        )
        return
    for one in users:
        seen = f"last seen {one.last_seen_at:%Y-%m-%d %H:%M} UTC" if one.last_seen_at else "never seen"
        click.echo(f"{one.name}  {one.role.value}  {'password' if one.password_hash else 'links only'}  {seen}")
    if not users:
        click.echo("Nobody yet. bridge login-link makes a link for you; bridge user add NAME adds somebody.")


@user.command()
@options.config
@click.argument("name")
@click.option("--password-file", type=click.File(), help="Read the password from here ('-': standard input).")
def password(config_path: Path | None, name: str, password_file: TextIO | None) -> None:
    """Set a new password, and end every session and unused link of that person."""
    with options.opened(config_path) as opened:
        known = _known(opened, name)
        opened.store.save_user(replace(known, password_hash=_hashed(password_file)), utc_now())
        opened.store.end_sessions(known.name)
        opened.store.note([_fact(f"{known.name} got a new password on the command line.")])
    click.echo(f"{name} has a new password, and was signed out everywhere.")


@user.command()
@options.config
@click.argument("name")
@click.argument("role_name", metavar="ROLE", type=ROLES)
def role(config_path: Path | None, name: str, role_name: str) -> None:
    """Give somebody another role, at once."""
    with options.opened(config_path) as opened:
        known = _known(opened, name)
        opened.store.save_user(replace(known, role=Role(role_name)), utc_now())
        opened.store.note([_fact(f"{known.name} got the role {role_name} on the command line.")])
    click.echo(f"{name} is {role_name} now.")


@user.command("sign-out")
@options.config
@click.argument("name")
def sign_out(config_path: Path | None, name: str) -> None:
    """End every session and unused link of somebody, at once."""
    with options.opened(config_path) as opened:
        opened.store.end_sessions(_known(opened, name).name)
        opened.store.note([_fact(f"{name} was signed out everywhere on the command line.")])
    click.echo(f"{name} is signed out everywhere.")


@user.command()
@options.config
@click.argument("name")
def remove(config_path: Path | None, name: str) -> None:
    """Take somebody away; their sessions end at once."""
    with options.opened(config_path) as opened:
        opened.store.remove_user(_known(opened, name).name)
        opened.store.note([_fact(f"{name} was removed on the command line.")])
    click.echo(f"{name} can no longer sign in.")


# --- parts ---------------------------------------------------------------------------------------------------


def _named(name: str) -> str:
    name = name.strip()
    if not (name and len(name) <= 100 and name.isprintable()):
        raise click.UsageError("A name has from 1 to 100 characters that can be seen.")
    return name


def _known(opened: Opened, name: str) -> User:
    found = opened.store.user(name)
    if found is None:
        known = ", ".join(one.name for one in opened.store.users()) or "nobody yet"
        raise click.ClickException(f"There is no {name}; known: {known}.")
    return found


def _hashed(password_file: TextIO | None) -> str:
    from bridge.web.pages.access import hashed

    if password_file is not None:
        given = password_file.readline().rstrip("\n")
    else:
        given = click.prompt("Password", hide_input=True, confirmation_prompt=True)
    try:
        return hashed(given)
    except ValueError as error:
        raise click.UsageError(f"That cannot be used: {error}.") from error


def _fact(reason: str) -> AuditEntry:
    return AuditEntry(at=utc_now(), kind="access", outcome="changed", reason=reason)
