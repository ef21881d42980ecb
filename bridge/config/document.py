"""One TOML file on its way into frozen settings: environment put in, secrets read, each problem with its line.

It knows nothing of what the settings are for; `reader` does.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path as PathOnDisk
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import pydantic
from pydantic_core import ErrorDetails

from bridge.config.lines import Path, line_of, lines
from bridge.config.words import did_you_mean, dotted, kind_of, one_of, url_problem, wrapping
from bridge.errors import ConfigError, Problem
from bridge.model import Secret

T = TypeVar("T")

_UNKNOWN_KEY = "unknown key"


class Document:
    """One reading of one file, or of *text* that is not in a file: it collects problems as it goes.

    Raises:
        ConfigError: when it is made, if the file cannot be read or is no TOML.
    """

    def __init__(self, path: PathOnDisk, environ: Mapping[str, str], text: str | None = None) -> None:
        self.path = path  # with a text, what to call it
        self.environ = environ
        self.problems: list[tuple[Path, Problem]] = []
        self.warnings: list[Problem] = []
        self.from_environment: dict[Path, str] = {}  # texts that name a variable, and its name
        self.unset: set[Path] = set()  # of these, the ones whose variable is not set
        self.lines: Mapping[Path, int] = {}
        self.written = self._parse(self._read() if text is None else text)  # names of variables, not their values
        self.tables = {key: self._expand(value, (key,)) for key, value in self.written.items()}

    def _read(self) -> str:
        try:
            return self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise ConfigError(Problem(str(self.path), f"the file cannot be read: {why}")) from error

    def _parse(self, text: str) -> dict[str, Any]:
        try:
            document = tomllib.loads(text)
        except (ValueError, RecursionError) as error:  # also for a number of thousands of digits
            raise ConfigError(_syntax_problem(self.path, str(error))) from error
        self.lines = lines(text)
        return document

    def _expand(self, value: Any, path: Path) -> Any:
        """Put the environment into every text below *path*."""
        if isinstance(value, dict):
            return {key: self._expand(part, (*path, key)) for key, part in value.items()}
        if isinstance(value, list):
            return [self._expand(part, (*path, number)) for number, part in enumerate(value)]
        if not isinstance(value, str):
            return value

        def insert(match: re.Match[str]) -> str:
            name = match["braced"] or match["bare"]
            if name is None:
                return "$"
            self.from_environment[path] = name
            if name not in self.environ:
                close = did_you_mean(name, [n for n in self.environ if n.isupper()], cutoff=0.8)
                fix = close or f"set it, or write $${name} if a dollar sign is meant"
                self.problem(path, f"the environment variable {name} is not set", fix)
                self.unset.add(path)
                return ""
            return self.environ[name]

        return _VARIABLE.sub(insert, value)

    def _where(self, path: Path) -> str:
        line = line_of(self.lines, path)
        place = f"{self.path}:{line}" if line else str(self.path)
        return f"{place}: {dotted(path)}" if path else place

    def problem(self, path: Path, what: str, fix: str = "") -> None:
        self.problems.append((path, Problem(self._where(path), what, fix)))

    def in_order(self) -> list[Problem]:
        """Return the problems as they stand in the file."""
        return [problem for _, problem in sorted(self.problems, key=lambda one: line_of(self.lines, one[0]) or 0)]

    def warning(self, path: Path, what: str, fix: str = "") -> None:
        self.warnings.append(Problem(self._where(path), what, fix))

    def known_keys(self, path: Path, table: Mapping[str, Any], known: Iterable[str]) -> None:
        names = list(known)
        for key in table:
            if key not in names:
                self.problem((*path, key), _UNKNOWN_KEY, did_you_mean(key, names) or one_of(names))

    def table(self, path: Path, value: Any) -> dict[str, Any] | None:
        """Return *value* if it is a table, else None once that is noted."""
        if isinstance(value, dict):
            return value
        self.problem(path, f"this is {kind_of(value)}, where a table is wanted", f"write [{dotted(path)}]")
        return None

    def validate(
        self,
        shape: type[T],
        value: Mapping[str, Any],
        path: Path,
        also: Iterable[str] = (),
        *,
        made_up: bool = False,
    ) -> T | None:
        """Return *value* as a *shape*, noting all that is wrong with it. *also* are keys that others read.

        Wrong keys are then left out, so that the rest can be looked at, too; None if nothing can be made of it.
        What is needed and missing is made up with *made_up*: for looking further, and for nothing else.
        """
        own = get_type_hints(shape)
        self.known_keys(path, value, (*own, *also))
        prepared = {key: self._prepare(own[key], part, (*path, key)) for key, part in value.items() if key in own}
        hashable: Any = shape
        adapter: pydantic.TypeAdapter[T] = _adapter(hashable)
        try:
            return adapter.validate_python(prepared)
        except pydantic.ValidationError as error:
            details = error.errors(include_url=False)
        for where, detail in {_place(detail, prepared): detail for detail in reversed(details)}.items():
            self._note_invalid((*path, *where), detail)
        wrong = {str(detail["loc"][0]) for detail in details if detail["loc"]}
        if not wrong:
            return None
        right = {key: part for key, part in prepared.items() if key not in wrong}
        stand_ins = {key: _stand_in(own[key]) for key in _needed(shape) if key in wrong}
        try:
            looked_at = adapter.validate_python(right | stand_ins)
        except pydantic.ValidationError as error:
            # What was wrong at first kept it from looking at how the keys fit together.
            for detail in error.errors(include_url=False):
                if detail["type"] == "value_error":
                    self._note_invalid((*path, *_place(detail, right)), detail)
            return None
        return looked_at if made_up or not stand_ins else None

    def _prepare(self, shape: Any, value: Any, path: Path) -> Any:
        """Return *value* with secrets read from their files, noting unknown keys and secrets that are none."""
        if shape is Secret:
            return self._secret(value, path)
        if is_dataclass(shape) and isinstance(value, dict):
            hints = get_type_hints(shape)
            self.known_keys(path, value, hints)
            return {
                key: self._prepare(hints[key], part, (*path, key)) for key, part in value.items() if key in hints
            }
        parts = get_args(shape)
        if isinstance(value, bool) and {shape, *parts} & {int, float}:
            self.problem(path, "a number is wanted here, found true or false")  # to Python, true is 1
        if get_origin(shape) in (Union, UnionType):
            for part in parts:
                if part is Secret or (is_dataclass(part) and isinstance(value, dict)):
                    return self._prepare(part, value, path)
        elif get_origin(shape) in (tuple, list) and isinstance(value, list):
            return [self._prepare(parts[0], part, (*path, number)) for number, part in enumerate(value)]
        elif parts and isinstance(value, dict):
            return {key: self._prepare(parts[-1], part, (*path, key)) for key, part in value.items()}
        return value

    def _secret(self, value: Any, path: Path) -> Any:
        if not isinstance(value, str):
            return value
        origin, fix = "", ""
        if value.startswith("file:"):
            origin, fix = f"the file {value[5:]}", "write the secret into it"
            try:
                value = PathOnDisk(value[5:]).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
                self.problem(path, f"{origin} cannot be read: {why}")
                return "?"  # anything but empty, so that this is the one problem that is told
        elif path in self.from_environment:
            origin = f"the environment variable {self.from_environment[path]}"
            fix = "set it to the secret"
        elif value:
            name = re.sub(r"\W", "_", "_".join(str(part) for part in path if isinstance(part, str))).upper()
            self.warning(path, "a secret stands in this file as it is", f'write "${name}" and set that variable')
        if not value.strip():
            if path not in self.unset:
                self.problem(path, f"the secret is empty{f': {origin} holds nothing' if origin else ''}", fix)
            return "?"
        if value != value.rstrip("\r\n"):
            self.warning(path, f"{origin or 'the secret'} ends with a line end, which is left out of the secret")
        return value.rstrip("\r\n")

    def _note_invalid(self, where: Path, detail: ErrorDetails) -> None:
        if where in self.unset:
            return  # that is the problem, and it is told
        found = f", found {kind_of(detail['input'])}"
        match detail["type"]:
            case "missing":
                self.problem(where, "this key is missing")
            case "value_error":
                self.refuse(where, detail["ctx"]["error"])
            case "literal_error" | "enum":
                self.problem(where, "unknown value", f"it is {detail['ctx']['expected']}")
            case kind:
                wanted = _WANTED.get(kind.rpartition("_")[0], "")
                what = f"{wanted} is wanted here{found}" if wanted else detail["msg"]
                self.problem(where, what, wrapping(wanted, detail["input"]))

    def refuse(self, path: Path, error: Exception) -> None:
        """Note what an adapter says of its settings, a line each: "key: what is wrong", or a sentence.

        What it says of a key that is known to be wrong is left out: it has not seen what the file says.
        """
        complaints = [self._about(path, said) for said in str(error).splitlines()]
        for where, what in [one for one in complaints if not self.unfit(one[0])]:
            self.problem(where, what)

    def _about(self, path: Path, said: str) -> tuple[Path, str]:
        """Return which key of the section at *path* is spoken of, and what is said of it."""
        match = re.match(r"([a-z_][a-z0-9_.]*)(:?) ", said)
        inner = (*path, *match[1].split(".")) if match else path
        if match and (match[2] or inner in self.lines):
            return inner, said[match.end() :]
        return path, said

    def unfit(self, path: Path) -> bool:
        """Say whether something at or below *path* is known to be wrong, so that nobody else complains of it."""
        return any(at[: len(path)] == path and problem.what != _UNKNOWN_KEY for at, problem in self.problems)

    def as_written(self, path: Path, value: Any) -> Any:
        """Return *value* as the file has it, for a message: what came from the environment may be a secret."""
        name = self.from_environment.get(path)
        return value if name is None else f"${name}"

    def fix_as_written(self, path: Path, fix: str) -> str:
        """Return *fix*, which tells of a value, unless that came from the environment."""
        return "" if path in self.from_environment else fix

    def check_url(self, path: Path, url: str) -> None:
        if (problem := url_problem(url)) and not self.unfit(path):
            self.problem(path, *problem)


def variables(value: Any) -> frozenset[str]:
    """Return the names of the environment variables in every text of *value*, as `Document.written` has it."""
    if isinstance(value, dict):
        return frozenset[str]().union(*(variables(part) for part in value.values()))
    if isinstance(value, list):
        return frozenset[str]().union(*(variables(part) for part in value))
    found = _VARIABLE.finditer(value) if isinstance(value, str) else ()
    return frozenset(name for match in found if (name := match["braced"] or match["bare"]))


_VARIABLE = re.compile(r"\$(?:\$|\{(?P<braced>[A-Za-z_][A-Za-z0-9_]*)\}|(?P<bare>[A-Za-z_][A-Za-z0-9_]*))")

# By the first part of pydantic's error types.
_WANTED = {
    "string": "a text",
    "int": "a whole number",
    "int_from": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "tuple": "a list",
    "list": "a list",
    "dict": "a table",
    "mapping": "a table",
    "dataclass": "a table",
}


def _syntax_problem(path: PathOnDisk, said: str) -> Problem:
    """Return what `tomllib` says, with its "(at line 3, column 5)" in front."""
    match = re.search(r" \(at line (\d+), column (\d+)\)$", said)
    where = f"{path}:{match[1]}" if match else str(path)
    what = said[: match.start()] if match else "it is nested too deeply" if "recursion" in said else said
    fix = "a text stands in quotes" if what.startswith("Invalid value") else ""
    return Problem(where, f"this is not TOML: {what}", fix)


@cache
def _adapter(shape: type[Any]) -> pydantic.TypeAdapter[Any]:
    """Return what checks a *shape*; making it takes longer than checking."""
    return pydantic.TypeAdapter(shape)


def _needed(shape: type[Any]) -> Iterator[str]:
    """Yield the names of a dataclass's fields that have no default."""
    for one in fields(shape):
        if one.default is MISSING and one.default_factory is MISSING:
            yield one.name


def _stand_in(shape: Any) -> Any:
    """Return something of the type *shape*, for a key whose own value cannot be used."""
    parts = get_args(shape)
    if is_dataclass(shape) and isinstance(shape, type) and shape is not Secret:
        hints = get_type_hints(shape)
        return {name: _stand_in(hints[name]) for name in _needed(shape)}
    if get_origin(shape) in (Union, UnionType):
        return _stand_in(parts[0])
    if get_origin(shape) is Literal:
        return parts[0]
    if get_origin(shape) in (tuple, list):
        return [_stand_in(parts[0])]
    if parts:
        return {}
    return {int: 1, float: 1.0, bool: False}.get(shape, "?")


def _place(detail: ErrorDetails, value: Any) -> Path:
    """Return where in *value* an error is, without what pydantic adds: which member of a union it tried."""
    place: Path = ()
    for part in detail["loc"]:
        inside = isinstance(value, dict) and part in value
        if inside or (isinstance(value, list) and isinstance(part, int)):
            place, value = (*place, part), value[part]
        elif detail["type"] == "missing":
            place = (*place, part)
    return place
