"""Write the tables of README.md and docs/ that follow from what types of sources declare: ``make tables``.

A table stands between two comments, ``<!-- table NAME -->`` and ``<!-- end -->``. A test compares them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from bridge import declared
from bridge.config.model import SourceHabits
from bridge.sources import SOURCES
from bridge.sources.base import Proof, SourceType

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *(ROOT / "docs" / name for name in ("README.md", "configuration.md", "security.md")))
GENERIC = ("standard_webhooks", "hmac", "json", "form")  # behind the CRMs


def sources() -> list[SourceType]:
    """Return all types as people look for them: by title, those for any sender last."""
    return sorted(
        SOURCES.values(),
        key=lambda one: (GENERIC.index(one.name) if one.name in GENERIC else -1, one.title.lower()),
    )


def source_table(folder: str) -> str:
    """Return what each type can do; *folder* leads to its page."""
    lines = [
        "| Source | A webhook proves itself by | Contacts are read | Backfill, reconcile | `bridge register` |",
        "|---|---|---|---|---|",
    ]
    for one in sources():
        able = declared.abilities_of(one)
        can = (able.reads, able.lists, able.registers)
        cells = [f"[{one.title}]({folder}/{one.name}.md)", declared.PROOFS[one.proof]]
        lines.append(f"| {' | '.join([*cells, *('yes' if each else 'no' for each in can)])} |")
    return "\n".join(lines)


def source_links() -> str:
    return "Sources: " + " ·\n".join(f"[{one.title}](sources/{one.name}.md)" for one in sources())


def source_keys() -> str:
    """Return a section for each type with its keys."""
    parts = ["<!-- every source -->\n" + key_table(SourceHabits)]
    for one in sources():
        doc = " ".join((one.settings.__doc__ or "").split("\n\n")[0].split())
        parts.append(
            f'### type = "{one.name}"\n\n{doc} [{one.title}](sources/{one.name}.md).\n\n'
            f"<!-- source {one.name} -->\n{key_table(one.settings)}"
        )
    return "\n\n".join(parts)


def key_table(settings: type[object]) -> str:
    lines = ["| Key | Default | Meaning |", "|---|---|---|"]
    for key in declared.keys_of(settings):
        plain = key.default in {declared.NEEDED, "none", "as below"}
        shown = key.default if plain else f"`{key.default}`"
        lines.append(f"| `{key.name}` | {shown} | {key.help.replace('|', '&#124;')} |")
    return "\n".join(lines)


PROVES: Mapping[Proof, tuple[str, str]] = {
    Proof.SIGNED: ("who sent it, and that nothing of it was changed", "when, where the sender signs no moment"),
    Proof.SHOWN: ("that the sender knows a secret", "that nothing was changed, and when"),
    Proof.URL: ("that the sender knows the URL", "who it is, that nothing was changed, and when"),
}


def proof_table() -> str:
    lines = ["| Source | It proves | It does not prove |", "|---|---|---|"]
    for proof, (proves, leaves) in PROVES.items():
        names = ", ".join(f"[{one.title}](sources/{one.name}.md)" for one in sources() if one.proof is proof)
        lines.append(f"| {names} | {proves} | {leaves} |")
    return "\n".join(lines)


TABLES: Mapping[str, Callable[[], str]] = {
    "sources of README": lambda: source_table("docs/sources"),
    "sources": lambda: source_table("sources"),
    "links to sources": source_links,
    "keys of sources": source_keys,
    "proofs": proof_table,
}
_TABLE = re.compile(r"(<!-- table (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def renewed(page: str) -> str:
    """Return *page* with its tables as they should be."""
    return _TABLE.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}\n{found[3]}", page)


def main() -> int:
    for path in PAGES:
        path.write_text(renewed(path.read_text("utf-8")), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
