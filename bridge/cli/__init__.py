"""The command line. This module stays light: a command's module is imported when the command is run."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

import click

from bridge import __version__
from bridge.errors import BridgeError, ConfigError

OK, FAILED, USAGE = 0, 1, 2  # the exit codes of every command


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a command is, and what ``bridge --help`` says of it."""

    module: str
    name: str
    help: str


COMMANDS = {
    "demo": Entry("demo", "demo", "Show bridge at work on this machine, with made-up platforms."),
    "init": Entry("setup", "init", "Write a bridge.toml to start from."),
    "sources": Entry("types", "sources", "List the types of sources, what each can do, and its keys."),
    "targets": Entry("types", "targets", "List the types of targets, what each can do, and its keys."),
    "check": Entry("setup", "check", "Check the configuration and report every problem at once."),
    "serve": Entry("run", "serve", "Run web and worker together."),
    "web": Entry("run", "web", "Run only the web process, which receives webhooks."),
    "worker": Entry("run", "worker", "Run only the worker process, which delivers contacts."),
    "migrate": Entry("run", "migrate", "Bring the database up to date."),
    "copy": Entry("copying", "copy", "Move an installation from SQLite to an empty PostgreSQL database."),
    "register": Entry("registering", "register", "Create or update the webhook subscriptions of a source's CRM."),
    "backfill": Entry(
        "catching_up", "backfill", "Read every contact of a source's CRM, and bring all targets up to date."
    ),
    "url": Entry("send", "url", "Show the URL that a source's CRM is to call."),
    "send": Entry("send", "send", "Sign a webhook as the CRM would and post it to a running bridge."),
    "try": Entry("send", "dry_run", "Show what each target would get of a webhook, and why; nothing is sent."),
    "login-link": Entry("people", "login_link", "Print a link that signs in to the pages once."),
    "user": Entry("people", "user", "Say who may sign in to the pages, and with which role."),
    "status": Entry("data", "status", "Show whether everything is healthy, and what waits."),
    "export": Entry("data", "export", "Write webhooks, contacts, deliveries or the audit log as NDJSON or CSV."),
    "replay": Entry("data", "replay", "Decide contacts again, or read stored webhooks again."),
    "prune": Entry("data", "prune", "Delete personal payloads that are older than they should be."),
}


class Commands(click.Group):
    """The group of all commands: imports them late, and turns bridge's errors into sentences and exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command: click.Command = getattr(importlib.import_module(f"bridge.cli.{entry.module}"), entry.name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            for problem in error.problems:
                click.echo(str(problem), err=True)
            count = len(error.problems)
            click.echo(f"{count} problem{'s' * (count != 1)} found; nothing was started.", err=True)
            ctx.exit(USAGE)
        except BridgeError as error:
            click.echo(str(error), err=True)
            ctx.exit(FAILED)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="bridge")
def main() -> None:
    """Keep contacts in messaging platforms equal to what the CRM says.

    Signed webhooks come in from a source; they are verified, merged and mapped by rules, and each target gets
    what differs from what it last took.

    Exit codes: 0 ok, 1 failed, 2 wrong usage or configuration.
    """
