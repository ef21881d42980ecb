"""On which line of a TOML file each key stands: `tomllib` reads values but does not say where they were.

The text has been read by `tomllib` before, so it is known to be valid TOML and nothing is checked again.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping

Path = tuple[str | int, ...]  # ("routes", 0, "fields", "mobile")

_BLANK = re.compile(r"(?:\s|#[^\n]*)*")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_QUOTED = re.compile(r'"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'')
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}(?!")|\'\'\'.*?\'{3,5}(?!\')|' + _QUOTED.pattern,
    re.DOTALL,
)
_SCALAR = re.compile(r"[^\s,\]}#][^,\]}#\n]*")


def lines(text: str) -> Mapping[Path, int]:
    """Return the line, from 1, of every table, key and array entry in *text*."""
    scanner = _Scanner(text)
    scanner.document()
    return scanner.found


def line_of(found: Mapping[Path, int], path: Path) -> int | None:
    """Return the line of *path*, or of the nearest thing around it that is in the file."""
    while path and path not in found:
        path = path[:-1]
    return found.get(path)


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text.replace("\r\n", "\n")
        self.at = 0
        self.found: dict[Path, int] = {}
        self.tables: dict[Path, int] = {}  # how many of [[each]] there were so far

    def document(self) -> None:
        table: Path = ()
        while self.blank() < len(self.text):
            if self.take("[["):
                table = self.entry_of(self.key())
                self.take("]]")
            elif self.take("["):
                table = self.inside(self.key())
                self.note(table)
                self.take("]")
            else:
                self.pair(table)

    def entry_of(self, key: Path) -> Path:
        array = self.inside(key[:-1]) + key[-1:]
        number = self.tables.get(array, 0)
        self.tables[array] = number + 1
        self.found.setdefault(array, self.line())
        self.note((*array, number))
        return (*array, number)

    def inside(self, key: Path) -> Path:
        """Return *key* with the number of the newest entry behind the name of each array of tables."""
        path: Path = ()
        for part in key:
            path = (*path, part)
            if path in self.tables:
                path = (*path, self.tables[path] - 1)
        return path

    def pair(self, table: Path) -> None:
        path = table
        for part in self.key():
            path = (*path, part)
            self.found.setdefault(path, self.line())
        self.take("=")
        self.value(path)

    def value(self, path: Path) -> None:
        self.blank()
        if self.take("["):
            number = 0
            while not self.take("]"):
                self.note((*path, number))
                self.value((*path, number))
                self.take(",")
                number += 1
        elif self.take("{"):
            while not self.take("}"):
                self.pair(path)
                self.take(",")
        else:
            match = _STRING.match(self.text, self.at) or _SCALAR.match(self.text, self.at)
            self.at = match.end() if match else len(self.text)

    def key(self) -> Path:
        parts: list[str | int] = []
        while True:
            self.blank()
            bare = _BARE.match(self.text, self.at)
            quoted = None if bare else _QUOTED.match(self.text, self.at)
            match = bare or quoted
            if match is None:
                return tuple(parts)
            parts.append(tomllib.loads(f"key = {match[0]}")["key"] if quoted else match[0])
            self.at = match.end()
            if not self.take("."):
                return tuple(parts)

    def blank(self) -> int:
        """Step over white space, line ends and comments; return where we are."""
        match = _BLANK.match(self.text, self.at)
        self.at = match.end() if match else self.at
        return self.at

    def take(self, mark: str) -> bool:
        self.blank()
        if not self.text.startswith(mark, self.at):
            return False
        self.at += len(mark)
        return True

    def note(self, path: Path) -> None:
        self.found[path] = self.line()

    def line(self) -> int:
        return self.text.count("\n", 0, self.at) + 1
