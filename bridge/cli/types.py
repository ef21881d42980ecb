"""`bridge sources` and `bridge targets`: the types that there are, what each can do, and its keys."""

from __future__ import annotations

import click

from bridge import declared
from bridge.cli import options, output
from bridge.sources import SOURCES
from bridge.targets import TARGETS


@click.command()
@click.argument("type_name", metavar="[TYPE]", required=False, type=click.Choice(sorted(SOURCES)))
@options.as_json
def sources(type_name: str | None, json_wanted: bool) -> None:
    """List the types of sources, what each can do, and its keys.

    Give a TYPE for its keys in bridge.toml.
    """
    chosen = [SOURCES[name] for name in ([type_name] if type_name else sorted(SOURCES))]
    if json_wanted:
        output.as_json([declared.source_as_json(one) for one in chosen])
        return
    if type_name:
        click.echo(f"{chosen[0].title}: a request proves itself by {declared.PROOFS[chosen[0].proof]}.")
        _print_keys(list(declared.keys_of(chosen[0].settings)))
        return
    rows = []
    for one in chosen:
        able = declared.abilities_of(one)
        can = (able.reads, able.lists, able.registers, able.writes_back)
        rows.append([one.name, one.title, one.proof.value, *("yes" if each else "no" for each in can)])
    output.table(["TYPE", "TITLE", "PROOF", "READS", "LISTS", "REGISTERS", "WRITES BACK"], rows)
    click.echo("\nReads, lists, registers and writes back where a credential for it is configured.")
    click.echo("Keys of a type: bridge sources TYPE")


@click.command()
@click.argument("type_name", metavar="[TYPE]", required=False, type=click.Choice(sorted(TARGETS)))
@options.as_json
def targets(type_name: str | None, json_wanted: bool) -> None:
    """List the types of targets, what each can do, and its keys.

    Give a TYPE for its keys in bridge.toml, and the fields that it takes.
    """
    chosen = [TARGETS[name] for name in ([type_name] if type_name else sorted(TARGETS))]
    if json_wanted:
        output.as_json([declared.target_as_json(one) for one in chosen])
        return
    if type_name:
        _print_keys(list(declared.keys_of(chosen[0].settings)))
        click.echo()
        output.table(["FIELD", "KIND"], [[one.name, one.kind.value] for one in chosen[0].fields])
        return
    output.table(
        ["TYPE", "TITLE", "FOUND BY", "OPT-OUTS", "REMOVES"],
        [
            [
                one.name,
                one.title,
                ", ".join("+".join(group) for group in one.identities),
                "yes" if one.can_opt_out else "no",
                "yes" if one.can_remove else "no",
            ]
            for one in chosen
        ],
    )
    click.echo("\nKeys and fields of a type: bridge targets TYPE")


def _print_keys(keys: list[declared.Key]) -> None:
    output.table(["KEY", "DEFAULT", "MEANING"], [[key.name, key.default, key.help] for key in keys])
