"""Finding ``bridge.toml`` and making a `Config` of it, or all the problems that it has.

Nothing is called and nothing is opened but the file itself and the files that secrets are in.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path as PathOnDisk
from typing import Any, TypeVar

from bridge.config.document import Document, variables
from bridge.config.lines import Path, line_of
from bridge.config.model import (
    BridgeSettings,
    Config,
    FieldSettings,
    RouteSettings,
    SourceConnection,
    SourceHabits,
    TargetConnection,
    TargetLimits,
)
from bridge.config.words import did_you_mean, kind_of, one_of, plain_name, wrapping
from bridge.errors import ConfigError, Problem
from bridge.expressions import Expression
from bridge.rules import Empty, FieldRule, OnDelete, Route
from bridge.sources import SOURCES, hmac_scheme
from bridge.sources.base import SourceType
from bridge.sources.payload import Payload
from bridge.targets import TARGETS
from bridge.targets.base import TargetField, TargetType
from bridge.values import known_region

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Routes:
    """Routes without problems. *warnings* are what a person should know all the same."""

    routes: tuple[Route, ...]
    warnings: tuple[Problem, ...] = ()


FILE_NAME = "bridge.toml"
MOST_ROUTES = 100  # in rules that anybody may have written …
MOST_DOTS = 500  # … and in a line of them: a name of so many parts
_NAME = re.compile(r"[a-z0-9_-]+")
_PERSONAL = re.compile(r"\w*(?:mail|phone|mobile)\w*", re.IGNORECASE)  # a name of something that is no mere number


def find(named: str | os.PathLike[str] | None = None, environ: Mapping[str, str] | None = None) -> PathOnDisk:
    """Return the file that counts: *named* (``--config``), else ``BRIDGE_CONFIG``, else ``./bridge.toml``.

    Raises:
        ConfigError: there is no such file.
    """
    from_environment = (os.environ if environ is None else environ).get("BRIDGE_CONFIG")
    path = PathOnDisk(named or from_environment or FILE_NAME)
    if not path.is_file():
        by = "--config" if named else "BRIDGE_CONFIG" if from_environment else ""
        what = f"there is no such file, which {by} names" if by else "there is no configuration here"
        raise ConfigError(Problem(str(path), what, "'bridge init' writes one; --config names another"))
    return path


def load(
    path: str | os.PathLike[str],
    environ: Mapping[str, str] | None = None,
    *,
    sources: Mapping[str, SourceType] = SOURCES,
    targets: Mapping[str, TargetType] = TARGETS,
) -> Config:
    """Read the file at *path*. *sources* and *targets* are the types that it may name.

    Raises:
        ConfigError: with every problem found.
    """
    document = Document(PathOnDisk(path), os.environ if environ is None else environ)
    return _Reader(document, sources, targets).read()


def read_routes(text: str, config: Config, name: str = "rules") -> Routes:
    """Read ``[[routes]]`` that somebody is trying out, with the connections of *config*: the checks are the same.

    *name* is what problems call the text. Of the environment it sees only what the routes of *config* name.

    Raises:
        ConfigError: with every problem found.
    """
    _look_at_size(text, name)
    document = Document(PathOnDisk(name), config.variables, text)
    document.known_keys((), document.tables, ("routes",))
    # Which connections there are, for whoever looks whether a name is one of them.
    document.tables |= {"sources": dict(config.sources), "targets": dict(config.targets)}
    reader = _Reader(document, {}, {})
    reader.known_sources = {name: one.type for name, one in config.sources.items()}
    reader.known_targets = {name: one.type for name, one in config.targets.items()}
    reader.region = config.bridge.default_region
    routes = reader.routes()
    if document.problems:
        raise ConfigError(*document.in_order())
    return Routes(tuple(routes), tuple(document.warnings))


def _look_at_size(text: str, name: str) -> None:
    """Refuse what would take long to read and means nothing: anybody may have written it."""
    if text.count("[[") > MOST_ROUTES:
        raise ConfigError(Problem(name, f"there are more than {MOST_ROUTES} routes", "try some of them"))
    for number, line in enumerate(text.splitlines(), 1):
        if line.count(".") > MOST_DOTS:
            raise ConfigError(Problem(f"{name}:{number}", f"this line has more than {MOST_DOTS} dots"))


class _Reader:
    """The sections of one file, what they have to do with each other, and what is probably not meant."""

    def __init__(
        self, document: Document, sources: Mapping[str, SourceType], targets: Mapping[str, TargetType]
    ) -> None:
        self.document = document
        self.source_types = sources
        self.target_types = targets
        # By connection, also of those that are wrong otherwise: their routes are checked all the same.
        self.known_sources: dict[str, SourceType] = {}
        self.known_targets: dict[str, TargetType] = {}
        self.region = ""

    def read(self) -> Config:
        document = self.document
        document.known_keys((), document.tables, ("bridge", "sources", "targets", "routes"))
        settings = self._bridge(document.tables.get("bridge", {}))
        sources = self._connections("sources", self._source)
        targets = self._connections("targets", self._target)
        self.region = settings.default_region if settings else ""
        routes = self.routes()
        if document.problems or settings is None:
            raise ConfigError(*document.in_order())
        self._look_over(sources, targets, routes)
        written = document.written.get("routes", [])
        environ = {name: document.environ[name] for name in variables(written)}
        warnings = tuple(document.warnings)
        return Config(settings, sources, targets, tuple(routes), warnings, document.path, tuple(written), environ)

    def _bridge(self, value: Any) -> BridgeSettings | None:
        path: Path = ("bridge",)
        table = self.document.table(path, value)
        settings = None if table is None else self.document.validate(BridgeSettings, table, path)
        if settings is None or (*path, "public_url") in self.document.unset:
            return settings
        public_url = settings.public_url or self.document.environ.get("PUBLIC_URL", "")
        if not public_url:
            public_url = f"http://127.0.0.1:{self.document.environ.get('PORT', '8000')}"
            self.document.warning(
                path,
                f"public_url is not set; {public_url} is taken, which no CRM can call",
                'set it to the URL that senders call: public_url = "https://bridge.example.com"',
            )
        self.document.check_url((*path, "public_url"), public_url)
        if public_url.rstrip("/").endswith("/hooks"):
            self.document.problem(
                (*path, "public_url"), "the URL ends with /hooks, which bridge adds", "leave it out"
            )
        region = settings.default_region
        if region and not known_region(region):
            usual = {"UK": "GB", "EN": "GB"}.get(region.upper(), region.upper())
            fix = f"did you mean '{usual}'?" if known_region(usual) else "two capital letters such as 'US' or 'GB'"
            where = (*path, "default_region")
            written = self.document.as_written(where, region)
            self.document.problem(where, f"'{written}' is no region of phone numbers", fix)
        return replace(settings, public_url=public_url.rstrip("/"))

    def _connections(self, section: str, make: Callable[[str, dict[str, Any], Path], T | None]) -> dict[str, T]:
        made = {}
        for name, value in (self.document.table((section,), self.document.tables.get(section, {})) or {}).items():
            path = (section, name)
            if _NAME.fullmatch(name) is None:
                self.document.problem(path, "a name is made of a-z, 0-9, _ and -", f"call it '{plain_name(name)}'")
            table = self.document.table(path, value)
            connection = None if table is None else make(name, dict(table), path)
            if connection is not None:
                made[name] = connection
        return made

    def _type_of(self, table: dict[str, Any], path: Path, types: Mapping[str, T]) -> T | None:
        name = table.pop("type", None)
        if name is None:
            self.document.problem(path, "the key 'type' is missing", one_of(types))
        elif name not in types:
            where = (*path, "type")
            written = self.document.as_written(where, name)
            fix = did_you_mean(str(name), types) or one_of(types)
            self.document.problem(where, f"there is no type {written!r}", fix)
        else:
            return types[name]
        return None

    def _source(self, name: str, table: dict[str, Any], path: Path) -> SourceConnection | None:
        type_ = self._type_of(table, path, self.source_types)
        if type_ is not None:
            self.known_sources[name] = type_
        if type_ is None:
            return None
        own = {f.name for f in fields(SourceHabits)}
        habits = self.document.validate(SourceHabits, {key: table[key] for key in table if key in own}, path)
        rest = {key: table[key] for key in table if key not in own}
        settings = self.document.validate(type_.settings, rest, path, also=own, made_up=True)
        if settings is None or habits is None:
            return None
        try:
            if type_.read_base_url is not None:
                self.document.check_url(self._url_path(path, table), type_.read_base_url(settings))
            source = type_.make(name, settings)
        except ValueError as error:
            self.document.refuse(path, error)
            return None
        property_ = habits.write_back.opt_out.strip() if habits.write_back else ""
        connection = SourceConnection(name, type_, source, settings, habits.reconcile_minutes * 60, property_)
        if property_ and connection.writer() is None:
            self.document.problem(
                (*path, "write_back"),
                f"{type_.title} cannot be told of opt-outs"
                if type_.writer is None
                else "the CRM cannot be called without a credential",
                "leave the key out"
                if type_.writer is None
                else f"add the credential; 'bridge sources {type_.name}' shows the keys",
            )
        return connection

    def _target(self, name: str, table: dict[str, Any], path: Path) -> TargetConnection | None:
        type_ = self._type_of(table, path, self.target_types)
        if type_ is None:
            return None
        self.known_targets[name] = type_
        own = {f.name for f in fields(TargetLimits)}
        limits = self.document.validate(TargetLimits, {key: table[key] for key in table if key in own}, path)
        rest = {key: table[key] for key in table if key not in own}
        settings = self.document.validate(type_.settings, rest, path, also=own, made_up=True)
        if settings is None or limits is None:
            return None
        try:
            target = type_.make(settings)
            base_url = type_.base_url(settings)
        except ValueError as error:
            self.document.refuse(path, error)
            return None
        self.document.check_url(self._url_path(path, table), base_url)
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

    def routes(self) -> list[Route]:
        value = self.document.tables.get("routes", [])
        if not isinstance(value, list):
            self.document.problem(
                ("routes",), f"this is {kind_of(value)}, where a list is wanted", "write [[routes]]"
            )
            return []
        routes: list[Route] = []
        first: dict[tuple[str, str], Path] = {}
        for number, one in enumerate(value):
            path: Path = ("routes", number)
            table = self.document.table(path, one)
            settings = None if table is None else self._route_settings(table, path)
            if settings is None:
                continue
            pair = (settings.source, settings.target)
            if pair in first:
                line = line_of(self.document.lines, first[pair])
                begin, end = (
                    self.document.as_written((*path, kind), name)
                    for kind, name in zip(("source", "target"), pair, strict=True)
                )
                self.document.problem(
                    path, f"a second route from {begin} to {end}", f"join it with that of line {line}"
                )
            first.setdefault(pair, path)
            self._check_names(settings, path)
            if (route := self._route(settings, path)) is not None:
                routes.append(route)
        return routes

    def _route_settings(self, table: dict[str, Any], path: Path) -> RouteSettings | None:
        """Read one route; its rules first and one by one, so that they are all looked at."""
        rules = table.get("fields")
        if isinstance(rules, dict):
            where = (*path, "fields")
            read = {name: self._field_settings(rule, (*where, *inner)) for name, inner, rule in flat(rules)}
            table = {**table, "fields": {name: rule for name, rule in read.items() if rule is not None}}
        return self.document.validate(RouteSettings, table, path)

    def _field_settings(self, rule: Any, path: Path) -> FieldSettings | None:
        if isinstance(rule, str):
            return FieldSettings(rule)
        if isinstance(rule, dict):
            return self.document.validate(FieldSettings, rule, path)
        self.document.problem(
            path, f"an expression is wanted here, found {kind_of(rule)}", wrapping("a text", rule)
        )
        return None

    def _check_names(self, settings: RouteSettings, path: Path) -> None:
        for kind, name in (("source", settings.source), ("target", settings.target)):
            section = self.document.tables.get(f"{kind}s")
            known = section if isinstance(section, dict) else {}
            if name not in known:
                where = (*path, kind)
                own = self.document.fix_as_written(where, f"add a section [{kind}s.{plain_name(name)}]")
                what = f"there is no {kind} named '{self.document.as_written(where, name)}'"
                self.document.problem(where, what, did_you_mean(name, known) or own or one_of(known))

    def _route(self, settings: RouteSettings, path: Path) -> Route | None:
        source, target = self.known_sources.get(settings.source), self.known_targets.get(settings.target)
        when = self._condition((*path, "when"), settings.when, source)
        opt_out = self._condition((*path, "opt_out"), settings.opt_out, source)
        rules = []
        for name, rule in settings.fields.items():
            where = (*path, "fields", name)
            value = self._compile(where, rule.value, source)
            known = self._target_field(name, where, target) if target else None
            if target is None or known is None or value is None:
                continue
            if rule.empty is Empty.CLEAR and not known.clearable:
                what = f"{target.title} has no sure way to clear {name}"
                self.document.problem(where, what, 'leave empty = "clear" out')
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
            region=self.region,
        )

    def _condition(self, path: Path, text: str, source: SourceType | None) -> Expression | None:
        return self._compile(path, text, source, condition=True) if text else None

    def _compile(
        self, path: Path, text: str, source: SourceType | None, *, condition: bool = False
    ) -> Expression | None:
        try:
            expression = Expression.compile(text, region=self.region, condition=condition)
        except ValueError as error:
            what, _, fix = str(error).partition("; ")
            if path in self.document.from_environment:  # what is said quotes the expression
                what, fix = f"the expression {self.document.as_written(path, text)} cannot be read", ""
            self.document.problem(path, what, fix)
            return None
        if source is not None:
            self._check_reads(expression, path, source)
        return expression

    def _check_reads(self, expression: Expression, path: Path, source: SourceType) -> None:
        if source.known_field is None:
            return
        for name in sorted(expression.names):
            if not source.known_field(name):
                what = f"{source.title} has no field '{self.document.as_written(path, name)}'"
                self.document.problem(
                    path, what, did_you_mean(name, source.known_fields) or one_of(source.known_fields)
                )

    def _target_field(self, name: str, path: Path, target: TargetType) -> TargetField | None:
        found = target_field(target, name)
        if found is None:
            known = [known.name for known in target.fields]
            fix = did_you_mean(name, known) or one_of(known)
            self.document.problem(path, f"{target.title} has no field '{name}'", fix)
        return found

    def _check_route(self, settings: RouteSettings, path: Path, target: TargetType) -> None:
        groups = target.identities
        if not any(all(name in settings.fields for name in group) for group in groups):
            wanted = " or ".join(" and ".join(group) for group in groups)
            self.document.problem(
                (*path, "fields"),
                f"no rule gives what {target.title} tells contacts apart by",
                f"add a rule for {wanted}",
            )
        if settings.on_delete is OnDelete.REMOVE and not target.can_remove:
            self.document.problem(
                (*path, "on_delete"), f"{target.title} has no way to remove a contact", 'write on_delete = "keep"'
            )
        if settings.opt_out and not target.can_opt_out:
            self.document.warning(
                (*path, "opt_out"),
                f"{target.title} has no way to be told of an opt-out: bridge creates no such contact there, "
                "and its audit log asks a person to act",
            )
        if not settings.opt_out and target.can_opt_out:
            self.document.warning(
                path,
                f"the route has no opt_out rule, so {target.title} never learns that a person said stop",
                'add opt_out = "…" with the CRM\'s field for it',
            )

    def _look_over(
        self,
        sources: Mapping[str, SourceConnection],
        targets: Mapping[str, TargetConnection],
        routes: Sequence[Route],
    ) -> None:
        """Note what is allowed but probably not meant."""
        if not routes:
            self.document.warning(
                (), "there are no routes, so webhooks are stored and nothing is sent", "add [[routes]]"
            )
        for name, connection in sources.items():
            path: Path = ("sources", name)
            if name in targets and targets[name].type.feedback is not None:
                self.document.warning(
                    ("targets", name),
                    f"a source has this name, too, so /hooks/{name} is the source's: what this target tells of "
                    "opt-outs is not heard",
                    "give one of the two another name",
                )
            if routes and all(route.source != name for route in routes):
                self.document.warning(path, "no route begins at this source, so what it says goes nowhere")
            if connection.type.read_base_url is not None and not connection.source.can_read():
                self.document.warning(
                    path,
                    f"without a token, contacts cannot be read from {connection.type.title}: bridge knows only "
                    "what its webhooks carry, and fields may stay unknown",
                    "add a token",
                )
            payload = getattr(connection.settings, "payload", None)
            if isinstance(payload, Payload) and (personal := _PERSONAL.search(payload.id)):
                self.document.warning(
                    (*path, "payload", "id"),
                    f"the id seems to be personal ('{personal[0]}'), and ids stay in logs and in the audit log, "
                    "also of persons who were erased",
                    "give the sender's own number of the contact",
                )
            if isinstance(connection.settings, hmac_scheme.Settings) and _tells_no_repeats(connection.settings):
                self.document.warning(
                    path,
                    "nothing that is signed tells a repeated request from a new one, nor its age",
                    "sign a timestamp, or give payload.event_id and payload.occurred_at",
                )
        for name in targets:
            if routes and all(route.target != name for route in routes):
                self.document.warning(("targets", name), "no route ends at this target, so nothing is sent to it")


def target_field(target: TargetType, name: str) -> TargetField | None:
    """Return the declared field that *name* is: itself, or the one of its prefix (``attributes.*``)."""
    exact = next((known for known in target.fields if known.name == name and not name.endswith(".*")), None)
    return exact or next((known for known in target.fields if _under(name, known.name)), None)


def _under(name: str, known: str) -> bool:
    """Say whether *name* is one of those that *known*, ending in ``.*``, stands for."""
    inner = name.removeprefix(known[:-1])
    return known.endswith(".*") and inner not in {name, "", "*"}


def _tells_no_repeats(settings: hmac_scheme.Settings) -> bool:
    plain = settings.payload.occurred_at == type(settings.payload)().occurred_at
    return settings.timestamp is None and not settings.payload.event_id and plain


def flat(table: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, tuple[str, ...], Any]]:
    """Yield rules by their dotted names, with their keys in the file: ``attributes.tier = …`` needs no quotes."""
    for key, value in table.items():
        inner = (*path, key)
        if isinstance(value, dict) and not value.keys() & {f.name for f in fields(FieldSettings)}:
            yield from flat(value, inner)
        else:
            yield ".".join(inner), inner, value
