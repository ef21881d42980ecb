"""One TOML file on its way into frozen settings: environment put in, secrets read, each problem with its line.

It knows nothing of what the settings are for; `reader` does.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from pathlib import Path as PathOnDisk
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import pydantic
from pydantic_core import ErrorDetails

from bridge.config.lines import Path, line_of, lines
from bridge.config.words import did_you_mean, dotted, kind_of, one_of, url_problem, wrapping
from bridge.errors import ConfigError, Problem
from bridge.model import Secret

T = TypeVar("T")

_UNKNOWN_KEY = "unknown key"


class Document:
    """One reading of one file: it collects problems as it goes.

    Raises:
        ConfigError: when it is made, if the file cannot be read or is no TOML.
    """

    def __init__(self, path: PathOnDisk, environ: Mapping[str, str]) -> None:
        self.path = path
        self.environ = environ
        self.problems: list[tuple[Path, Problem]] = []
        self.warnings: list[Problem] = []
        self.from_environment: dict[Path, str] = {}  # texts that name a variable, and its name
        self.unset: set[Path] = set()  # of these, the ones whose variable is not set
        self.lines: Mapping[Path, int] = {}
        self.tables = self._parse()

    def _parse(self) -> dict[str, Any]:
        try:
            text = self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise ConfigError(Problem(str(self.path), f"the file cannot be read: {why}")) from error
        try:
            document = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise ConfigError(_syntax_problem(self.path, str(error))) from error
        self.lines = lines(text)
        return {key: self._expand(value, (key,)) for key, value in document.items()}

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

    def validate(self, shape: type[T], value: Mapping[str, Any], path: Path, also: Iterable[str] = ()) -> T | None:
        """Return *value* as a *shape*, noting all that is wrong with it. *also* are keys that others read.

        Wrong keys are then left out, so that the rest can be looked at, too; None if nothing can be made of it.
        """
        own = get_type_hints(shape)
        self.known_keys(path, value, (*own, *also))
        prepared = {key: self._prepare(own[key], part, (*path, key)) for key, part in value.items() if key in own}
        adapter = pydantic.TypeAdapter(shape)
        try:
            return adapter.validate_python(prepared)
        except pydantic.ValidationError as error:
            details = error.errors(include_url=False)
        for where, detail in {_place(detail, prepared): detail for detail in reversed(details)}.items():
            self._note_invalid((*path, *where), detail)
        wrong = {detail["loc"][0] for detail in details if detail["loc"] and detail["type"] != "missing"}
        if not wrong:
            return None
        try:
            return adapter.validate_python({key: part for key, part in prepared.items() if key not in wrong})
        except pydantic.ValidationError:
            return None

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
        """Note what an adapter says of its settings, a line each: "key: what is wrong", or a sentence."""
        for said in str(error).splitlines():
            self._refuse(path, said)

    def _refuse(self, path: Path, said: str) -> None:
        match = re.match(r"([a-z_][a-z0-9_.]*)(:?) ", said)
        inner = (*path, *match[1].split(".")) if match else path
        if match and (match[2] or inner in self.lines):
            self.problem(inner, said[match.end() :])
        else:
            self.problem(path, said)

    def unfit(self, path: Path) -> bool:
        """Say whether something in a section is known to be wrong, so that no adapter needs to complain of it."""
        return any(at[: len(path)] == path and problem.what != _UNKNOWN_KEY for at, problem in self.problems)

    def as_written(self, path: Path, value: Any) -> Any:
        """Return *value* as the file has it, for a message: what came from the environment may be a secret."""
        name = self.from_environment.get(path)
        return value if name is None else f"${name}"

    def fix_as_written(self, path: Path, fix: str) -> str:
        """Return *fix*, which tells of a value, unless that came from the environment."""
        return "" if path in self.from_environment else fix

    def check_url(self, path: Path, url: str) -> None:
        if problem := url_problem(url):
            self.problem(path, *problem)


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
