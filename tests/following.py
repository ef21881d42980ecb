"""What stands in the documentation, and a person at a terminal who types it and compares what comes of it.

On a page, ``<!-- run -->`` stands above what tests run; a block of text below says what it prints.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
LOOKS = 20  # at what takes a moment to come true

# --- what stands on a page -----------------------------------------------------------------------------------


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def table(page: Path, mark: str) -> list[list[str]]:
    """Return the rows of every table of *page* that stands below the comment *mark*, without their heads."""
    rows: list[list[str]] = []
    for found in re.findall(rf"<!-- {mark} -->\n((?:\|.*\n)+)", page.read_text("utf-8")):
        for line in found.splitlines()[2:]:
            cells = re.split(r"(?<!\\)\|", line)[1:-1]
            rows.append([cell.strip().replace(r"\|", "|") for cell in cells])
    assert rows, f"{name_of(page)} has no table marked <!-- {mark} -->"
    return rows


def code(cell: str) -> str:
    """Return what stands between the backticks of a cell."""
    assert cell.startswith("`"), cell
    assert cell.endswith("`"), cell
    return cell.strip("`")


def marked(page: str) -> list[tuple[str, str]]:
    """Return the blocks of commands below ``<!-- run -->``, each with what the page says that they print."""
    text = (DOCS / page).read_text("utf-8")
    found = re.findall(r"(?s)<!-- run -->\n```sh\n(.*?)```\n(?:\n```text\n(.*?)```)?", text)
    assert found, f"{page} has nothing to run"
    return found


def looks_like(said: str, printed: str) -> bool:
    """Say whether each line of *said* was printed; ``...`` stands for anything."""
    lines = (re.escape(line).replace(re.escape("..."), ".*") for line in said.splitlines())
    return all(re.search(f"^{line}", printed, re.MULTILINE) for line in lines)


# --- typing it -----------------------------------------------------------------------------------------------


@dataclass
class Terminal:
    process: subprocess.Popen[str]

    def type(self, block: str) -> str:
        """Return what *block* prints; all of it must have succeeded."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"set -e\n{block}\nset +e\necho '--- typed'\n")
        self.process.stdin.flush()
        printed = ""
        for line in self.process.stdout:
            if line == "--- typed\n":
                return printed
            printed += line
        raise AssertionError(f"this failed:\n{block}\n{printed}")

    def follow(self, page: str) -> None:
        """Type all that is marked on *page*; what only looks is typed again until it shows what the page says."""
        for block, said in marked(page):
            printed = self.type(block)
            for _ in range(LOOKS if block.startswith("bridge export") else 0):
                if looks_like(said, printed):
                    break
                printed = self.type(block)
            assert looks_like(said, printed), printed


@contextmanager
def open_terminal(folder: Path, **environ: str) -> Iterator[Terminal]:
    """Open one in *folder*, where ``.venv`` is what the tests run in."""
    (folder / ".venv").symlink_to(sys.prefix)
    shell = subprocess.Popen(
        ["/bin/sh"],
        cwd=folder,
        env={"PATH": os.environ["PATH"], **environ},
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    with shell:
        yield Terminal(shell)
        assert shell.stdin is not None
        shell.stdin.close()
