"""The command that shows everything: demo."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING

import click

from bridge.cli import FAILED

if TYPE_CHECKING:
    from bridge.demo.screen import Screen
    from bridge.demo.stage import Stage
    from bridge.demo.story import Story

LOOK_S = 0.5
STOPPED = 130  # as a shell has it for Ctrl-C


@click.command()
@click.option("--once", is_flag=True, help="End after the story; without a terminal this is so anyway.")
@click.pass_context
def demo(ctx: click.Context, once: bool) -> None:
    """Show bridge at work on this machine, with made-up platforms.

    HubSpot and the four platforms are made up and run in this process; bridge itself is the real one, with a
    database in a temporary folder. No account and no key is needed, nothing leaves the machine, and nothing stays.

    At the end the demo looks whether everything came out as it should: the exit code is 1 if anything did not, and
    130 when Ctrl-C came before the end.
    """
    from bridge.demo.screen import open_screen
    from bridge.demo.stage import DemoFailed, open_stage
    from bridge.demo.story import Story

    over = False
    try:
        with open_screen() as screen:
            screen.title("bridge starts, with a made-up HubSpot and four made-up platforms around it ...")
            with open_stage() as stage:
                story = Story(stage, screen)
                story.play()
                over = True
                _sum_up(screen, story)
                if sys.stdout.isatty() and not once:
                    _go_on(screen, story)
    except DemoFailed as failure:
        raise click.ClickException(str(failure)) from failure
    except KeyboardInterrupt:
        click.echo("\nStopped; everything was taken away.")
        if not over:  # afterwards Ctrl-C is how it ends
            ctx.exit(STOPPED)
    if story.failures:
        ctx.exit(FAILED)


def _sum_up(screen: Screen, story: Story) -> None:
    if story.failures:
        screen.title(f"{len(story.failures)} of these came out wrong; see FAIL above.")
    else:
        screen.title("Everything came out as it should.")


def _go_on(screen: Screen, story: Story) -> None:
    """Say how to play on by hand, and show what comes of it until Ctrl-C."""
    screen.title("It keeps running until you press Ctrl-C. See it in a browser; this link signs you in once:")
    screen.tell(story.stage.login_url())
    screen.title("In another terminal:")
    for line in _hints(story.stage):
        screen.tell(line)
    while True:
        story.watch(LOOK_S)


def _hints(stage: Stage) -> list[str]:
    program = f"{shlex.quote(sys.executable)} -m bridge"
    folder = stage.folder
    header = '-H "Authorization: Bearer $BRIDGE_API_TOKEN"'
    return [
        f". {folder}/env",
        f"{program} send shop {folder}/customer.json",
        f"{program} login-link   # one more of them",
        f"{program} status",
        f"{program} export deliveries --source shop",
        f"curl {header} {stage.base_url}/api/v1/contacts/shop/5003",
        f"sqlite3 {folder}/bridge.db .schema",
        "Edit customer.json and send it again, as often as you like.",
        "The first line sets variables for that terminal; close it in the end.",
    ]
