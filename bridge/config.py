"""``bridge.toml`` and the environment, read into frozen values; every problem at once, with its line and a fix.

Nothing is called and nothing is opened here but the file itself and the files that secrets are in.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from pathlib import Path as FilePath
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

import pydantic
from pydantic_core import ErrorDetails

from bridge import sources as all_sources
from bridge import targets as all_targets
from bridge.errors import ConfigError, Problem
from bridge.expressions import Expression
from bridge.model import Mode, Secret
from bridge.rules import Empty, FieldRule, OnDelete, Route
from bridge.sources import hmac_scheme
from bridge.sources.base import Source, SourceType
from bridge.targets.base import Target, TargetField, TargetType
from bridge.tomllines import Path, line_of, lines
from bridge.values import known_region

T = TypeVar("T")

FILE_NAME = "bridge.toml"
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_NAME = re.compile(r"[a-z0-9_-]+")
_UNKNOWN_KEY = "unknown key"


# --- what the file may say ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BridgeSettings:
    """The section ``[bridge]``."""

    public_url: str = field(
        default="",
        metadata={"help": "the URL that senders call, without /hooks; some sign it. Default: $PUBLIC_URL"},
    )
    default_region: str = field(
        default="",
        metadata={
            "help": "two letters such as 'US': where phone numbers without a country code are from. "
            "Without it such a number is an error of its field"
        },
    )
    retention_days: int = field(
        default=90, metadata={"help": "how long requests and calls are kept with their contents; facts stay"}
    )
    max_body_bytes: int = field(
        default=4 * 1024 * 1024, metadata={"help": "larger webhooks are answered with 413"}
    )
    settle_s: float = field(
        default=60.0,
        metadata={
            "help": "how long a create that got no answer is searched for before the contact is created again; "
            "longer than the platform takes to show a new contact in a search"
        },
    )

    def __post_init__(self) -> None:
        if not 1 <= self.retention_days <= 3650:
            raise ValueError("retention_days: from 1 to 3650")
        if not 1024 <= self.max_body_bytes <= 64 * 1024 * 1024:
            raise ValueError("max_body_bytes: from 1024 to 67108864 (64 MiB)")
        if not 0 <= self.settle_s <= 3600:
            raise ValueError("settle_s: from 0 to 3600")


@dataclass(frozen=True, slots=True)
class TargetLimits:
    """Keys that every ``[targets.<name>]`` may have beside those of its type."""

    rate_per_s: float | None = field(
        default=None, metadata={"help": "calls a second that bridge allows itself, over all its processes"}
    )
    burst: int | None = field(default=None, metadata={"help": "calls that may be made at once after a pause"})
    lanes: int | None = field(
        default=None, metadata={"help": "calls under way at the same time; a change moves contacts between lanes"}
    )

    def __post_init__(self) -> None:
        if self.rate_per_s is not None and not 0 < self.rate_per_s <= 1000:
            raise ValueError("rate_per_s: more than 0, up to 1000")
        if self.burst is not None and not 1 <= self.burst <= 1000:
            raise ValueError("burst: from 1 to 1000")
        if self.lanes is not None and not 1 <= self.lanes <= 64:
            raise ValueError("lanes: from 1 to 64")


@dataclass(frozen=True, slots=True)
class FieldSettings:
    """A field rule that is more than an expression."""

    value: str = field(metadata={"help": "the expression"})
    mode: Mode = field(
        default=Mode.ALWAYS,
        metadata={"help": "if_blank: never overwrite; create_only: only in the call that creates the contact"},
    )
    empty: Empty = field(
        default=Empty.LEAVE, metadata={"help": "clear: a field that the source cleared is cleared in the target"}
    )


@dataclass(frozen=True, slots=True)
class RouteSettings:
    """One ``[[routes]]``."""

    source: str = field(metadata={"help": "the name of a source"})
    target: str = field(metadata={"help": "the name of a target"})
    fields: Mapping[str, FieldSettings] = field(
        metadata={"help": "target field = expression, or { value, mode, empty }"}
    )
    when: str = field(
        default="", metadata={"help": "an expression: only contacts for which it is true; default: all"}
    )
    create: bool = field(default=True, metadata={"help": "false: only update contacts that exist in the target"})
    on_delete: OnDelete = field(
        default=OnDelete.KEEP, metadata={"help": "what a deletion in the CRM does to the target's contact"}
    )
    opt_out: str = field(default="", metadata={"help": "an expression: true means the person said stop"})


# --- what comes of it -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SourceConnection:
    name: str
    type: SourceType
    source: Source
    settings: Any  # of `type.settings`


@dataclass(frozen=True, slots=True)
class TargetConnection:
    name: str
    type: TargetType
    target: Target
    settings: Any  # of `type.settings`
    base_url: str
    rate_per_s: float
    burst: int
    lanes: int


@dataclass(frozen=True)
class Config:
    """A configuration without problems. *warnings* are what a person should know all the same."""

    bridge: BridgeSettings
    sources: Mapping[str, SourceConnection]
    targets: Mapping[str, TargetConnection]
    routes: tuple[Route, ...]
    warnings: tuple[Problem, ...] = ()
    path: FilePath | None = None

    @cached_property
    def _by_source(self) -> Mapping[str, tuple[Route, ...]]:
        return {name: tuple(r for r in self.routes if r.source == name) for name in self.sources}

    def routes_of(self, source: str) -> tuple[Route, ...]:
        return self._by_source.get(source, ())

    def reads(self, source: str) -> frozenset[str]:
        """Return the source fields that any rule needs."""
        return frozenset[str]().union(*(route.reads for route in self.routes_of(source)))


# --- reading ------------------------------------------------------------------------------------------------


def find(named: str | os.PathLike[str] | None = None, environ: Mapping[str, str] | None = None) -> FilePath:
    """Return the file that counts: *named* (``--config``), else ``BRIDGE_CONFIG``, else ``./bridge.toml``.

    Raises:
        ConfigError: there is no such file.
    """
    from_environment = (os.environ if environ is None else environ).get("BRIDGE_CONFIG")
    path = FilePath(named or from_environment or FILE_NAME)
    if not path.is_file():
        by = "--config" if named else "BRIDGE_CONFIG" if from_environment else ""
        what = f"there is no such file, which {by} names" if by else "there is no configuration here"
        raise ConfigError(Problem(str(path), what, "'bridge init' writes one; --config names another"))
    return path


def load(
    path: str | os.PathLike[str],
    environ: Mapping[str, str] | None = None,
    *,
    sources: Mapping[str, SourceType] | None = None,
    targets: Mapping[str, TargetType] | None = None,
) -> Config:
    """Read the file at *path*. *sources* and *targets* are the types that it may name.

    Raises:
        ConfigError: with every problem found.
    """
    reader = _Reader(
        FilePath(path),
        os.environ if environ is None else environ,
        all_sources.SOURCES if sources is None else sources,
        all_targets.TARGETS if targets is None else targets,
    )
    return reader.read()


class _Reader:
    """One reading of one file: collects problems as it goes, and gives up only at the end."""

    def __init__(
        self,
        path: FilePath,
        environ: Mapping[str, str],
        source_types: Mapping[str, SourceType],
        target_types: Mapping[str, TargetType],
    ) -> None:
        self.path = path
        self.environ = environ
        self.source_types = source_types
        self.target_types = target_types
        self.problems: list[tuple[Path, Problem]] = []
        self.warnings: list[Problem] = []
        self.lines: Mapping[Path, int] = {}
        self.from_environment: set[Path] = set()
        self.unset: set[Path] = set()  # texts that name a variable which is not set
        self.known_sources: dict[str, SourceType] = {}  # by connection, also of those that are wrong otherwise
        self.known_targets: dict[str, TargetType] = {}

    def read(self) -> Config:
        document = self._parse()
        self._known_keys((), document, ("bridge", "sources", "targets", "routes"))
        settings = self._bridge(document.get("bridge", {}))
        sources = self._connections("sources", document, self._source)
        targets = self._connections("targets", document, self._target)
        region = settings.default_region if settings else ""
        routes = self._routes(document, region)
        if self.problems or settings is None:
            raise ConfigError(*self._in_order())
        self._look_over(sources, targets, routes)
        return Config(settings, sources, targets, tuple(routes), tuple(self.warnings), self.path)

    # -- the file --

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
            self.from_environment.add(path)
            if name not in self.environ:
                close = _did_you_mean(name, [n for n in self.environ if n.isupper()], cutoff=0.8)
                fix = close or f"set it, or write $${name} if a dollar sign is meant"
                self.problem(path, f"the environment variable {name} is not set", fix)
                self.unset.add(path)
                return ""
            return self.environ[name]

        return _VARIABLE.sub(insert, value)

    # -- saying what is wrong --

    def _where(self, path: Path) -> str:
        line = line_of(self.lines, path)
        place = f"{self.path}:{line}" if line else str(self.path)
        return f"{place}: {_dotted(path)}" if path else place

    def problem(self, path: Path, what: str, fix: str = "") -> None:
        self.problems.append((path, Problem(self._where(path), what, fix)))

    def _in_order(self) -> list[Problem]:
        """Return the problems as they stand in the file."""
        return [problem for _, problem in sorted(self.problems, key=lambda one: line_of(self.lines, one[0]) or 0)]

    def warning(self, path: Path, what: str, fix: str = "") -> None:
        self.warnings.append(Problem(self._where(path), what, fix))

    def _known_keys(self, path: Path, table: Mapping[str, Any], known: Iterable[str]) -> None:
        names = list(known)
        for key in table:
            if key not in names:
                self.problem((*path, key), _UNKNOWN_KEY, _did_you_mean(key, names) or _one_of(names))

    def _table(self, path: Path, value: Any) -> dict[str, Any] | None:
        if isinstance(value, dict):
            return value
        self.problem(path, f"this is {_kind(value)}, where a table is wanted", f"write [{_dotted(path)}]")
        return None

    # -- sections --

    def validate(self, shape: type[T], value: Mapping[str, Any], path: Path) -> T | None:
        """Return *value* as a *shape*, noting all that is wrong with it.

        Wrong keys are then left out, so that the rest can be looked at, too; None if nothing can be made of it.
        """
        prepared = self._prepare(shape, dict(value), path)
        adapter = pydantic.TypeAdapter(shape)
        try:
            return adapter.validate_python(prepared)
        except pydantic.ValidationError as error:
            details = error.errors(include_url=False)
        for detail in details:
            self._note_invalid(detail, path)
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
            self._known_keys(path, value, hints)
            return {
                key: self._prepare(hints[key], part, (*path, key)) for key, part in value.items() if key in hints
            }
        parts = get_args(shape)
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
        origin = f"the file {value[5:]}" if value.startswith("file:") else ""
        if origin:
            try:
                value = FilePath(value[5:]).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
                self.problem(path, f"{origin} cannot be read: {why}")
                return "?"  # anything but empty, so that this is the one problem that is told
        elif path in self.from_environment:
            origin = "the environment variable"
        elif value:
            name = re.sub(r"\W", "_", "_".join(str(part) for part in path if isinstance(part, str))).upper()
            self.warning(path, "a secret stands in this file as it is", f'write "${name}" and set that variable')
        if not value.strip():
            if path not in self.unset:
                self.problem(path, f"the secret is empty{f': {origin} holds nothing' if origin else ''}")
            return "?"
        if value != value.rstrip("\r\n"):
            self.warning(path, f"{origin or 'the secret'} ends with a line end, which is left out of the secret")
        return value.rstrip("\r\n")

    def _note_invalid(self, detail: ErrorDetails, path: Path) -> None:
        where = (*path, *detail["loc"])
        if where in self.unset:
            return  # that is the problem, and it is told
        found = "" if self._hidden(where) else f", found {_kind(detail['input'])}"
        match detail["type"]:
            case "missing":
                self.problem(where, "this key is missing")
            case "value_error":
                self.refuse(where, detail["ctx"]["error"])
            case "literal_error" | "enum":
                self.problem(where, f"unknown value{found}", f"it is {detail['ctx']['expected']}")
            case kind:
                wanted = _WANTED.get(kind.rpartition("_")[0], "")
                what = f"{wanted} is wanted here{found}" if wanted else detail["msg"]
                self.problem(where, what, _wrapping(wanted, detail["input"]))

    def _hidden(self, path: Path) -> bool:
        """Say whether what stands at *path* came from outside of the file and is not to be repeated."""
        return path in self.from_environment

    def refuse(self, path: Path, error: Exception) -> None:
        """Note what an adapter says of its settings: "key: what is wrong", or a sentence that begins so."""
        said = str(error)
        match = re.match(r"([a-z_][a-z0-9_.]*)(:?) ", said)
        inner = (*path, *match[1].split(".")) if match else path
        if match and (match[2] or inner in self.lines):
            self.problem(inner, said[match.end() :])
        else:
            self.problem(path, said)

    def _bridge(self, value: Any) -> BridgeSettings | None:
        path: Path = ("bridge",)
        table = self._table(path, value)
        settings = None if table is None else self.validate(BridgeSettings, table, path)
        if settings is None or (*path, "public_url") in self.unset:
            return settings
        public_url = settings.public_url or self.environ.get("PUBLIC_URL", "")
        if not public_url:
            public_url = f"http://127.0.0.1:{self.environ.get('PORT', '8000')}"
            self.warning(
                path,
                f"public_url is not set; {public_url} is taken, which no CRM can call",
                'set it to the URL that senders call: public_url = "https://bridge.example.com"',
            )
        self.check_url((*path, "public_url"), public_url)
        region = settings.default_region
        if region and not known_region(region):
            usual = {"UK": "GB", "EN": "GB"}.get(region.upper(), region.upper())
            fix = f"did you mean '{usual}'?" if known_region(usual) else "two capital letters such as 'US' or 'GB'"
            self.problem((*path, "default_region"), f"'{region}' is no region of phone numbers", fix)
        return BridgeSettings(public_url.rstrip("/"), region, settings.retention_days, settings.max_body_bytes)

    def check_url(self, path: Path, url: str) -> None:
        if problem := url_problem(url):
            self.problem(path, *problem)

    def _connections(
        self, section: str, document: Mapping[str, Any], make: Callable[[str, dict[str, Any], Path], T | None]
    ) -> dict[str, T]:
        made = {}
        for name, value in (self._table((section,), document.get(section, {})) or {}).items():
            path = (section, name)
            if _NAME.fullmatch(name) is None:
                self.problem(path, "a name is made of a-z, 0-9, _ and -", f"call it '{_plain_name(name)}'")
            table = self._table(path, value)
            connection = None if table is None else make(name, dict(table), path)
            if connection is not None:
                made[name] = connection
        return made

    def _type_of(self, table: dict[str, Any], path: Path, types: Mapping[str, T]) -> T | None:
        name = table.pop("type", None)
        if name is None:
            self.problem(path, "the key 'type' is missing", _one_of(types))
        elif name not in types:
            self.problem(
                (*path, "type"), f"there is no type {name!r}", _did_you_mean(str(name), types) or _one_of(types)
            )
        else:
            return types[name]
        return None

    def _unfit(self, path: Path) -> bool:
        """Say whether something in a section is known to be wrong, so that no adapter needs to complain of it."""
        return any(at[: len(path)] == path and problem.what != _UNKNOWN_KEY for at, problem in self.problems)

    def _source(self, name: str, table: dict[str, Any], path: Path) -> SourceConnection | None:
        type_ = self._type_of(table, path, self.source_types)
        if type_ is not None:
            self.known_sources[name] = type_
        settings = self.validate(type_.settings, table, path) if type_ else None
        if type_ is None or settings is None:
            return None
        if self._unfit(path):
            return None
        try:
            source = type_.make(name, settings)
            if type_.read_base_url is not None:
                self.check_url(self._url_path(path, table), type_.read_base_url(settings))
        except ValueError as error:
            self.refuse(path, error)
            return None
        return SourceConnection(name, type_, source, settings)

    def _target(self, name: str, table: dict[str, Any], path: Path) -> TargetConnection | None:
        type_ = self._type_of(table, path, self.target_types)
        if type_ is None:
            return None
        self.known_targets[name] = type_
        own = {f.name for f in fields(TargetLimits)}
        limits = self.validate(TargetLimits, {key: table[key] for key in table if key in own}, path)
        settings = self.validate(type_.settings, {key: table[key] for key in table if key not in own}, path)
        if settings is None or limits is None or self._unfit(path):
            return None
        try:
            target = type_.make(settings)
            base_url = type_.base_url(settings)
        except ValueError as error:
            self.refuse(path, error)
            return None
        self.check_url(self._url_path(path, table), base_url)
        return TargetConnection(
            name,
            type_,
            target,
            settings,
            base_url,
            rate_per_s=limits.rate_per_s or type_.rate_per_s,
            burst=limits.burst or type_.burst,
            lanes=limits.lanes or type_.lanes,
        )

    def _url_path(self, path: Path, table: Mapping[str, Any]) -> Path:
        """Return the key of a connection's section that names its base, for a problem with it."""
        return next(((*path, key) for key in table if key.endswith(("base_url", "api_base"))), path)

    # -- routes --

    def _routes(self, document: Mapping[str, Any], region: str) -> list[Route]:
        value = document.get("routes", [])
        if not isinstance(value, list):
            self.problem(("routes",), f"this is {_kind(value)}, where a list is wanted", "write [[routes]]")
            return []
        routes: list[Route] = []
        first: dict[tuple[str, str], Path] = {}
        for number, one in enumerate(value):
            path: Path = ("routes", number)
            table = self._table(path, one)
            settings = None if table is None else self._route_settings(table, path)
            if settings is None:
                continue
            pair = (settings.source, settings.target)
            if pair in first:
                line = line_of(self.lines, first[pair])
                self.problem(
                    path, f"a second route from {pair[0]} to {pair[1]}", f"join it with that of line {line}"
                )
            first.setdefault(pair, path)
            self._check_names(settings, path, document)
            if (route := self._route(settings, path, region)) is not None:
                routes.append(route)
        return routes

    def _route_settings(self, table: dict[str, Any], path: Path) -> RouteSettings | None:
        """Read one route; its rules first and one by one, so that they are all looked at."""
        rules = table.get("fields")
        if isinstance(rules, dict):
            where = (*path, "fields")
            read = {name: self._field_settings(rule, (*where, *inner)) for name, inner, rule in _flat(rules)}
            table = {**table, "fields": {name: rule for name, rule in read.items() if rule is not None}}
        return self.validate(RouteSettings, table, path)

    def _field_settings(self, rule: Any, path: Path) -> FieldSettings | None:
        if isinstance(rule, str):
            return FieldSettings(rule)
        if isinstance(rule, dict):
            return self.validate(FieldSettings, rule, path)
        self.problem(path, f"an expression is wanted here, found {_kind(rule)}", _wrapping("a text", rule))
        return None

    def _check_names(self, settings: RouteSettings, path: Path, document: Mapping[str, Any]) -> None:
        for kind, name in (("source", settings.source), ("target", settings.target)):
            section = document.get(f"{kind}s")
            known = section if isinstance(section, dict) else {}
            if name not in known:
                fix = _did_you_mean(name, known) or f"add a section [{kind}s.{_plain_name(name)}]"
                self.problem((*path, kind), f"there is no {kind} named '{name}'", fix)

    def _route(self, settings: RouteSettings, path: Path, region: str) -> Route | None:
        source, target = self.known_sources.get(settings.source), self.known_targets.get(settings.target)
        when = self._compile((*path, "when"), settings.when, region, source) if settings.when else None
        opt_out = self._compile((*path, "opt_out"), settings.opt_out, region, source) if settings.opt_out else None
        rules = []
        for name, rule in settings.fields.items():
            where = (*path, "fields", name)
            value = self._compile(where, rule.value, region, source)
            known = self._target_field(name, where, target) if target else None
            if target is None or known is None or value is None:
                continue
            if rule.empty is Empty.CLEAR and not known.clearable:
                what = f"{target.title} has no sure way to clear {name}"
                self.problem(where, what, 'leave empty = "clear" out')
            rules.append(FieldRule(name, value, known.kind, rule.mode, rule.empty))
        if target is None:
            return None
        self._check_route(settings, path, target)
        return Route(
            settings.source,
            settings.target,
            target,
            tuple(rules),
            when=when,
            create=settings.create,
            on_delete=settings.on_delete,
            opt_out=opt_out,
            region=region,
        )

    def _compile(self, path: Path, text: str, region: str, source: SourceType | None) -> Expression | None:
        try:
            expression = Expression.compile(text, region=region)
        except ValueError as error:
            what, _, fix = str(error).partition("; ")
            self.problem(path, what, fix)
            return None
        if source is not None:
            self._check_reads(expression, path, source)
        return expression

    def _check_reads(self, expression: Expression, path: Path, source: SourceType) -> None:
        if source.known_field is None:
            return
        for name in sorted(expression.names):
            if not source.known_field(name):
                what = f"{source.title} has no field '{name}'"
                self.problem(path, what, _did_you_mean(name, source.known_fields) or _one_of(source.known_fields))

    def _target_field(self, name: str, path: Path, target: TargetType) -> TargetField | None:
        found = target_field(target, name)
        if found is None:
            known = [known.name for known in target.fields]
            fix = _did_you_mean(name, known) or _one_of(known)
            self.problem(path, f"{target.title} has no field '{name}'", fix)
        return found

    def _check_route(self, settings: RouteSettings, path: Path, target: TargetType) -> None:
        groups = target.identities
        if not any(all(name in settings.fields for name in group) for group in groups):
            wanted = " or ".join(" and ".join(group) for group in groups)
            self.problem(
                (*path, "fields"),
                f"no rule gives what {target.title} tells contacts apart by",
                f"add a rule for {wanted}",
            )
        if settings.on_delete is OnDelete.REMOVE and not target.can_remove:
            self.problem(
                (*path, "on_delete"), f"{target.title} has no way to remove a contact", 'write on_delete = "keep"'
            )
        if settings.opt_out and not target.can_opt_out:
            self.warning(
                (*path, "opt_out"),
                f"{target.title} has no way to be told of an opt-out: bridge creates no such contact there, "
                "and its audit log asks a person to act",
            )
        if not settings.opt_out and target.can_opt_out:
            self.warning(
                path,
                f"the route has no opt_out rule, so {target.title} never learns that a person said stop",
                'add opt_out = "…" with the CRM\'s field for it',
            )

    # -- afterwards --

    def _look_over(
        self,
        sources: Mapping[str, SourceConnection],
        targets: Mapping[str, TargetConnection],
        routes: Iterable[Route],
    ) -> None:
        """Note what is allowed but probably not meant."""
        routes = list(routes)
        if not routes:
            self.warning((), "there are no routes, so webhooks are stored and nothing is sent", "add [[routes]]")
        for name, connection in sources.items():
            path: Path = ("sources", name)
            if routes and all(route.source != name for route in routes):
                self.warning(path, "no route begins at this source, so what it says goes nowhere")
            if connection.type.read_base_url is not None and not connection.source.can_read():
                self.warning(
                    path,
                    f"without a token, contacts cannot be read from {connection.type.title}: bridge knows only "
                    "what its webhooks carry, and fields may stay unknown",
                    "add a token",
                )
            if isinstance(connection.settings, hmac_scheme.Settings) and _tells_no_repeats(connection.settings):
                self.warning(
                    path,
                    "nothing that is signed tells a repeated request from a new one, nor its age",
                    "sign a timestamp, or give payload.event_id and payload.occurred_at",
                )
        for name in targets:
            if routes and all(route.target != name for route in routes):
                self.warning(("targets", name), "no route ends at this target, so nothing is sent to it")


def url_problem(url: str) -> tuple[str, str] | None:
    """Return what is wrong with a URL that is called or signed, and the way out; None: nothing.

    It is https, but for this machine's own addresses, and has nothing hidden in it.
    """
    try:
        parts = urlsplit(url)
        host, plausible = parts.hostname, parts.port != 0 and parts.scheme in {"http", "https"}
    except ValueError:
        return "this is no URL such as https://api.example.com", ""
    if not host or not plausible or url != url.strip():
        return "this is no URL such as https://api.example.com", ""
    if parts.username or parts.password or parts.query or parts.fragment:
        return "the URL has a user, a query or a fragment", "leave nothing but host and path"
    if parts.scheme == "http" and host not in LOOPBACK:
        return "the URL begins with http://, so anybody on the way could read it", "write https://"
    return None


def target_field(target: TargetType, name: str) -> TargetField | None:
    """Return the declared field that *name* is: itself, or the one of its prefix (``attributes.*``)."""
    exact = next((known for known in target.fields if known.name == name and not name.endswith("*")), None)
    return exact or next((known for known in target.fields if _under(name, known.name)), None)


def _under(name: str, known: str) -> bool:
    return known.endswith(".*") and name.startswith(known[:-1]) and len(name) > len(known) - 1


def _tells_no_repeats(settings: hmac_scheme.Settings) -> bool:
    plain = settings.payload.occurred_at == type(settings.payload)().occurred_at
    return settings.timestamp is None and not settings.payload.event_id and plain


# --- the environment ----------------------------------------------------------------------------------------

LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("auto", "json", "text")
_SHORTEST_SECRET = 16  # characters; fewer can be guessed


@dataclass(frozen=True, slots=True)
class Environment:
    """What the process is told by its environment. A text that is empty was not set."""

    database_url: str = field(
        default="sqlite:///data/bridge.db",
        repr=False,
        metadata={"name": "DATABASE_URL", "help": "sqlite:///path, postgres://… or postgresql://…"},
    )
    secret_key: str = field(
        default="", repr=False, metadata={"name": "SECRET_KEY", "help": "signs URL tokens and log-ins"}
    )
    api_token: str = field(
        default="",
        repr=False,
        metadata={"name": "BRIDGE_API_TOKEN", "help": "opens /api/v1 and /metrics; unset: both are closed"},
    )
    public_url: str = field(
        default="", metadata={"name": "PUBLIC_URL", "help": "the URL that senders call, where the file names none"}
    )
    port: int = field(default=8000, metadata={"name": "PORT", "help": "where the web process listens"})
    web_concurrency: int | None = field(
        default=None, metadata={"name": "WEB_CONCURRENCY", "help": "how many web processes; unset: bridge chooses"}
    )
    log_level: str = field(default="info", metadata={"name": "LOG_LEVEL", "help": ", ".join(LOG_LEVELS)})
    log_format: str = field(
        default="auto", metadata={"name": "LOG_FORMAT", "help": "json, text, or auto: json when not a terminal"}
    )

    @classmethod
    def read(cls, environ: Mapping[str, str] | None = None) -> Environment:
        """Read the environment; a variable that is set to nothing is as good as unset.

        Raises:
            ConfigError: with every problem found.
        """
        given = {name: value.strip() for name, value in (os.environ if environ is None else environ).items()}
        problems: list[Problem] = []
        found: dict[str, Any] = {}
        for one in fields(cls):
            name = one.metadata["name"]
            if text := given.get(name):
                try:
                    found[one.name] = _CHECKS[name](text)
                except ValueError as error:
                    what, _, fix = str(error).partition("; ")
                    problems.append(Problem(f"the environment: {name}", what, fix))
        if problems:
            raise ConfigError(*problems)
        return cls(**found)


def _database_url(text: str) -> str:
    try:
        scheme, path = urlsplit(text).scheme, urlsplit(text).path
    except ValueError:
        scheme = path = ""
    if scheme in {"postgres", "postgresql"} or (scheme == "sqlite" and path.strip("/")):
        return text
    raise ValueError("this is no database; sqlite:///data/bridge.db, or postgresql://user:password@host/name")


def _long_enough(text: str) -> str:
    if len(text) < _SHORTEST_SECRET:
        raise ValueError(
            f"it has {len(text)} characters, which can be guessed; "
            "python -c 'import secrets; print(secrets.token_urlsafe(32))' makes one"
        )
    return text


def _from_to(low: int, high: int) -> Callable[[str], int]:
    def check(text: str) -> int:
        if not (text.isascii() and text.isdigit() and low <= int(text[:9]) <= high):
            raise ValueError(f"a whole number from {low} to {high} is wanted")
        return int(text)

    return check


def _word(known: tuple[str, ...]) -> Callable[[str], str]:
    def check(text: str) -> str:
        if text.lower() not in known:
            raise ValueError(f"there is no '{text}'; {_did_you_mean(text.lower(), known) or _one_of(known)}")
        return text.lower()

    return check


def _public_url(text: str) -> str:
    if problem := url_problem(text):
        raise ValueError("; ".join(part for part in problem if part))
    return text.rstrip("/")


_CHECKS: Mapping[str, Callable[[str], Any]] = {
    "DATABASE_URL": _database_url,
    "SECRET_KEY": _long_enough,
    "BRIDGE_API_TOKEN": _long_enough,
    "PUBLIC_URL": _public_url,
    "PORT": _from_to(1, 65535),
    "WEB_CONCURRENCY": _from_to(1, 64),
    "LOG_LEVEL": _word(LOG_LEVELS),
    "LOG_FORMAT": _word(LOG_FORMATS),
}


# --- small helpers ------------------------------------------------------------------------------------------

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


def _syntax_problem(path: FilePath, said: str) -> Problem:
    """Return what `tomllib` says, with its "(at line 3, column 5)" in front."""
    match = re.search(r" \(at line (\d+), column (\d+)\)$", said)
    where = f"{path}:{match[1]}" if match else str(path)
    what = said[: match.start()] if match else "it is nested too deeply" if "recursion" in said else said
    fix = "a text stands in quotes" if what.startswith("Invalid value") else ""
    return Problem(where, f"this is not TOML: {what}", fix)


def _dotted(path: Path) -> str:
    """Return *path* as people write it: ``routes[2].fields."attributes.tier"``; entries count from 1."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part + 1}]"
        else:
            text += ("." if text else "") + (part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else f'"{part}"')
    return text


def _wrapping(wanted: str, found: Any) -> str:
    if wanted == "a list" and isinstance(found, str):
        return "put it into brackets: [...]"
    return "put it into quotes" if wanted == "a text" and isinstance(found, int | float) else ""


def _kind(value: Any) -> str:
    kinds = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "a table",
    }
    said = kinds.get(type(value), "something else")
    return (
        f"{said} ({value!r})"
        if isinstance(value, int | float) or (isinstance(value, str) and len(value) <= 40)
        else said
    )


def _flat(table: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, tuple[str, ...], Any]]:
    """Yield rules by their dotted names, with their keys in the file: ``attributes.tier = …`` needs no quotes."""
    for key, value in table.items():
        inner = (*path, key)
        if isinstance(value, dict) and not value.keys() & {f.name for f in fields(FieldSettings)}:
            yield from _flat(value, inner)
        else:
            yield ".".join(inner), inner, value


def _did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"did you mean '{close[0]}'?" if close else ""


def _one_of(names: Iterable[str]) -> str:
    listed = sorted(names)
    return f"there is {', '.join(listed[:20])}{', …' if len(listed) > 20 else ''}" if listed else ""


def _plain_name(name: str) -> str:
    return re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-") or "crm"
